#!/usr/bin/python3
"""append.py LAYOUT OUT COUNT: the image of an OCI layout with COUNT more layers on top, as a layout of its own.

Layer N holds the files /data/N/0 to /data/N/7, of up to 200 kB. The same input gives the same bytes.
"""

import gzip
import hashlib
import io
import json
import os
import random
import sys
import tarfile

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


def layer(number):
    dice = random.Random(number)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for file in range(8):
            entry = tarfile.TarInfo(f"data/{number}/{file}")
            content = dice.randbytes(dice.randrange(50_000)) * 4
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


class Layout:
    def __init__(self, source, out):
        self.source, self.blobs = source, os.path.join(out, "blobs/sha256")
        os.makedirs(self.blobs)
        for name in os.listdir(os.path.join(source, "blobs/sha256")):
            os.symlink(os.path.join(source, "blobs/sha256", name), os.path.join(self.blobs, name))

    def read(self, descriptor):
        with open(os.path.join(self.blobs, descriptor["digest"].partition(":")[2]), "rb") as file:
            return json.load(file)

    def write(self, content, descriptor):
        digest = hashlib.sha256(content).hexdigest()
        with open(os.path.join(self.blobs, digest), "wb") as file:
            file.write(content)
        return {**descriptor, "digest": f"sha256:{digest}", "size": len(content)}


def main():
    source, out, count = os.path.realpath(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    layout = Layout(source, out)
    with open(os.path.join(source, "index.json")) as file:
        index = json.load(file)
    manifest = layout.read(index["manifests"][0])
    config = layout.read(manifest["config"])
    config.pop("history", None)
    for number in range(count):
        tar = layer(number)
        config["rootfs"]["diff_ids"].append(f"sha256:{hashlib.sha256(tar).hexdigest()}")
        manifest["layers"].append(layout.write(gzip.compress(tar, 1, mtime=0), {"mediaType": GZIP}))
    manifest["config"] = layout.write(json.dumps(config).encode(), manifest["config"])
    index["manifests"] = [layout.write(json.dumps(manifest).encode(), index["manifests"][0])]
    with open(os.path.join(out, "index.json"), "w") as file:
        json.dump(index, file)
    with open(os.path.join(out, "oci-layout"), "w") as file:
        json.dump({"imageLayoutVersion": "1.0.0"}, file)


main()
