"""Where crfs's CPU seconds go: a sampled profile of one cold start, each sample given to one job.

`perf record` takes the stack of every thread a thousand times per CPU second. In the kernel the whole chain of calls is known
and says for whom the kernel works; outside it the innermost function decides. The run that is sampled is an extra one, so that
sampling slows none of those that are compared.
"""

import collections
import os
import re
import shutil
import signal
import subprocess

from usage import crfs

RATE = 999
IN_KERNEL = (
    ("FUSE", r"\bfuse_"),
    ("network", r"tcp_|inet6?_|sock_|__sys_(recv|send)|net_rx|skb_|__dev_queue|tun_"),
    ("memory", r"page_fault|do_user_addr_fault|mmap|munmap|madvise|brk"),
    ("cache", r"ext4_|xfs_|btrfs_|vfs_|filemap|do_sys_open|fsync|rename|unlink|ftruncate|fallocate|shmem_"),
    ("threads", r"futex|schedule|epoll|eventfd|clone|exit"),
)
OUTSIDE = (
    ("inflate", r"inflate|zng|zlib|chunkmemset|chunkcopy|flate2|crc32|adler"),
    ("hash", r"sha2|sha256|sha512"),
    ("FUSE", r"crfs::fs|fuser"),
    ("network", r"hyper|reqwest|rustls|h2::|http|httparse|crfs::registry|tonic"),
    ("cache", r"crfs::blob|crfs::store|sled"),
    ("memory", r"memcpy|memmove|memset|malloc|free|realloc|calloc"),
    ("index", r"crfs::stargz|serde|crfs::layer|base64"),
    ("threads", r"tokio|parking_lot|pthread|std::sync|std::thread"),
)
JOBS = ("inflate", "hash", "FUSE", "cache", "network", "index", "memory", "threads", "other")


def available():
    return shutil.which("perf") is not None


class Sampler:
    """Samples a process and those it started, until `done`."""

    def __init__(self, started, root, file):
        self.file = file
        self.perf = subprocess.Popen(
            ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(RATE), "-g", "-o", file, "-p", ",".join(map(str, crfs(started, root)))],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )

    def done(self):
        """Seconds of each job."""
        self.perf.send_signal(signal.SIGINT)
        self.perf.wait()
        if not os.path.exists(self.file):
            return {}
        shown = subprocess.run(
            ["perf", "script", "-i", self.file, "--no-inline", "-F", "comm,ip,sym,dso"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
        )
        seconds = collections.Counter({job: 0 for job in JOBS})
        for sample in shown.stdout.split("\n\n"):
            frames = sample.strip().splitlines()[1:]
            if frames:
                seconds[job_of(frames)] += 1 / RATE
        return {job: round(seconds[job], 3) for job in JOBS}


def job_of(frames):
    """`frames` are lines `ADDRESS SYMBOL (FILE)`, the innermost first."""
    kernel = [frame for frame in frames if "kernel.kallsyms" in frame or "[kernel" in frame or frame.endswith(".ko)")]
    table, text = (IN_KERNEL, "\n".join(kernel)) if kernel else (OUTSIDE, frames[0])
    for job, pattern in table:
        if re.search(pattern, text):
            return job
    return "other"
