"""The file system once everything is cached: the same tree through overlayfs on crfs and on the host's disk.

Each step is timed in three states: cold (the kernel has dropped pages and names), dropped (only pages) and warm (the step has
just been done).
"""

import os
import shutil
import statistics
import subprocess
import sys
import time

import cold
from node import Failed, Node, run

ROUNDS = 3
RANDOM = """
import os, random, sys
chance, file = random.Random(3), os.open(sys.argv[1], os.O_RDONLY)
size = os.fstat(file).st_size
for _ in range(10000):
    os.pread(file, 4096, chance.randrange(size // 4096) * 4096)
"""
SEQUENTIAL = 'dd if="$1"/data/big of=/dev/null bs=1M status=none'
STEPS = {
    "find": 'find "$1"/data | wc -l',
    "cat": 'cd "$1" && xargs -0 -a "$2" cat >/dev/null',
    "sequential": SEQUENTIAL,
    "random": f"{sys.executable} -c '{RANDOM}' \"$1\"/data/big",
}
NAMES = {
    "find": "find", "cat": "cat of small files (30,000 at most)", "sequential": "sequential read", "random": "10,000 random reads of 4 KiB",
}
FILES = 30_000


def drop(what):
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write(what)


def timed(step, tree, names):
    started = time.monotonic()
    done = subprocess.run(
        ["sh", "-c", STEPS[step], "sh", tree, names], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        raise Failed(f"{step} in {tree}: status {done.returncode}\n{done.stderr[-1000:]}")
    return time.monotonic() - started


def wait_until_idle(registry):
    """Until nothing has crossed the line for two seconds."""
    before = -1
    while (now := registry.counts()[0]) > before + 1000:
        before = now
        time.sleep(2)


def measure(folder, registry, image, steps):
    """Rows of {image, step, state, crfs, overlayfs} in seconds: medians of alternating rounds."""
    config = f'[registry]\nplain_http = ["{registry.address}"]\n'
    try:
        with Node(folder, config) as node:
            trees = {}
            for way in (cold.OVERLAYFS, cold.CRFS):
                reference = f"{registry.address}/bench/{image.name}:{way.tag}"
                trees[way.name] = os.path.join(folder, way.name)
                os.mkdir(trees[way.name])
                node.ctr("image", "pull", "--plain-http", "--snapshotter", way.snapshotter, reference)
                node.ctr("image", "mount", "--snapshotter", way.snapshotter, reference, trees[way.name])
            names = os.path.join(folder, "names")
            listed = f"cd {trees['overlayfs']} && find data -type f -print0 | sort -z | head -z -n {FILES} >{names}"
            run(["sh", "-c", listed])
            run(["sh", "-c", f"find {trees['crfs']}/data -type f -print0 | xargs -0 cat >/dev/null"])
            wait_until_idle(registry)
            rows = []
            for step in steps:
                rows += rounds(image, step, trees, names)
            for tree in trees.values():
                node.ctr("image", "unmount", tree)
            return rows
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def rounds(image, step, trees, names):
    times = {}
    for _ in range(ROUNDS):
        for name, tree in trees.items():
            for state, what in (("cold", "3"), ("dropped", "1"), ("warm", None)):
                if what:
                    drop(what)
                times.setdefault((state, name), []).append(timed(step, tree, names))
    for state in ("cold", "dropped", "warm"):
        row = {"image": image.name, "step": step, "state": state}
        yield {**row, **{name: statistics.median(times[state, name]) for name in trees}}
