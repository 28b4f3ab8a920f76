#!/usr/bin/python3
"""Builds an OCI image layout from Debian packages, files and tar files, without a container engine.

    mkimage.py SPEC.json OUT [--cache FOLDER]      OUT is an OCI layout: use it as oci:OUT:TAG

SPEC describes the layers from the bottom up; see images/*.json. Each layer may have

    "packages": [...]     Debian packages with everything they depend on, less what lower layers have; apt fetches and
                          verifies them. "?essential" is what every Debian has. No maintainer script runs: what it
                          would have made is said by files, links and run.
    "files": {path: text}, "links": {path: target}
    "run": [[command, argument...], ...]     in a chroot of the layers so far; what it made or changed is the layer
    "tar": "file.tar"     a layer made elsewhere, taken byte for byte; alone in its layer
    "exclude": ["usr/share/doc/", ...]       prefixes of package files to leave out

and "tag" (default latest), "config" (of the image), "media" ("oci", default, or "docker"). "{triplet}" stands
for the name that Debian gives the folders of this machine's kind. The same input gives the same bytes.
"""

import argparse
import concurrent.futures
import gzip
import hashlib
import io
import json
import os
import platform
import subprocess
import tarfile
import tempfile

import packages

WHEN = 1_700_000_000  # the time of everything that has none of its own
MEDIA = {
    "oci": {
        "layer": "application/vnd.oci.image.layer.v1.tar+gzip",
        "config": "application/vnd.oci.image.config.v1+json",
        "manifest": "application/vnd.oci.image.manifest.v1+json",
    },
    "docker": {
        "layer": "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "config": "application/vnd.docker.container.image.v1+json",
        "manifest": "application/vnd.docker.distribution.manifest.v2+json",
    },
}
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


class Tree:
    """The layers so far, unpacked: what `run` works in."""

    def __init__(self, folder):
        self.folder = folder

    def unpack(self, tar):
        subprocess.run(["tar", "-C", self.folder, "--xattrs", "--numeric-owner", "-xpf", tar], check=True)

    def state(self):
        found = {}
        for folder, folders, files in os.walk(self.folder):
            for name in folders + files:
                path = os.path.join(folder, name)
                s = os.lstat(path)
                found[os.path.relpath(path, self.folder)] = (s.st_mode, s.st_ino, s.st_size, s.st_mtime_ns)
        return found

    def run(self, commands, out):
        """Runs the commands and adds what they made, changed and removed to the tar file `out`."""
        before = self.state()
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        for command in commands:
            inside = ["chroot", self.folder, "env", "-i", path, "LC_ALL=C.UTF-8", "PYTHONHASHSEED=0"]
            subprocess.run(inside + command, check=True, stdin=subprocess.DEVNULL)
        after = self.state()
        for name in sorted(after):
            is_folder = os.path.isdir(os.path.join(self.folder, name))
            if after[name] != before.get(name) and not (is_folder and name in before):
                info = out.gettarinfo(os.path.join(self.folder, name), name)
                info.mtime, info.uname, info.gname = WHEN, "", ""
                with open(os.path.join(self.folder, name), "rb") if info.isreg() else io.BytesIO() as data:
                    out.addfile(info, data)
        for name in sorted(before.keys() - after.keys()):
            if os.path.dirname(name) in after or os.path.dirname(name) == "":
                folder, base = os.path.split(name)
                add_file(out, os.path.join(folder, ".wh." + base), b"")


def add_file(out, name, data, mode=0o644):
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), WHEN, mode
    out.addfile(info, io.BytesIO(data))


def add_parents(out, names):
    """The folders above `names`, unless the layers below have them anyway (usr, etc and so on)."""
    parents = {os.path.dirname(n) for n in names} - {"", "etc", "usr", "var", "tmp", "root"}
    for name in sorted(parents):
        if not name.startswith("usr/"):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, WHEN
            out.addfile(info)


def write_layer(layer, number, path, tree, debs):
    """Writes one layer as a plain tar file."""
    if "tar" in layer:
        subprocess.run(["cp", layer["tar"], path], check=True)
        if tree:
            tree.unpack(path)
        return
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as out:
        if debs:
            packages.add(out, debs, first=number == 0, exclude=tuple(layer.get("exclude", ())))
        files, links = layer.get("files", {}), layer.get("links", {})
        add_parents(out, [*files, *links])
        for name in sorted(files):
            add_file(out, name, files[name].encode())
        for name in sorted(links):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode, info.mtime = tarfile.SYMTYPE, links[name], 0o777, WHEN
            out.addfile(info)
    if tree:
        tree.unpack(path)
    if "run" in layer:
        with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as out:
            tree.run(layer["run"], out)


class Layout:
    """An OCI layout in the making."""

    def __init__(self, folder):
        self.folder = folder
        os.makedirs(os.path.join(folder, "blobs", "sha256"))

    def add(self, data, media):
        digest = hashlib.sha256(data).hexdigest()
        with open(os.path.join(self.folder, "blobs", "sha256", digest), "wb") as out:
            out.write(data)
        return {"mediaType": media, "digest": "sha256:" + digest, "size": len(data)}

    def add_layer(self, tar, media):
        """Compresses a tar file; gives the descriptor and the digest of what is in it."""
        with open(tar, "rb") as plain:
            data = plain.read()
        packed = gzip.compress(data, compresslevel=6, mtime=0)
        return self.add(packed, media), "sha256:" + hashlib.sha256(data).hexdigest()

    def finish(self, manifest, tag):
        manifest = {**manifest, "annotations": {"org.opencontainers.image.ref.name": tag}}
        for name, value in (
            ("index.json", {"schemaVersion": 2, "manifests": [manifest]}),
            ("oci-layout", {"imageLayoutVersion": "1.0.0"}),
        ):
            with open(os.path.join(self.folder, name), "w", encoding="utf-8") as out:
                json.dump(value, out)


def build(spec, out, cache):
    media = MEDIA[spec.get("media", "oci")]
    needs_tree = any("run" in layer for layer in spec["layers"])
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(out))) as scratch:
        tree = None
        if needs_tree:
            tree = Tree(os.path.join(scratch, "tree"))
            os.mkdir(tree.folder)
        layout = Layout(os.path.join(scratch, "layout"))
        closures = packages.Closures(cache)
        # gzip gives up the interpreter's lock: one layer is compressed while the next one is made.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            packed = []
            for number, layer in enumerate(spec["layers"]):
                path = os.path.join(scratch, f"{number}.tar")
                write_layer(layer, number, path, tree, closures.add(layer.get("packages", [])))
                packed.append(pool.submit(layout.add_layer, path, media["layer"]))
            packed = [p.result() for p in packed]
        config = {
            "created": "2023-11-14T22:13:20Z",
            "architecture": ARCHITECTURE,
            "os": "linux",
            "config": spec.get("config", {}),
            "rootfs": {"type": "layers", "diff_ids": [diff for _, diff in packed]},
            "history": [{"created_by": json.dumps(layer)[:200]} for layer in spec["layers"]],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": media["manifest"],
            "config": layout.add(json.dumps(config).encode(), media["config"]),
            "layers": [descriptor for descriptor, _ in packed],
        }
        descriptor = layout.add(json.dumps(manifest).encode(), media["manifest"])
        descriptor["platform"] = {"architecture": ARCHITECTURE, "os": "linux"}
        layout.finish(descriptor, spec.get("tag", "latest"))
        os.rename(layout.folder, out)


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("spec")
    args.add_argument("out")
    args.add_argument("--cache", default=os.environ.get("CRFS_BED_CACHE", "/var/cache/crfs-bed"))
    args = args.parse_args()
    with open(args.spec, encoding="utf-8") as spec:
        text = spec.read().replace("{triplet}", platform.machine() + "-linux-gnu")
    build(json.loads(text), args.out, args.cache)


if __name__ == "__main__":
    main()
