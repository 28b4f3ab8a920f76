"""The result as text, as Markdown and as plots."""

import datetime
import os
import platform

TITLES = {
    "python": "python + numpy",
    "big": "one 800 MB file, read once",
    "small": "45,000 small files, read once",
    "tiny": "500,000 files of 13 bytes, one `find`",
    "trial": "trial",
}
COLORS = ["#9aa5b1", "#2563eb", "#16a34a", "#d97706", "#7c3aed"]


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def start_rows(variants):
    plain = variants["overlayfs"]["median"]
    for title, found in variants.items():
        m = found["median"]
        yield [
            title,
            f"{m['total']:.2f}",
            f"{m['total'] / plain['total']:.2f}",
            f"{m['pull']:.2f}",
            f"{m['run']:.2f}",
            f"{m['again']:.2f}",
            f"{m['again'] / plain['again']:.2f}",
            f"{m['megabytes']:.1f}",
            f"{m['requests']:.0f}",
            f"{m['peak']:.0f} ({m['anonymous']:.0f})" if "peak" in m else "",
        ]


def text(result):
    parts = []
    head = ["", "total s", "ratio", "pull s", "run s", "again s", "ratio", "MB", "requests", "peak MB (anonymous)"]
    for name, variants in result["starts"].items():
        parts.append(f"### {TITLES[name]}\n")
        parts.append(table(head, start_rows(variants)) + "\n")
        for title, found in variants.items():
            if used := found["median"].get("processor"):
                parts.append(f"Processor, {title}: " + ", ".join(f"{k} {v:.2f} s" for k, v in sorted(used.items())) + "\n")
    if "micro" in result:
        parts.append("### Once everything is here\n")
        rows = []
        for case, states in result["micro"].items():
            for state, by in states.items():
                name = "page cache dropped" if state == "dropped" else "warm"
                ratio = by["crfs"] / by["overlayfs"]
                rows.append([case, name, f"{by['overlayfs']:.2f}", f"{by['crfs']:.2f}", f"{ratio:.2f}"])
        parts.append(table(["", "", "overlayfs s", "crfs s", "ratio"], rows) + "\n")
    return "\n".join(parts)


def bars(title, groups, unit):
    """An SVG of horizontal bars: groups of (title, [(label, value)])."""
    width, left, row = 760, 250, 20
    height = 40 + sum(26 + row * len(values) for _, values in groups)
    most = max(value for _, values in groups for _, value in values)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="10" y="22" font-size="15" font-weight="bold">{title}</text>',
    ]
    y = 40
    for name, values in groups:
        out.append(f'<text x="10" y="{y + 14}" font-weight="bold">{name.replace("`", "")}</text>')
        y += 20
        for number, (label, value) in enumerate(values):
            long = max(1, (width - left - 90) * value / most)
            color = COLORS[number % len(COLORS)]
            out.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{label}</text>')
            out.append(f'<rect x="{left}" y="{y + 2}" width="{long:.1f}" height="{row - 5}" fill="{color}"/>')
            out.append(f'<text x="{left + long + 5:.1f}" y="{y + 13}">{value:.2f}{unit}</text>')
            y += row
        y += 6
    return "\n".join(out + ["</svg>\n"])


def machine():
    with open("/proc/meminfo", encoding="utf-8") as file:
        memory = int(file.readline().split()[1]) / 2**20
    cores = os.cpu_count()
    today = datetime.date.today().isoformat()
    return f"{cores} cores, {memory:.0f} GiB, Linux {platform.release().split('-')[0]}, {today}"


def plots(result):
    """File name and content of each plot."""
    groups = [
        (TITLES[name], [(title, found["median"]["total"]) for title, found in variants.items() if "off" not in title])
        for name, variants in result["starts"].items()
    ]
    if groups:
        rtt, mbit = result["link"].split(":")
        yield "starts.svg", bars(f"Cold start, pull + run, seconds ({rtt} ms, {mbit} Mbit/s)", groups, " s")
    if "micro" in result:
        ratios = [(case, by["crfs"] / by["overlayfs"]) for case, states in result["micro"].items() for by in [states["dropped"]]]
        yield "micro.svg", bars("Once cached, page cache dropped: time against overlayfs on the disk", [("ratio", ratios)], "")


def write(result, folder):
    """RESULTS.md and the plots it shows."""
    rtt, mbit = result["link"].split(":")
    parts = [
        "# crfs beside overlayfs",
        "",
        f"{machine()}; link {rtt} ms, {mbit} Mbit/s; medians of {result['runs']} runs in turns, each on a containerd and a crfs that "
        "have seen nothing. Written by `integration/bench/run.sh --write`.",
        "",
    ]
    for name, content in plots(result):
        with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
            file.write(content)
        parts += [f"![{name}]({name})", ""]
    parts.append(text(result))
    with open(f"{folder}/RESULTS.md", "w", encoding="utf-8") as file:
        file.write("\n".join(parts))
