"""Debian packages as image layers: what a package needs, fetched and verified by apt, and written as tar entries."""

import os
import posixpath
import re
import subprocess
import tarfile

# Debian's packages still name files by the folders that became links into usr.
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


class Closures:
    """Asks apt, as on a machine where nothing is installed, for packages and all that they depend on."""

    def __init__(self, cache):
        self.archives = os.path.join(cache, "archives")
        # What is fetched already is not listed by --print-uris: the list is made against an empty folder.
        self.nothing = os.path.join(cache, "no-archives")
        self.empty = os.path.join(cache, "no-status")
        self.asked, self.have = [], set()

    def add(self, names):
        """The .deb files that `names` need beyond what was asked for before, in the order of installation."""
        if not names:
            return []
        for folder in (self.archives, self.nothing):
            os.makedirs(os.path.join(folder, "partial"), exist_ok=True)
        open(self.empty, "w", encoding="utf-8").close()
        self.asked += names
        uris = self.apt(self.nothing, "--print-uris", *self.asked).stdout
        files = dict(re.findall(r"^'([^']+)' (\S+) \d+", uris, re.MULTILINE))
        new = [name for name in files.values() if name not in self.have]
        self.have.update(new)
        if not all(os.path.exists(os.path.join(self.archives, name)) for name in new):
            self.apt(self.archives, "--download-only", *self.asked)
        return [os.path.join(self.archives, name) for name in sorted(new)]

    def apt(self, archives, *words):
        options = (
            f"Dir::State::status={self.empty}",
            f"Dir::Cache::archives={archives}",
            "APT::Install-Recommends=0",
            "APT::Sandbox::User=root",
            "APT::Keep-Downloaded-Packages=1",
            "Debug::NoLocking=1",
            "Acquire::Retries=3",
        )
        command = ["apt-get", "-qq", "-y"] + [w for o in options for w in ("-o", o)] + ["install", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise SystemExit(f"apt-get cannot get {' '.join(words)}:\n{done.stderr}")
        return done


def add(out, debs, first, exclude):
    """Adds the files of the packages to the tar file `out`; the first layer also gets the links into usr."""
    folders = set()
    if first:
        for name in MERGED:
            if name.startswith("lib") and name not in ("lib", "lib64"):
                continue
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = tarfile.SYMTYPE, "usr/" + name, 0o777
            out.addfile(info)
    for deb in debs:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as dpkg:
            with tarfile.open(fileobj=dpkg.stdout, mode="r|") as files:
                for info in files:
                    name = info.name.removeprefix("./").rstrip("/")
                    if name in ("", ".") or name in MERGED or (name + "/").startswith(exclude or ("\0",)):
                        continue
                    move(info, name)
                    if info.isdir():
                        if info.name in folders:
                            continue
                        folders.add(info.name)
                    out.addfile(info, files.extractfile(info) if info.isreg() else None)
        if dpkg.returncode:
            raise SystemExit(f"dpkg-deb cannot read {deb}")


def move(info, name):
    """Gives an entry its name under usr."""
    top = name.split("/")[0]
    if top in MERGED and info.issym() and info.linkname.startswith("../"):
        info.linkname = posixpath.normpath(posixpath.join("/", posixpath.dirname(name), info.linkname))
    info.name = merged(name)
    if info.islnk():
        info.linkname = merged(info.linkname.removeprefix("./"))
    info.pax_headers = {}


def merged(name):
    return "usr/" + name if name.split("/")[0] in MERGED else name
