#!/usr/bin/python3
"""Pushes an OCI layout to a registry over plain HTTP, byte for byte.

    push.py LAYOUT[:TAG] HOST:PORT/NAME:TAG        prints the digest of the manifest
"""

import http.client
import json
import os
import sys

WHOLE = "application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"


class Push:
    def __init__(self, layout, host, name):
        self.layout, self.name = layout, name
        self.registry = http.client.HTTPConnection(host, timeout=120)

    def blob(self, digest):
        return os.path.join(self.layout, "blobs", *digest.split(":"))

    def call(self, method, path, body=None, headers=None, expect=(200, 201, 202)):
        self.registry.request(method, path, body=body, headers=headers or {})
        answer = self.registry.getresponse()
        text = answer.read()
        if answer.status not in expect:
            raise SystemExit(f"{method} {path}: {answer.status} {text.decode(errors='replace')[:300]}")
        return answer

    def push_blob(self, digest):
        base = f"/v2/{self.name}/blobs/"
        if self.call("HEAD", base + digest, expect=(200, 404)).status == 200:
            return
        place = self.call("POST", base + "uploads/").getheader("Location").split("://")[-1]
        place = place[place.index("/"):]
        place += ("&" if "?" in place else "?") + "digest=" + digest
        with open(self.blob(digest), "rb") as data:
            size = str(os.path.getsize(data.name))
            self.call("PUT", place, data, {"Content-Length": size, "Content-Type": "application/octet-stream"})

    def push_manifest(self, descriptor, tag):
        with open(self.blob(descriptor["digest"]), "rb") as data:
            manifest = data.read()
        value = json.loads(manifest)
        media = descriptor["mediaType"]
        if media in WHOLE:
            for part in value["manifests"]:
                self.push_manifest(part, part["digest"])
        else:
            for part in [value["config"], *value["layers"]]:
                self.push_blob(part["digest"])
        self.call("PUT", f"/v2/{self.name}/manifests/{tag}", manifest, {"Content-Type": media})


def main():
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    layout, _, wanted = sys.argv[1].partition(":")
    host, _, rest = sys.argv[2].partition("/")
    name, _, tag = rest.rpartition(":")
    with open(os.path.join(layout, "index.json"), encoding="utf-8") as index:
        found = json.load(index)["manifests"]
    if wanted:
        found = [m for m in found if m.get("annotations", {}).get("org.opencontainers.image.ref.name") == wanted]
    if not found:
        raise SystemExit(f"{layout} has no image tagged {wanted}")
    Push(layout, host, name).push_manifest(found[0], tag)
    print(found[0]["digest"])


if __name__ == "__main__":
    main()
