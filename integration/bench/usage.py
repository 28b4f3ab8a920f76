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


def forget_peak(pid):
    """Lets VmHWM begin anew, from what is resident now (proc(5), clear_refs)."""
    try:
        with open(f"/proc/{pid}/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass  # it has ended


class Usage:
    """Watches a crfs while it runs. Threads that end between two looks are counted up to the last look.

    Its peak is what its processes had resident together at one look, and what each had more between two looks.
    """

    def __init__(self, started, root):
        self.started, self.root = started, root
        self.together, self.resident, self.peak, self.anonymous = 0, {}, {}, {}
        self.threads, self.ended = {}, threading.Event()
        for pid in crfs(started, root):
            forget_peak(pid)
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()

    def watch(self):
        while not self.ended.wait(PERIOD):
            self.look()

    def look(self):
        together = 0
        for pid in crfs(self.started, self.root):
            try:
                now = status(pid)
                together += now.get("VmRSS", 0)
                self.resident[pid] = max(self.resident.get(pid, 0), now.get("VmRSS", 0))
                self.peak[pid] = now.get("VmHWM", 0)
                self.anonymous[pid] = max(self.anonymous.get(pid, 0), now.get("RssAnon", 0))
                for task, kind, seconds in thread_seconds(pid):
                    self.threads[task] = (kind, seconds)
            except OSError:
                continue
        self.together = max(self.together, together)

    def done(self):
        self.ended.set()
        self.watcher.join()
        self.look()
        kinds = collections.Counter()
        for kind, seconds in self.threads.values():
            kinds[kind] += seconds
        return {
            "peak": self.together + sum(max(0, peak - self.resident[pid]) for pid, peak in self.peak.items()),
            "anonymous": sum(self.anonymous.values()),
            "threads": {kind: round(seconds, 2) for kind, seconds in kinds.most_common()},
        }
