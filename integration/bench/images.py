"""The images that are measured: what each holds, what its container does, and how it comes to be."""

import dataclasses
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile

HERE = os.path.dirname(os.path.abspath(__file__))
BED = os.path.join(os.path.dirname(HERE), "bed")
WHEN = 1_700_000_000
MIB = 1 << 20
# A shell, cat, find and xargs as Debian has them: what the made files are read with.
BASE = {
    "packages": ["?essential"],
    "exclude": ["usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/perl/", "usr/lib/{triplet}/perl/"],
    "files": {
        "etc/passwd": "root:x:0:0:root:/root:/bin/bash\n",
        "etc/group": "root:x:0:\n",
    },
}


@dataclasses.dataclass(frozen=True)
class Image:
    """`command` runs in the container and prints one line when it is done; empty is the image's own."""

    name: str
    about: str
    command: tuple
    write: object = None  # writes the entries of the second layer into a tar file; None: described by bed/images
    own: str = ""
    profile: bool = False  # whether it is also measured with a profile that an earlier start recorded


def entry(out, name, data, attributes=False):
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), WHEN, 0o644
    if attributes:
        info.pax_headers = {"SCHILY.xattr.user.bench": "1"}
    out.addfile(info, io.BytesIO(data))


def folder(out, name):
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, WHEN
    out.addfile(info)


def words(chance, size):
    """Text that packs as well as a log does: a few dozen messages, each time with another number."""
    letters = b"abcdefghijklmnopqrstuvwxyz     "
    messages = [bytes(chance.choices(letters, k=chance.randint(60, 140))) for _ in range(64)]
    pieces, have = [], 0
    while have < size:
        piece = b"%s %04d\n" % (chance.choice(messages), chance.randrange(10_000))
        pieces.append(piece)
        have += len(piece)
    return b"".join(pieces)[:size]


class Mixed(io.RawIOBase):
    """A large file, a mebibyte of noise and a mebibyte of text in turn, made as it is read."""

    def __init__(self, size):
        super().__init__()
        self.chance, self.left, self.turn, self.have = random.Random(1), size, 0, b""
        self.text = words(self.chance, 16 * MIB)

    def read(self, size=-1):
        while len(self.have) < size and self.left:
            piece = self.noise() if self.turn % 2 == 0 else self.some_text()
            self.turn += 1
            piece = piece[: self.left]
            self.left -= len(piece)
            self.have += piece
        piece, self.have = self.have[:size], self.have[size:]
        return piece

    def noise(self):
        return self.chance.randbytes(MIB)

    def some_text(self):
        start = self.chance.randrange(15 * MIB)
        return self.text[start : start + MIB]


def big(size):
    def write(out):
        folder(out, "data")
        info = tarfile.TarInfo("data/big")
        info.size, info.mtime, info.mode = size, WHEN, 0o644
        out.addfile(info, Mixed(size))

    return write


def small(count, attributes=False):
    """Files of 50 to 3,000 random bytes."""

    def write(out):
        chance = random.Random(2)
        folder(out, "data")
        for number in range(count):
            if number % 100 == 0:
                folder(out, f"data/{number // 100:04}")
            data = chance.randbytes(chance.randint(50, 3000))
            entry(out, f"data/{number // 100:04}/{number:06}", data, attributes)

    return write


def tiny(count):
    """Files of 13 bytes."""

    def write(out):
        folder(out, "data")
        for number in range(count):
            if number % 1000 == 0:
                folder(out, f"data/{number // 1000:04}")
            entry(out, f"data/{number // 1000:04}/{number:06}", b"%012d\n" % number)

    return write


CAT_ALL = ("sh", "-c", "find /data -type f -print0 | xargs -0 cat | wc -c")
FIND = ("sh", "-c", "find /data | wc -l")

IMAGES = {
    image.name: image
    for image in (
        Image("python", "Python imports numpy and prints a result", (), own="numpy", profile=True),
        Image("big", "one file of 800 MB, half of it random, read once", ("sh", "-c", "cat /data/big | wc -c"), big(800_000_000)),
        Image("small", "45,000 files of 50 to 3,000 bytes, each read once", CAT_ALL, small(45_000)),
        Image("tiny", "500,000 files of 13 bytes in one layer, one find", FIND, tiny(500_000)),
        Image("attributes", "30,000 small files with an extended attribute each", CAT_ALL, small(30_000, True)),
        Image("smoke", "200 small files, to try this benchmark itself", CAT_ALL, small(200)),
    )
}


def named(name):
    """One of these images, or one that whoever measures has brought: it starts what its config names."""
    return IMAGES.get(name) or Image(name, "an image of your own", (), profile=True)


def build(image, cache):
    """Makes the image's OCI layout, once for all runs, and gives its folder."""
    if image.own:
        done = subprocess.run([os.path.join(BED, "image.sh"), image.own], stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.strip()
    sources = [os.path.abspath(__file__), os.path.join(BED, "mkimage.py"), os.path.join(BED, "packages.py")]
    key = hashlib.sha256(b"".join(open(source, "rb").read() for source in sources)).hexdigest()[:12]
    out = os.path.join(cache, "images", f"bench-{image.name}-{key}")
    if os.path.exists(os.path.join(out, "index.json")):
        return out
    os.makedirs(os.path.dirname(out), exist_ok=True)
    for old in os.listdir(os.path.dirname(out)):
        if old.startswith(f"bench-{image.name}-"):
            shutil.rmtree(os.path.join(os.path.dirname(out), old))
    print(f"   making the image {image.name}", file=sys.stderr, flush=True)
    scratch = out + ".part"
    os.makedirs(scratch)
    try:
        with tarfile.open(os.path.join(scratch, "data.tar"), "w", format=tarfile.PAX_FORMAT) as tar:
            image.write(tar)
        spec = {"about": image.about, "layers": [BASE, {"tar": os.path.join(scratch, "data.tar")}]}
        with open(os.path.join(scratch, "spec.json"), "w", encoding="utf-8") as file:
            json.dump(spec, file)
        made = os.path.join(scratch, "layout")
        subprocess.run(
            [sys.executable, os.path.join(BED, "mkimage.py"), "--cache", cache, file.name, made], check=True, timeout=600
        )
        os.rename(made, out)
    finally:
        shutil.rmtree(scratch)
    return out
