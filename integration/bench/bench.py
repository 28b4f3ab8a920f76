"""Cold starts and microbenchmarks, crfs beside overlayfs, in turns. See run.sh for the options."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import images
import micro
import report
from node import Node

QUIET = "[fetch]\nbackground = false\n"
AS_SHIPPED = ""


def say(text):
    print("   " + text, file=sys.stderr, flush=True)


def timed(work, *words):
    start = time.monotonic()
    out = work(*words)
    return time.monotonic() - start, out


def start(node, snapshotter, image, config):
    """One cold start, and a second container; every figure of it."""
    node.fresh(config)
    node.control("reset")
    pull, _ = timed(node.pull, snapshotter, image)
    run, _ = timed(node.run, snapshotter, image)
    counts = node.counts()
    peak, anonymous = node.memory()
    figures = {
        "total": pull + run,
        "pull": pull,
        "run": run,
        "megabytes": counts["total"] / 1e6,
        "requests": counts["requests"],
    }
    if snapshotter == "crfs":
        figures |= {"processor": node.processor(), "peak": peak, "anonymous": anonymous}
    node.wait_idle()
    figures["again"], _ = timed(node.run, snapshotter, image)
    if snapshotter == "crfs":
        figures["peak"] = node.memory()[0]
    return figures


def median(runs):
    """Of every figure the median."""
    first = runs[0]
    return {
        key: {k: statistics.median([run[key].get(k, 0) for run in runs]) for k in first[key]}
        if isinstance(first[key], dict)
        else statistics.median([run[key] for run in runs])
        for key in first
    }


def profile_of(node, crfs, image):
    """What a start of `image` reads, as crfs has recorded it."""
    node.fresh(AS_SHIPPED)
    node.pull("crfs", image)
    node.run("crfs", image)
    node.wait_idle()
    path = f"{node.folder}/profile"
    deadline = time.monotonic() + 90
    while True:
        done = subprocess.run(
            [crfs, "profile", "--config", node.values["CRFS_CONFIG"], "--root", node.values["CRFS_ROOT"], node.reference(image)],
            stdout=subprocess.PIPE,
        )
        if done.returncode == 0 and done.stdout:
            break
        if time.monotonic() > deadline:
            raise SystemExit(f"crfs has no profile of {image}")
        time.sleep(1)
    with open(path, "wb") as file:
        file.write(done.stdout)
    return path


class Bench:
    def __init__(self, args, folder):
        self.args = args
        self.crfs = os.environ["CRFS_BIN"]
        self.cache = os.environ["CRFS_BED_CACHE"]
        self.node = Node(folder)

    def variants(self, name):
        """What is compared: a title, the snapshotter, the image, the configuration, how many runs."""
        plain = images.layout(name, self.cache, say)
        say(f"converting {name}")
        took, lazy = timed(images.converted, self.crfs, plain)
        self.node.control("link?rtt_ms=0&mbit=0")
        self.node.push(plain, f"{name}:plain")
        self.node.push(lazy, f"{name}:lazy")
        yield "overlayfs", "overlayfs", f"{name}:plain", AS_SHIPPED, self.args.runs
        yield "crfs", "crfs", f"{name}:lazy", AS_SHIPPED, self.args.runs
        if name == "python":
            profile = profile_of(self.node, self.crfs, f"{name}:lazy")
            self.node.push(images.converted(self.crfs, plain, profile), f"{name}:profile")
            yield "crfs, with a profile", "crfs", f"{name}:profile", AS_SHIPPED, self.args.runs
            yield "crfs, background off", "crfs", f"{name}:lazy", QUIET, 1
            yield "crfs, with a profile, background off", "crfs", f"{name}:profile", QUIET, 1

    def starts(self, name):
        variants = list(self.variants(name))
        rtt, mbit = self.args.link.split(":")
        self.node.control(f"link?rtt_ms={rtt}&mbit={mbit}")
        runs = {title: [] for title, *_ in variants}
        for turn in range(self.args.runs):
            for title, snapshotter, image, config, most in variants:
                if turn < most:
                    figures = start(self.node, snapshotter, image, config)
                    runs[title].append(figures)
                    say(f"{name}, {title}: {figures['total']:.2f} s, again {figures['again']:.2f} s")
        return {title: {"median": median(all_runs), "runs": all_runs} for title, all_runs in runs.items()}

    def micro(self):
        plain = images.layout("micro", self.cache, say)
        lazy = images.converted(self.crfs, plain)
        self.node.control("link?rtt_ms=0&mbit=0")
        self.node.push(plain, "micro:plain")
        self.node.push(lazy, "micro:lazy")
        self.node.fresh(AS_SHIPPED)
        roots, names = {}, []
        for snapshotter, image in (("overlayfs", "micro:plain"), ("crfs", "micro:lazy")):
            self.node.pull(snapshotter, image)
            names.append(self.node.run(snapshotter, image, "sleep", "3600", detach=True))
            roots[snapshotter] = self.node.root(names[-1])
        self.node.wait_idle()
        figures = micro.measure(roots, self.args.runs, say)
        for name in names:
            self.node.remove(name)
        return figures


def main():
    args = argparse.ArgumentParser(add_help=False)
    args.add_argument("--link", default="10:1000")
    args.add_argument("--runs", type=int, default=3)
    args.add_argument("--only", default="python,big,small,tiny,micro")
    args.add_argument("--write", action="store_true")
    args.add_argument("--json")
    args = args.parse_args()
    wanted = args.only.split(",")
    if unknown := set(wanted) - set(images.NAMES):
        raise SystemExit(f"no such image: {', '.join(unknown)} (there are {', '.join(images.NAMES)})")
    result = {"link": args.link, "runs": args.runs, "starts": {}}
    with tempfile.TemporaryDirectory(prefix="crfs-bench.") as folder:
        bench = Bench(args, folder)
        try:
            for name in wanted:
                if name == "micro":
                    result["micro"] = bench.micro()
                else:
                    result["starts"][name] = bench.starts(name)
        finally:
            bench.node.close()
    print(report.text(result))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
    if args.write:
        report.write(result, os.path.dirname(os.path.abspath(__file__)))


if __name__ == "__main__":
    main()
