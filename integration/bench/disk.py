"""A file system of its own for each node: the same ext4 each time, new, and gone at once afterwards.

It is a file on the machine's disk, read and written without the page cache in between, so what the disk costs is still paid. On
the machine's own file system, removing half a million files after a run takes minutes (an hour where it is mounted with
`discard`), and each run would find it fuller and more scattered than the one before. CRFS_BENCH_DISK=host uses that nevertheless.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time

from node import run

SIZE = 8 << 30  # of a file with holes: only what is written takes room


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
    """Whether that worked: a container may have no loop devices."""
    if os.environ.get("CRFS_BENCH_DISK") == "host":
        return False
    loop = ["losetup", "--find", "--show", "--direct-io=on", image]
    done = subprocess.run(loop, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        print("   no loop device: measuring on the machine's own file system", file=sys.stderr)
        return False
    device = done.stdout.strip()
    try:
        run(["mount", "-o", "noinit_itable", device, folder])
    finally:
        subprocess.run(["losetup", "--detach", device], check=False)  # from here on the mount alone keeps it
    return True


def unmount(folder):
    for _ in range(50):
        if subprocess.run(["umount", folder], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "--lazy", folder], check=False)
