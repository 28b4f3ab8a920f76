"""Plots as SVG, without a library: bars in groups, and lines over two logarithmic axes."""

import html
import math

COLOURS = ("#7f8c8d", "#1f77b4", "#7fb3d9", "#2ca02c", "#d9822b", "#9467bd")
FONT = 'font-family="sans-serif" font-size="12"'


def text(x, y, what, anchor="start", more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {FONT} {more}>{html.escape(what)}</text>'


def box(x, y, width, height, colour):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" fill="{colour}"/>'


def page(width, height, parts):
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">'
    return "\n".join([head, box(0, 0, width, height, "#ffffff"), *parts, "</svg>"]) + "\n"


def bars(title, groups):
    """`groups` is {group: {bar: (value, label)}}. Each group has a scale of its own: its first bar fills the width."""
    left, full, right, step = 190, 460, 190, 20
    kinds = list(dict.fromkeys(bar for group in groups.values() for bar in group))
    parts, y = [text(12, 24, title, more='font-weight="bold"')], 44
    for group, inside in groups.items():
        y += 14
        parts.append(text(12, y, group, more='font-weight="bold"'))
        y += 8
        largest = max(value for value, _ in inside.values()) or 1
        for bar, (value, label) in inside.items():
            width = full * value / largest
            parts.append(text(left - 8, y + 13, bar, "end"))
            parts.append(box(left, y, width, step - 5, COLOURS[kinds.index(bar) % len(COLOURS)]))
            parts.append(text(left + width + 6, y + 13, label))
            y += step
        y += 8
    return page(left + full + right, y + 8, parts)


def decades(values):
    values = [value for value in values if value > 0]
    return math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))


def lines(title, x_name, y_name, series):
    """`series` is {line: [(x, y), ...]} with positive values; both axes are logarithmic."""
    left, top, width, height = 70, 44, 520, 300
    x0, x1 = decades([x for line in series.values() for x, _ in line])
    y0, y1 = decades([y for line in series.values() for _, y in line])
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)

    def place(x, y):
        across = (math.log10(x) - x0) / (x1 - x0)
        up = (math.log10(y) - y0) / (y1 - y0)
        return left + width * across, top + height * (1 - up)

    parts = [text(12, 24, title, more='font-weight="bold"')]
    for power in range(x0, x1 + 1):
        x, _ = place(10**power, 10**y0)
        parts.append(f'<path d="M{x:.1f} {top}V{top + height}" stroke="#dddddd"/>')
        parts.append(text(x, top + height + 16, f"{10**power:g}", "middle"))
    for power in range(y0, y1 + 1):
        _, y = place(10**x0, 10**power)
        parts.append(f'<path d="M{left} {y:.1f}H{left + width}" stroke="#dddddd"/>')
        parts.append(text(left - 6, y + 4, f"{10**power:g}", "end"))
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[(number + 1) % len(COLOURS)]
        points = [place(x, y) for x, y in sorted(line) if x > 0 and y > 0]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(box(left + width + 12, top + 18 * number, 12, 12, colour))
        parts.append(text(left + width + 30, top + 18 * number + 11, name))
    parts.append(text(left + width / 2, top + height + 36, x_name, "middle"))
    parts.append(text(12, top - 8, y_name))
    return page(left + width + 200, top + height + 50, parts)
