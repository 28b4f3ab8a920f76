"""Tables of what was measured, in Markdown."""

import statistics

COLUMNS = (
    ("total s", "total", 2), ("pull s", "pull", 2), ("run s", "run", 2), ("second s", "second", 2),
    ("MB", "bytes", 1), ("requests", "requests", 0), ("peak MB", "peak", 1), ("anon MB", "anonymous", 1),
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
