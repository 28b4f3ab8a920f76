"""A cold start: from nothing to the end of the workload's output, and a second container after it."""

import dataclasses
import os
import subprocess
import threading
import time

import disk
from node import Failed, Node
from usage import Usage
from where import Sampler

LIMIT = 900


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to start the image: by which snapshotter, from which tag, with which configuration of crfs."""

    name: str
    snapshotter: str
    tag: str
    config: str = ""
    knows: bool = False  # whether the node has started the image before: it has its profile, and nothing else of it
    server: str = ""  # the command of another snapshotter in crfs's place; {config}, {root} and {socket} are filled in
    settings: object = None  # gives that one's configuration for a registry and the folder of a node

    def configured(self, registry, folder):
        """The text of the snapshotter's configuration file."""
        if self.settings:
            return self.settings(registry, folder)
        return f'{self.config}[registry]\nplain_http = ["{registry.address}"]\n'


OVERLAYFS = Way("overlayfs", "overlayfs", "plain")
CRFS = Way("crfs", "crfs", "lazy")
LEAN = Way("crfs, background off", "crfs", "lazy", "[fetch]\nbackground = false\n")
PROFILED = Way("crfs, with profile", "crfs", "profiled")
KNOWING = Way("crfs, started here before", "crfs", "lazy", knows=True)


def seconds_until_output(command):
    """Runs a container; gives its output, and when the last of it came."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    limit = threading.Timer(LIMIT, child.kill)
    limit.start()
    errors = []
    reader = threading.Thread(target=lambda: errors.append(child.stderr.read()))
    reader.start()
    started, last, output = time.monotonic(), None, b""
    while piece := os.read(child.stdout.fileno(), 65536):
        output, last = output + piece, time.monotonic()
    reader.join()
    limit.cancel()
    if child.wait() or last is None:
        raise Failed(f"{' '.join(command)}: status {child.returncode}\n{errors[0].decode(errors='replace')[-2000:]}")
    return output.decode(errors="replace").strip(), last - started


def read(file):
    with open(file, encoding="utf-8", errors="replace") as text:
        return text.read()


def cold_start(folder, registry, image, way, inspect=None, sample=None, profiles=None):
    """One run of one way on a node of its own.

    `inspect(node)` is called before the node ends; `sample` is a file for a profile of crfs's stacks; `profiles` is the folder
    of start profiles of another node, for a way that knows the image.
    """
    reference = f"{registry.address}/bench/{image.name}:{way.tag}"
    lazy = way.snapshotter == "crfs"
    with disk.fresh(folder):
        try:
            known = profiles if way.knows else None
            with Node(folder, way.configured(registry, folder), crfs=lazy, profiles=known, server=way.server) as node:
                times = timed(node, registry, reference, image.command, way, sample)
                if inspect:
                    inspect(node)
        except Failed as failure:
            log = os.path.join(folder, "node", "logs", "crfs.log")
            tail = read(log)[-3000:] if os.path.exists(log) else ""
            raise Failed(f"{failure}\n{tail}") from failure
    return {"image": image.name, "way": way.name, **times}


def lazy_layers(node):
    """How many file systems the snapshotter serves. None means that it has fallen back to unpacking, which is not what is measured."""
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        fields = [line.split() for line in mounts]
    below = [f for f in fields if f[4].startswith(node.values["CRFS_ROOT"] + "/") and f[f.index("-") + 1].startswith("fuse")]
    if not below:
        raise Failed("no layer is lazy: the snapshotter has had all of them unpacked")
    return len(below)


def timed(node, registry, reference, command, way, sample):
    """Pull, run and a second container on a node that is up."""
    lazy = way.snapshotter == "crfs"
    usage = Usage(int(node.values["CRFS_PID"]), node.values["CRFS_ROOT"]) if lazy else None
    sampler = Sampler(int(node.values["CRFS_PID"]), node.values["CRFS_ROOT"], sample) if sample else None
    registry.reset()
    started = time.monotonic()
    node.ctr("image", "pull", "--plain-http", "--snapshotter", way.snapshotter, reference)
    pulled = time.monotonic() - started
    said, ran = seconds_until_output(node.start(way.snapshotter, reference, command))
    amount, requests = registry.counts()
    used = usage.done() if usage else {}
    if lazy:
        used["lazy"] = lazy_layers(node)
        used["cpu"] = sum(used["threads"].values())
        if way.server:
            del used["threads"]  # they have no names that say what they do
    if sampler:
        used["jobs"] = sampler.done()
    again, second = seconds_until_output(node.start(way.snapshotter, reference, command))
    if said != again:
        raise Failed(f"{way.name}: the second container said {again!r}, the first {said!r}")
    return {
        "total": pulled + ran, "pull": pulled, "run": ran, "second": second,
        "bytes": amount, "requests": requests, "said": said, **used,
    }
