"""A file system of its own for each node: the same ext4 each time, new, and gone at once afterwards.

On the machine's own, removing half a million files after a run takes minutes (an hour where it is mounted with `discard`), and
each run would find it fuller and more scattered than the one before.
"""

import contextlib
import os
import shutil
import subprocess
import time

from node import run

SIZE = 16 << 30  # of a file with holes: only what is written takes room


@contextlib.contextmanager
def fresh(folder):
    """Mounts a new file system on `folder`; without loop devices it is an ordinary folder."""
    os.makedirs(folder)
    image = folder + ".ext4"
    with open(image, "wb") as file:
        file.truncate(SIZE)
    mounted = False
    try:
        run(["mkfs.ext4", "-q", "-F", "-i", "8192", "-E", "nodiscard,lazy_itable_init=1", image])
        mounted = mount(image, folder)
        os.sync()  # what is left to be written from before is not this run's
        yield folder
    finally:
        if mounted:
            unmount(folder)
        os.unlink(image)
        shutil.rmtree(folder, ignore_errors=True)


def mount(image, folder):
    command = ["mount", "-o", "loop,noinit_itable", image, folder]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


def unmount(folder):
    for _ in range(50):
        if subprocess.run(["umount", folder], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "--lazy", folder], check=False)
