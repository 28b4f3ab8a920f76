"""What a process and those it started use: memory at its peak, CPU seconds of each kind of thread."""

import collections
import os
import re
import threading

TICKS = os.sysconf("SC_CLK_TCK")
PERIOD = 0.05


def tree(pid):
    """The process and all below it."""
    found = [pid]
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as children:
                for child in children.read().split():
                    found += tree(int(child))
    except OSError:
        pass  # it has ended
    return found


def crfs(started, root):
    """The processes of a crfs: what was started, the server that `root` names, and the keeper above it."""
    found = {started}
    try:
        with open(f"{root}/server.pid", encoding="ascii") as file:
            server = int(file.read())
        with open(f"/proc/{server}/stat", encoding="ascii", errors="replace") as file:
            keeper = int(file.read().rpartition(") ")[2].split()[1])
        found |= {server, keeper} - {1}
    except (OSError, ValueError):
        pass  # one without a keeper
    return sorted({pid for top in found for pid in tree(top)})


def status(pid):
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        return {key: int(value) * 1024 for key, value in re.findall(r"^(\w+):\s+(\d+) kB$", file.read(), re.MULTILINE)}


def thread_seconds(pid):
    """(thread id, kind of thread, seconds) of each thread; `fuse-12` is of the kind `fuse`."""
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/stat", encoding="ascii", errors="replace") as file:
                name, _, rest = file.read().partition("(")[2].rpartition(") ")
        except OSError:
            continue
        fields = rest.split()
        yield task, re.sub(r"[-_]?\d+$", "", name), (int(fields[11]) + int(fields[12])) / TICKS


class Usage:
    """Watches a crfs while it runs. Threads that end between two looks are counted up to the last look."""

    def __init__(self, started, root):
        self.started, self.root = started, root
        self.peak, self.anonymous = {}, {}
        self.threads, self.ended = {}, threading.Event()
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()

    def watch(self):
        while not self.ended.wait(PERIOD):
            self.look()

    def look(self):
        for pid in crfs(self.started, self.root):
            try:
                now = status(pid)
                self.peak[pid] = now.get("VmHWM", 0)
                self.anonymous[pid] = max(self.anonymous.get(pid, 0), now.get("RssAnon", 0))
                for task, kind, seconds in thread_seconds(pid):
                    self.threads[task] = (kind, seconds)
            except OSError:
                continue

    def done(self):
        self.ended.set()
        self.watcher.join()
        self.look()
        kinds = collections.Counter()
        for kind, seconds in self.threads.values():
            kinds[kind] += seconds
        return {
            "peak": sum(self.peak.values()),
            "anonymous": sum(self.anonymous.values()),
            "threads": {kind: round(seconds, 2) for kind, seconds in kinds.most_common()},
        }
