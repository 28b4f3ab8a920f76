"""Reads of a tree once everything is here: crfs below overlayfs, and the same tree unpacked on the host's disk."""

import os
import random
import statistics
import subprocess
import time


def drop():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w", encoding="utf-8") as file:
        file.write("3")


def shell(command):
    return lambda root: subprocess.run(["sh", "-c", command], cwd=root, check=True)


def random_reads(root):
    """20,000 reads of 4 KiB."""
    place = random.Random(5)
    with open(f"{root}/big", "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size // 4096
        for _ in range(20_000):
            os.pread(file.fileno(), 4096, place.randrange(size) * 4096)


CASES = {
    "find": shell("find plain > /dev/null"),
    "find -ls": shell("find plain -ls > /dev/null"),
    "find, files with xattrs": shell("find attributed > /dev/null"),
    "cat of 30,000 small files": shell("find plain -type f -print0 | xargs -0 cat > /dev/null"),
    "cat of 30,000 small files with xattrs": shell("find attributed -type f -print0 | xargs -0 cat > /dev/null"),
    "1 GB sequential": shell("cat big > /dev/null"),
    "20,000 random reads of 4 KiB": random_reads,
}


def measure(roots, runs, say):
    """Seconds by case, state and snapshotter, medians, the snapshotters in turns."""
    found = {}
    for case, work in CASES.items():
        taken = {(state, who): [] for state in ("dropped", "warm") for who in roots}
        for _ in range(runs):
            for who, root in roots.items():
                drop()
                for state in ("dropped", "warm"):
                    start = time.monotonic()
                    work(root)
                    taken[state, who].append(time.monotonic() - start)
        found[case] = {
            state: {who: statistics.median(taken[state, who]) for who in roots} for state in ("dropped", "warm")
        }
        say(f"{case}: " + ", ".join(f"{s} {found[case][s]}" for s in found[case]))
    return found
