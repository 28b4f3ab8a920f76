"""Measures crfs beside containerd's own overlayfs, and prints what came of it. Started by run.sh."""

import argparse
import datetime
import itertools
import json
import os
import shutil
import subprocess
import sys
import time

import cold
import gather
import images
import killed
import micro
import peers
import report
import where
from node import Failed, Registry, run

MICRO = {"small": ("find", "cat"), "attributes": ("find", "cat"), "big": ("sequential", "random"), "smoke": ("find", "cat")}


def arguments():
    args = argparse.ArgumentParser(add_help=False)
    args.add_argument("--folder", required=True)
    args.add_argument("--layout", action="append", required=True, metavar="NAME=FOLDER")
    args.add_argument("--crfs", required=True)
    args.add_argument("--link", default="10:1000")
    args.add_argument("--runs", type=int, default=3)
    args.add_argument("--micro", action="store_true")
    args.add_argument("--cold", default="")
    args.add_argument("--json")
    args.add_argument("--save")
    args.add_argument("--how", default="")
    args.add_argument("--peer", action="append", default=[], metavar="NAME=PROGRAM")
    args.add_argument("--containerd", default="")
    args.add_argument("--killed", default="", metavar="IMAGE")
    return args.parse_args()


def say(text):
    print(text, file=sys.stderr, flush=True)


class Bench:
    def __init__(self, args):
        self.args, self.runs, self.count = args, [], itertools.count()
        self.sections, self.samples, self.micro, self.killed = [], [], [], []
        self.peers = [peers.parse(given) for given in args.peer]
        rtt, _, mbit = args.link.partition(":")
        self.link = float(rtt), float(mbit)

    def folder(self, what):
        return os.path.join(self.args.folder, f"{what}{next(self.count)}")

    def show(self, text):
        """A part of the result: printed, and kept for RESULTS.md."""
        print(f"\n{text}\n", flush=True)
        self.sections.append(text)

    def publish(self, registry, image, layout):
        registry.link(0, 0)
        registry.push(layout, f"bench/{image.name}:plain")
        registry.convert(self.args.crfs, layout, f"bench/{image.name}:lazy")
        for peer in self.peers:
            peer.publish(registry, image, layout, self.folder("o"))
        registry.link(*self.link)

    def cold_starts(self, registry, image, layout):
        """Alternating runs of all ways of one image."""
        ways, mine = [cold.OVERLAYFS, cold.CRFS], []
        if not self.peers:
            ways.append(cold.LEAN)
        profiles = self.profiled(registry, image, layout) if image.profile else None
        if profiles:
            ways += [cold.PROFILED, cold.KNOWING]
        for peer in self.peers:
            ways += peer.ways(["lazy", "profiled"] if profiles else ["lazy"])
        for number in range(self.args.runs):
            for way in ways:
                one = cold.cold_start(self.folder("n"), registry, image, way, profiles=profiles)
                say(f"   {image.name} {number + 1}/{self.args.runs} {way.name}: {one['total']:.2f} s, second {one['second']:.2f} s")
                mine.append(one)
        if len({one["said"] for one in mine}) != 1:
            raise Failed(f"the ways do not agree on what {image.name} says: {sorted({one['said'] for one in mine})}")
        self.runs += mine
        self.show(f"## {image.name}: {image.about}\n\n{report.cold_table(mine)}\n\n{report.cpu_table(mine)}")
        if where.available() and not self.peers:
            sampled = cold.cold_start(self.folder("n"), registry, image, cold.CRFS, sample=self.folder("p"))
            self.samples.append({**sampled, "way": "crfs"})

    def microbenchmarks(self, registry, layouts):
        registry.link(0, 0)
        for name, steps in MICRO.items():
            if name not in layouts:
                continue
            self.micro += micro.measure(self.folder("m"), registry, images.named(name), steps)
            say(f"   {name}: measured once cached")
        self.show(f"## Once everything is cached\n\n{report.micro_table(self.micro)}")

    def kills(self, registry, image):
        """What a running container notices of the death of what serves it."""
        for way in [cold.CRFS, *(peer.ways(["lazy"])[0] for peer in self.peers)]:
            self.killed.append(killed.measure(self.folder("k"), registry, image, way))
            say(f"   {image.name}: {way.name} killed")
        self.show(f"## Killed while a container reads\n\n{report.killed_table(self.killed)}")

    def everything(self):
        layouts = dict(given.split("=", 1) for given in self.args.layout)
        with Registry(self.folder("r")) as registry:
            for name, layout in layouts.items():
                self.publish(registry, images.named(name), layout)
            for name in filter(None, self.args.cold.split(",")):
                self.cold_starts(registry, images.named(name), layouts[name])
            if self.args.killed:
                self.kills(registry, images.named(self.args.killed))
            if self.samples:
                self.show(f"## Where crfs's CPU seconds went, sampled\n\n{report.jobs_table(self.samples)}")
            if self.args.micro:
                self.microbenchmarks(registry, layouts)
        if self.args.save:
            self.save()

    def save(self):
        if self.peers:
            gather.document(self.args.save, [self.everything_known()])
            return
        rtt, mbit = self.link
        report.save(self.args.save, self.args.how, f"{rtt:g} ms, {mbit:g} Mbit/s", self.sections, self.runs)

    def everything_known(self):
        """What `--json` keeps, and PEERS.md is written from."""
        args = self.args
        return {
            "how": args.how, "link": args.link, "date": str(datetime.date.today()), "machine": report.machine(),
            "containerd": args.containerd, "crfs": run([args.crfs, "--version"]).removeprefix("crfs ").strip(),
            "peers": {peer.name: peer.version() for peer in self.peers},
            "about": {name: images.named(name).about for name in dict.fromkeys(one["image"] for one in self.runs)},
            "cold": self.runs, "sampled": self.samples, "micro": self.micro, "killed": self.killed,
        }

    def profiled(self, registry, image, layout):
        """Converts the image once more, laid out by the profile that a start of it recorded; gives the folder of that profile."""
        if subprocess.run([self.args.crfs, "profile", "--help"], capture_output=True, check=False).returncode:
            say("   this crfs has no profiles")
            return None
        file, profiles = self.folder("p") + ".txt", self.folder("s")

        def record(node):
            command = [self.args.crfs, "profile", f"{registry.address}/bench/{image.name}:lazy", "--root", node.values["CRFS_ROOT"]]
            deadline = time.monotonic() + 30
            while True:
                time.sleep(2)  # it is written a second after the start has read its last
                try:
                    text = run(command)
                    break
                except Failed:
                    if time.monotonic() > deadline:
                        raise
            with open(file, "w", encoding="utf-8") as out:
                out.write(text)
            shutil.copytree(os.path.join(node.values["CRFS_ROOT"], "profiles"), profiles)

        cold.cold_start(self.folder("n"), registry, image, cold.LEAN, record)
        registry.link(0, 0)
        registry.convert(self.args.crfs, layout, f"bench/{image.name}:profiled", file)
        registry.link(*self.link)
        return profiles


def main():
    args = arguments()
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]  # nothing leaves this machine
    try:
        measure(args)
    except Failed as failure:
        sys.exit(f"error: {failure}")


def measure(args):
    bench = Bench(args)
    try:
        bench.everything()
    finally:
        if args.json:
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump(bench.everything_known(), file, indent=1)


if __name__ == "__main__":
    main()
