"""The images of the benchmark: generated files over a small Debian base, as OCI layouts, plain and converted.

Made once and kept in the bed's cache; what is generated is the same on every machine (seeded).
"""

import hashlib
import io
import json
import os
import random
import subprocess
import tarfile

BED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bed")
WHEN = 1_700_000_000
BASE = {
    "packages": ["coreutils", "dash", "findutils"],
    "files": {"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n"},
}
WORDS = [bytes(random.Random(1).choices(b"abcdefghijklmnopqrstuvwxyz", k=2 + n % 9)) for n in range(4000)]


class Tree:
    """A layer's tar, written as its files are made."""

    def __init__(self, path):
        self.tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)
        self.random = random.Random(path.rsplit("/", 1)[-1])

    def close(self):
        self.tar.close()

    def folder(self, name):
        self.add(name, tarfile.DIRTYPE, 0o755)

    def file(self, name, content, xattrs=None):
        self.add(name, tarfile.REGTYPE, 0o644, content, xattrs)

    def add(self, name, kind, mode, content=b"", xattrs=None):
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.mtime, info.size = kind, mode, WHEN, len(content)
        info.pax_headers = {"SCHILY.xattr." + k: v for k, v in (xattrs or {}).items()}
        self.tar.addfile(info, io.BytesIO(content))

    def text(self, size):
        """Words: what compresses about as source code does."""
        words = self.random.choices(WORDS, k=size // 5 + 2)
        return b" ".join(words)[:size].ljust(size)


def half_random(tree, name, megabytes):
    """One file, every second MiB of it noise."""
    pieces = (tree.random.randbytes(1 << 20) if n % 2 else tree.text(1 << 20) for n in range(megabytes))
    tree.file(name, b"".join(pieces))


def small_files(tree, top, count, xattrs=None):
    """Files of 50 to 3,000 bytes, 300 in a folder."""
    tree.folder(top)
    for n in range(count):
        if n % 300 == 0:
            tree.folder(f"{top}/d{n // 300:03}")
        size = tree.random.randint(50, 3000)
        content = tree.text(size) if n % 2 else tree.random.randbytes(size)
        tree.file(f"{top}/d{n // 300:03}/f{n:05}", content, xattrs)


def tiny_files(tree, top, count):
    """Files of 13 bytes, 500 in a folder."""
    tree.folder(top)
    for n in range(count):
        if n % 500 == 0:
            tree.folder(f"{top}/d{n // 500:04}")
        tree.file(f"{top}/d{n // 500:04}/f{n:06}", b"%012d\n" % n)


def micro(tree):
    small_files(tree, "plain", 30_000)
    half_random(tree, "big", 1000)


def said(command):
    return {"Entrypoint": ["sh", "-c", command + " && echo done"], "Env": ["PATH=/usr/bin:/bin"]}


# name: (layers on top of the base, configuration)
MADE = {
    "big": ([lambda tree: half_random(tree, "file", 800)], said("cat /file > /dev/null")),
    "small": (
        [lambda tree: small_files(tree, "tree", 45_000)],
        said("find /tree -type f -print0 | xargs -0 cat > /dev/null"),
    ),
    "tiny": ([lambda tree: tiny_files(tree, "tree", 500_000)], said("find /tree | wc -l")),
    "micro": (
        [micro, lambda tree: small_files(tree, "attributed", 30_000, {"user.origin": "bench"})],
        said("true"),
    ),
    "trial": ([lambda tree: small_files(tree, "tree", 300)], said("cat /tree/*/* > /dev/null")),
}
NAMES = ["python", "big", "small", "tiny", "micro", "trial"]


def layout(name, cache, say):
    """The folder of the image's plain OCI layout."""
    if name == "python":
        made = subprocess.run([f"{BED}/image.sh", "numpy"], check=True, stdout=subprocess.PIPE, text=True)
        return made.stdout.strip()
    with open(os.path.abspath(__file__), "rb") as code:
        key = hashlib.sha256(code.read()).hexdigest()[:12]
    out = os.path.join(cache, "bench", f"{name}-{key}")
    if not os.path.exists(f"{out}/index.json"):
        say(f"making the image {name}")
        build(name, out, cache)
    return out


def build(name, out, cache):
    layers, config = MADE[name]
    os.makedirs(out, exist_ok=True)
    specs = [BASE]
    for number, fill in enumerate(layers):
        path = f"{out}.{number}.tar"
        tree = Tree(path)
        fill(tree)
        tree.close()
        specs.append({"tar": path})
    spec = f"{out}.json"
    with open(spec, "w", encoding="utf-8") as file:
        json.dump({"layers": specs, "config": config}, file)
    subprocess.run(["/usr/bin/python3", f"{BED}/mkimage.py", "--cache", cache, spec, out], check=True)
    for number in range(len(layers)):
        os.remove(f"{out}.{number}.tar")


def converted(crfs, plain, profile=None):
    """The folder of the layout that `crfs convert` makes of `plain`: always anew, it is what is measured."""
    out = f"{plain}.lazy{'-profile' if profile else ''}"
    subprocess.run(["rm", "-rf", out], check=True)
    more = ["--prefetch", profile] if profile else []
    subprocess.run([crfs, "convert", *more, f"oci:{plain}:latest", f"oci:{out}:latest"], check=True, capture_output=True)
    return out
