"""survive.py list FOLDER            writes the checksum of every file under PATHS to FOLDER/known
survive.py read FOLDER NAME [once]   reads and verifies them in a loop until FOLDER/stop exists, or each once

Runs in a container, of a known image and of the one under test. A reader writes its report as JSON to FOLDER/NAME at the end:
how many operations, which failed or were wrong, and the longest that one system call or one MiB of a mapping took, in
milliseconds: a file read in pieces may meet several restarts, one piece only one.
"""

import hashlib
import json
import mmap
import os
import random
import subprocess
import sys
import time

PATHS = ["/usr/lib/python3", "/usr/lib/python3.13", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/bin", "/app", "/data"]


def files():
    for top in PATHS:
        for folder, _, names in os.walk(top):
            for name in names:
                path = os.path.join(folder, name)
                if os.path.isfile(path) and not os.path.islink(path):
                    yield path


PIECE = 1 << 20
REPORT = {"reads": 0, "bad": [], "worst_ms": 0, "worst": ""}


def timed(what, call):
    start = time.monotonic()
    try:
        return call()
    finally:
        took = int((time.monotonic() - start) * 1000)
        if took > REPORT["worst_ms"]:
            REPORT.update(worst_ms=took, worst=what)


def checksum(data):
    return hashlib.sha256(data).hexdigest()


def by_read(path):
    """From the file system, not from the page cache."""
    fd = timed(f"open {path}", lambda: os.open(path, os.O_RDONLY))
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        parts = []
        while part := timed(f"read {path}", lambda: os.read(fd, PIECE)):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def by_map(path):
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            pieces = range(0, len(view), PIECE)
            return b"".join(timed(f"map {path}", lambda: view[at : at + PIECE]) for at in pieces)


class Reader:
    def __init__(self, known):
        self.known, self.numbers = known, {}

    def attempt(self, what, action):
        try:
            if not action():
                REPORT["bad"].append(f"wrong: {what}")
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            REPORT["bad"].append(f"{what}: {error}")
        REPORT["reads"] += 1

    def number(self, path):
        """As overlayfs shows it, which is that of the layer for all but folders."""
        return timed(f"stat {path}", lambda: os.stat(path)).st_ino

    def file(self, path, number):
        read = by_map if number % 4 == 3 else by_read
        self.attempt(f"{read.__name__} {path}", lambda: checksum(read(path)) == self.known[path])
        self.attempt(f"inode number of {path}", lambda: self.number(path) == self.numbers.setdefault(path, self.number(path)))
        if number % 8 == 0:
            folder, name = os.path.split(path)
            self.attempt(f"readdir {folder}", lambda: name in timed(f"readdir {folder}", lambda: os.listdir(folder)))
        if number % 40 == 0:
            self.attempt("exec", lambda: timed("exec", lambda: subprocess.run(["/bin/true"], timeout=60)).returncode == 0)


def read_until(folder, reader):
    paths = sorted(reader.known)
    held = max(paths, key=lambda path: os.stat(path).st_size)
    content = by_read(held)
    reader.attempt(f"first read of {held}", lambda: checksum(content) == reader.known[held])
    open_file = os.open(held, os.O_RDONLY)
    # What came from the registry does not count.
    REPORT.update(worst_ms=0, worst="")
    open(os.path.join(folder, "begun"), "a").close()
    number = 0
    while not os.path.exists(os.path.join(folder, "stop")):
        number += 1
        reader.file(random.choice(paths), number)
        if number % 3 == 0:
            at = random.randrange(max(1, len(content) - 65536))
            os.posix_fadvise(open_file, 0, 0, os.POSIX_FADV_DONTNEED)
            reader.attempt("an open file", lambda: timed("an open file", lambda: os.pread(open_file, 65536, at)) == content[at : at + 65536])


def main():
    mode, folder = sys.argv[1:3]
    if mode == "list":
        with open(os.path.join(folder, "known"), "w") as out:
            json.dump({path: checksum(by_read(path)) for path in files()}, out)
        return
    with open(os.path.join(folder, "known")) as file:
        reader = Reader(json.load(file))
    if "once" in sys.argv:
        for number, path in enumerate(sorted(reader.known)):
            reader.file(path, number)
    else:
        read_until(folder, reader)
    with open(os.path.join(folder, sys.argv[3]), "w") as out:
        json.dump(REPORT, out)


main()
