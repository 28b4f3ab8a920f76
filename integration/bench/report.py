"""Tables of what was measured, in Markdown, and the file that keeps them."""

import datetime
import os
import platform
import statistics

import micro
import plot

COLUMNS = (
    ("total s", "total", 2), ("pull s", "pull", 2), ("run s", "run", 2), ("second s", "second", 2),
    ("MB", "bytes", 1), ("requests", "requests", 0), ("peak MB", "peak", 1), ("anon MB", "anonymous", 1),
    ("CPU s", "cpu", 2), ("lazy", "lazy", 0),
)
KILLED = (
    "A container reads small files, each by a `cat` of its own, a hundred a second at most; after the first hundred the process that serves them is killed "
    "by SIGKILL, and the container goes on for five seconds. The keeper of crfs starts another server at once; a peer is started again after one second, as "
    "by its systemd unit. `failed` are the reads that gave an error, `longest` is how long one took."
)
IN_MB = {"bytes", "peak", "anonymous"}


def median(runs, key):
    values = [run[key] for run in runs if key in run]
    return statistics.median(values) / (1e6 if key in IN_MB else 1) if values else None


def table(header, rows):
    """A Markdown table; columns after the first are aligned to the right."""
    widths = [max(len(row[n]) for row in [header, *rows]) for n in range(len(header))]
    def line(row):
        return "| " + " | ".join(c.ljust(w) if n == 0 else c.rjust(w) for n, (c, w) in enumerate(zip(row, widths))) + " |"
    rule = "|" + "|".join("-" * (w + 2) if n == 0 else "-" * (w + 1) + ":" for n, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def ways(runs):
    return list(dict.fromkeys(run["way"] for run in runs))


def cold_table(runs):
    """One image: the medians of each way, and its total and second container against the first way's."""
    base = [run for run in runs if run["way"] == ways(runs)[0]]
    rows = []
    for way in ways(runs):
        mine = [run for run in runs if run["way"] == way]
        row = [way, f"{median(mine, 'total') / median(base, 'total'):.3f}"]
        for _, key, digits in COLUMNS:
            value = median(mine, key)
            row.append("-" if value is None else f"{value:.{digits}f}")
        row.insert(6, f"{median(mine, 'second') / median(base, 'second'):.2f}")
        spread = [run["total"] for run in mine]
        row.append(f"{min(spread):.2f}-{max(spread):.2f}")
        rows.append(row)
    names = [name for name, _, _ in COLUMNS]
    return table(["", "ratio", *names[:4], "ratio", *names[4:], "totals"], rows)


def cpu_table(runs):
    """Where crfs's CPU seconds went, by kind of thread, up to the end of the workload's output."""
    mine = {way: [run for run in runs if run["way"] == way and "threads" in run] for way in ways(runs)}
    kinds = list(dict.fromkeys(kind for those in mine.values() for run in those for kind in run["threads"]))
    rows = []
    for way, those in mine.items():
        if those:
            seconds = [statistics.median(run["threads"].get(kind, 0) for run in those) for kind in kinds]
            rows.append([way, f"{sum(seconds):.2f}", *(f"{s:.2f}" for s in seconds)])
    return table(["CPU seconds", "all", *kinds], rows) if rows else ""


def jobs_table(samples):
    """What the CPU did, by job, in the sampled runs."""
    rows = []
    for one in samples:
        seconds = one["jobs"].values()
        rows.append([f"{one['image']}: {one['way']}", f"{sum(seconds):.2f}", *(f"{s:.2f}" for s in seconds)])
    return table(["CPU seconds", "all", *samples[0]["jobs"]], rows) if rows else ""


def micro_table(rows):
    cells = [
        [f"{row['image']}: {micro.NAMES[row['step']]}", row["state"], f"{row['crfs'] / row['overlayfs']:.2f}",
         f"{row['crfs']:.3f}", f"{row['overlayfs']:.3f}"]
        for row in rows
    ]
    return table(["once all is cached", "state", "ratio", "crfs s", "overlayfs on disk s"], cells)


def killed_table(rows):
    """What a container noticed when the server of its files was killed."""
    cells = [
        [row["way"], str(row["read"]), str(row["failed"]), f"{row['longest']:.2f}", "starts" if row["new"] else "fails"]
        for row in rows
    ]
    return table(["killed", "reads after it", "failed", "longest s", "a new container"], cells)


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    model = models[0] if models else platform.machine()
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {platform.release()}"


def groups(runs):
    """The bars of a plot: for each image the total of each way."""
    found = {}
    for image in dict.fromkeys(run["image"] for run in runs):
        of_image = [run for run in runs if run["image"] == image]
        base = median([run for run in of_image if run["way"] == ways(of_image)[0]], "total")
        found[image] = {}
        for way in ways(of_image):
            total = median([run for run in of_image if run["way"] == way], "total")
            found[image][way] = (total, f"{total:.2f} s, {total / base:.3f}")
    return found


def save(folder, how, link, sections, runs):
    """Writes RESULTS.md and its plot."""
    os.makedirs(folder, exist_ok=True)
    shown = ""
    if runs:
        title = f"Pull and run until the workload's output ends, {link}: seconds and ratio"
        with open(os.path.join(folder, "results.svg"), "w", encoding="utf-8") as file:
            file.write(plot.bars(title, groups(runs)))
        shown = "![Totals as bars](results.svg)\n\n"
    head = (
        "# Measured: crfs beside containerd's overlayfs\n\n"
        f"{datetime.date.today()}; {machine()}; {link}. Written by `{how}`.\n\n"
        "A run starts on a containerd and a crfs that have seen nothing yet, and the ways take turns. Shown are medians: "
        "`total` is pull and run until the workload's output ends, `second` another container of the same image; MB and "
        "requests are what crossed the link until then; of crfs, `peak` and `anon` are the most memory that its processes had resident together and the "
        "anonymous part of it (RssAnon), `CPU s` is its CPU time, `lazy` the number of layers that it serves.\n\n"
    )
    with open(os.path.join(folder, "RESULTS.md"), "w", encoding="utf-8") as file:
        file.write(head + shown + "\n\n".join(sections) + "\n")
