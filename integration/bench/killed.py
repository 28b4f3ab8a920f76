"""What a running container notices when its snapshotter is killed (SIGKILL): a reader in a loop, and the same again from outside.

The container reads one small file after the other, each by a `cat` of its own, a hundred a second at most. After the first hundred the
process that serves its files is killed: of crfs the server, whose keeper starts another at once; another snapshotter is started again after
a second, as its systemd unit would. Counted are the reads that failed in the five seconds from then on, and the longest time that one took.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time

import disk
from node import Failed, Node, run

BEFORE, AFTER, PAUSE = 100, 5.0, 0.01
# What is read already lies in the kernel's memory; so each read is of another file. `read` waits until the next is wanted.
LOOP = "for f in $(find /data -type f); do read -r go || exit 0; if cat $f >/dev/null 2>&1; then echo 1; else echo 0; fi; done"
LIMIT, AGAIN, PATIENCE = 120, 1.0, 30.0


def measure(folder, registry, image, way):
    """One way: reads that failed, the longest in seconds, and whether a new container of the image starts afterwards."""
    reference = f"{registry.address}/bench/{image.name}:{way.tag}"
    with disk.fresh(folder), Node(folder, way.configured(registry, folder), server=way.server) as node:
        node.ctr("image", "pull", "--plain-http", "--snapshotter", way.snapshotter, reference)
        child = subprocess.Popen(
            node.start(way.snapshotter, reference, ["sh", "-c", LOOP]), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        limit = threading.Timer(LIMIT, child.kill)
        limit.start()
        again = threading.Thread(target=start_again, args=[node], daemon=True)
        for _ in range(BEFORE):
            one = one_read(child)
            if not (one and one[0]):
                raise Failed(f"{way.name}: a read failed before anything was killed")
        kill(node, way, again)
        read, failed, longest = reads(child, time.monotonic() + AFTER)
        child.stdin.close()
        child.wait()
        limit.cancel()
        new = starts(node, way, reference)
        if way.server:
            again.join(LIMIT)
        return {"way": way.name, "read": read, "failed": failed, "longest": longest, "new": new}


def one_read(child):
    """Has the container read one file; gives whether it could, and the seconds that it took. None when it has ended."""
    started = time.monotonic()
    try:
        child.stdin.write("\n")
        child.stdin.flush()
    except BrokenPipeError:
        return None
    said = child.stdout.readline()
    return (said.strip() == "1", time.monotonic() - started) if said else None


def reads(child, end):
    """Reads until the end comes, or the files do: how many, how many failed, and how long the longest took."""
    count = failed = 0
    longest = 0.0
    while time.monotonic() < end and (one := one_read(child)):
        count, failed, longest = count + 1, failed + (not one[0]), max(longest, one[1])
        time.sleep(PAUSE)
    return count, failed, longest


def kill(node, way, again):
    if way.server:
        os.kill(int(node.values["CRFS_PID"]), signal.SIGKILL)
        again.start()
        return
    with open(os.path.join(node.values["CRFS_ROOT"], "server.pid"), encoding="ascii") as file:
        os.kill(int(file.read()), signal.SIGKILL)


def start_again(node):
    """What a systemd unit would do. One that does not come up shows in the new container."""
    time.sleep(AGAIN)
    with contextlib.suppress(Failed, OSError):
        node.tell("crfs start")


def starts(node, way, reference):
    """Whether a new container of the image starts and reads a file. containerd reaches a snapshotter that was away after a pause."""
    command = ["sh", "-c", "cat $(find /data -type f | tail -n 1) | wc -c"]
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(2 * AGAIN)
        with contextlib.suppress(Failed, subprocess.TimeoutExpired):
            run(node.start(way.snapshotter, reference, command), 60)
            return True
    return False
