"""Writes PEERS.md: what several measurements beside peers have found, as one document.

    gather.py FOLDER JSON...        the JSON files are those of `run.sh --peer ... --json FILE`
"""

import json
import os
import re
import sys

import plot
import report

PLOT = "peers.svg"
HEAD = """\
A run starts on a containerd and a snapshotter that have seen nothing yet, and the ways take turns. Shown are medians: `total` is pull and run
until the workload's output ends, `second` another container of the same image; MB and requests are what crossed the link until then; of the
snapshotter, `peak` and `anon` are the most memory that its processes had resident together and the anonymous part of it (RssAnon), `CPU s` its CPU time, and `lazy` the number of
layers that it serves by FUSE. Memory and CPU time of overlayfs are containerd's own and not shown; with a lazy snapshotter containerd does less.

Every snapshotter has its own defaults, and the registry is plain HTTP to all. stargz reads the very images that crfs reads (`crfs convert`), also the one
whose layers begin with what an earlier start has read (`with profile`), and, where a row says `image of its own`, what `ctr-remote image convert` makes of it;
soci reads the ordinary layers of the image with an index by `soci convert`. `crfs, started here before` is the first start on a node that has lost
everything of the image but the profile of an earlier start.
"""


def document(folder, measured):
    """Writes the document and its plot; `measured` are the measurements in the order in which they are shown."""
    first = measured[0]
    parts = [
        "# Measured: crfs beside other lazy snapshotters",
        f"{first['date']}; {first['machine']}; containerd {first['containerd']}.",
        report.table(["", "version"], [["crfs", first["crfs"]], *([name, text] for name, text in first["peers"].items())]),
        HEAD.strip(),
        f"![Totals as bars]({PLOT})",
    ]
    groups = {}
    for one in measured:
        rtt, _, mbit = one["link"].partition(":")
        link = f"{rtt} ms, {mbit} Mbit/s"
        for image in dict.fromkeys(run["image"] for run in one["cold"]):
            runs = [run for run in one["cold"] if run["image"] == image]
            groups[f"{image}, {link}"] = report.groups(runs)[image]
            parts += [f"## {image}, {link}: {one['about'][image]}", report.cold_table(runs), best(runs)]
    killed = [row for one in measured for row in one["killed"]]
    if killed:
        parts += ["## Killed while a container reads", report.KILLED, report.killed_table(killed)]
    commands = "\n".join(f"    {command}" for command in dict.fromkeys(anywhere(one["how"]) for one in measured))
    parts += ["## Repeating it", "The peers' programs are not a part of this; give the paths of yours.", commands]
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, PLOT), "w", encoding="utf-8") as file:
        file.write(plot.bars("Pull and run until the workload's output ends: seconds, and ratio to overlayfs", groups))
    with open(os.path.join(folder, "PEERS.md"), "w", encoding="utf-8") as file:
        file.write("\n\n".join(parts) + "\n")


def anywhere(command):
    """The command without what is only true of the machine that it was given on."""
    command = re.sub(r" --(json|crfs|save) \S+", "", command)
    return re.sub(r"(--peer \w+=)\S*/", r"\1/path/to/", command)


def best(runs):
    """One sentence: which way needs least of what."""
    found = []
    for name, key, unit in (("total", "total", " s"), ("second container", "second", " s"), ("bytes", "bytes", " MB"),
                            ("requests", "requests", ""), ("memory", "peak", " MB"), ("CPU time", "cpu", " s")):
        known = {way: report.median([run for run in runs if run["way"] == way], key) for way in report.ways(runs)}
        known = {way: value for way, value in known.items() if value is not None}
        way = min(known, key=known.get)
        found.append(f"{name} {way} ({known[way]:.4g}{unit})")
    return f"Least: {', '.join(found)}."


def main():
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    measured = []
    for name in sys.argv[2:]:
        with open(name, encoding="utf-8") as file:
            measured.append(json.load(file))
    document(sys.argv[1], measured)


if __name__ == "__main__":
    main()
