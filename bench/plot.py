#!/usr/bin/env python3
"""Draws docs/img/*.svg from bench/results/*.csv; with --check only says which of them are not up to date.

Python's standard library is all that is needed. The pictures are readable on light and on dark pages.
"""
import csv
import math
import pathlib
import sys
from xml.sax.saxutils import escape

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS, IMAGES = ROOT / "bench/results", ROOT / "docs/img"

# Names of classes: what they colour, on light and on dark pages.
COLOURS = {
    "paper": ("fill", "#ffffff", "#0d1117"),
    "ink": ("fill", "#1f2933", "#e6edf3"),
    "soft": ("fill", "#52606d", "#9aa7b4"),
    "grid": ("stroke", "#d9e2ec", "#30363d"),
    "mark": ("stroke", "#52606d", "#9aa7b4"),
    "line0": ("stroke", "#1d4e89", "#6cb0ff"),
    "line1": ("stroke", "#b4450f", "#ff9d5c"),
    "area0": ("fill", "#1d4e89", "#6cb0ff"),
    "area1": ("fill", "#b4450f", "#ff9d5c"),
    "line2": ("stroke", "#2f6f3e", "#7ee096"),
    "area2": ("fill", "#2f6f3e", "#7ee096"),
    "line3": ("stroke", "#7b8794", "#7b8794"),
    "area3": ("fill", "#7b8794", "#7b8794"),
}


class Picture:
    """Elements of an SVG in pixels, the origin at the top left."""

    def __init__(self, width, height, title, subtitle, captions):
        self.width, self.height, self.title = width, height, title
        self.parts = []
        self.text(24, 30, title, size=16)
        self.text(24, 50, subtitle, "soft")
        for i, line in enumerate(reversed(captions)):
            self.text(24, height - 14 - 16 * i, line, "soft", size=11)

    def text(self, x, y, text, colour="ink", size=12, anchor="start", turn=None):
        turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
        self.parts.append(f'<text class="{colour}" x="{x:.1f}" y="{y:.1f}" font-size="{size}" '
                          f'text-anchor="{anchor}"{turned}>{escape(text)}</text>')

    def line(self, points, colour, width=1.0):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline class="{colour}" points="{path}" fill="none" stroke-width="{width}"/>')

    def dot(self, x, y, colour):
        self.parts.append(f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')

    def bar(self, x, y, width, height, colour):
        self.parts.append(f'<rect class="{colour}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}"/>')

    def svg(self):
        light = " ".join(f".{name}{{{what}:{value}}}" for name, (what, value, _) in COLOURS.items())
        dark = " ".join(f".{name}{{{what}:{value}}}" for name, (what, _, value) in COLOURS.items())
        head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" font-family="sans-serif" role="img">\n'
                f"<title>{escape(self.title)}</title>\n"
                f"<style>{light}\n@media (prefers-color-scheme: dark) {{{dark}}}</style>\n"
                '<rect class="paper" width="100%" height="100%"/>\n')
        return head + "\n".join(self.parts) + "\n</svg>\n"


def rows(name):
    with open(RESULTS / name, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def newest(used):
    """The last row of each measurement."""
    return list({(row["what"], row["size"], row["ranks"]): row for row in used}.values())


def tokens_name(n):
    for unit, size in (("M", 1 << 20), ("k", 1 << 10)):
        if n >= size and n % size == 0:
            return f"{n // size}{unit}"
    return f"{n:,}"


def source(name, used):
    """The file of these rows, their machines and commits."""
    def listed(key):
        return ", ".join(dict.fromkeys(row[key] for row in used))
    return f"Rows: bench/results/{name}; {listed('machine')}; commit {listed('commit')}; {listed('date')}"


def log_ticks(low, high):
    """1, 2 and 5 times powers of ten, from the last at or below `low` to the first at or above `high`."""
    steps = [m * 10.0 ** e for e in range(-6, 13) for m in (1, 2, 5)]
    first = max(i for i, step in enumerate(steps) if step <= low)
    last = min(i for i, step in enumerate(steps) if step >= high)
    return steps[first:last + 1]


def even_ticks(high):
    """From 0 by steps of 1, 2 or 5 times a power of ten, four to eight of them, past `high`."""
    step = next(s for e in range(13) for s in (10 ** e, 2 * 10 ** e, 5 * 10 ** e) if high / s <= 8)
    return [step * i for i in range(math.ceil(high / step) + 1)]


def lines(picture, series, x_label, y_label, y_log):
    """Draws {name: [(tokens, value)]}: tokens on an axis of powers, the name at the last point."""
    left, right, top, bottom = 78, picture.width - 170, 74, picture.height - 96
    points = [p for list_ in series.values() for p in list_]
    lengths = sorted({x for x, _ in points})
    ticks = log_ticks(min(y for _, y in points), max(y for _, y in points)) if y_log else even_ticks(
        max(y for _, y in points))
    by = math.log if y_log else float

    def place(x, y):
        across = math.log(x / lengths[0]) / (math.log(lengths[-1] / lengths[0]) or 1)
        up = (by(y) - by(ticks[0])) / (by(ticks[-1]) - by(ticks[0]))
        return left + across * (right - left), bottom - up * (bottom - top)

    for tick in ticks:
        y = place(lengths[0], tick)[1]
        picture.line([(left, y), (right, y)], "grid")
        picture.text(left - 8, y + 4, f"{tick:,.10g}", "soft", anchor="end")
    for length in lengths:
        x = place(length, ticks[-1])[0]
        picture.line([(x, top), (x, bottom)], "grid")
        picture.text(x, bottom + 18, tokens_name(length), "soft", anchor="middle")
    picture.text((left + right) / 2, bottom + 38, x_label, anchor="middle")
    picture.text(20, (top + bottom) / 2, y_label, anchor="middle", turn=-90)
    for i, (name, list_) in enumerate(series.items()):
        placed = [place(x, y) for x, y in sorted(list_)]
        picture.line(placed, f"line{i}", 2.0)
        for x, y in placed:
            picture.dot(x, y, f"area{i}")
        picture.text(placed[-1][0] + 10, placed[-1][1] + 4, name, f"area{i}")


def compared(name):
    """Decoding of the hybrid and of MLA in every layer, from a file of bench/compare.sh."""
    used = rows(name)
    series = {"hybrid": [], "MLA in every layer": []}
    latents = {}
    for row in used:
        label = "hybrid" if row["model"] == "hybrid" else "MLA in every layer"
        if row["what"] == "decode":
            series[label].append((int(row["tokens"]), float(row["value"])))
        elif row["what"] == "latents":
            latents[label] = float(row["value"])
    longest = {label: max(points) for label, points in series.items()}
    ratio = longest["MLA in every layer"][1] / longest["hybrid"][1]
    picture = Picture(
        720, 420, f"Decoding one sequence: the hybrid is {ratio:.1f} times faster after "
        f"{tokens_name(longest['hybrid'][0])} tokens",
        f"{used[0]['pair']} pair of configs; {latents['hybrid']:,.0f} and {latents['MLA in every layer']:,.0f} bytes of "
        "cache a token", ["Both axes logarithmic. Caches filled with random values, not computed.", source(name, used)])
    lines(picture, series, "context, tokens", "milliseconds a token", True)
    return picture.svg()


def prefill():
    """Prefill of the published shape on one H200, beside the peer."""
    used = newest(row for row in rows("h200.csv") if row["what"] == "48B shape prefill" and row["ranks"] == "1")
    series = {"Longhaul": [(int(row["size"]), float(row["value"])) for row in used],
              used[0]["peer"]: [(int(row["size"]), float(row["peer_value"])) for row in used]}
    picture = Picture(720, 420, "Prefill of the published shape on one H200", "49.1 B parameters in bf16, synthetic",
                      [f"{used[0]['peer']}: measured on a machine of the same kind at another time.",
                       source("h200.csv", used)])
    lines(picture, series, "length of the prompt, tokens", "tokens a second", False)
    return picture.svg()


def scaled():
    """Speed-up of the same prompt over the GPUs, from a file of `longhaul scale`."""
    name = "scale-h200.csv"
    used = [row for row in rows(name) if row["kind"] == "strong"]
    series = {}
    for row in used:
        series.setdefault(f"{tokens_name(int(row['tokens']))} tokens", []).append(
            (int(row["ranks"]), float(row["speedup"])))
    series["as many as ranks"] = [(r, r) for r in sorted({int(row["ranks"]) for row in used})]
    commits = ", ".join(dict.fromkeys(row["commit"] for row in used))
    picture = Picture(720, 420, "Prefill of one prompt on 1, 2 and 4 H200", "49.1 B parameters in bf16, synthetic",
                      [f"Rows: bench/results/{name}; commit {commits}"])
    lines(picture, series, "GPUs", "times as fast as one", False)
    return picture.svg()


def operations():
    """Single operations: their speed as a share of what stands beside them in the file."""
    used = newest(row for row in rows("h200.csv")
                  if row["peer_value"] and "48B" not in row["what"] and row["ranks"] == "1")
    used.sort(key=lambda row: row["peer"] != "copy")
    left, top, step = 330, 92, 34
    width, height = 880, top + step * len(used) + 100
    picture = Picture(width, height, "Operations on an H200", "beside copying memory (blue) and beside other "
                      "implementations (orange)", ["Of two values of a peer (up and down projection) the larger one counts.",
                                                  source("h200.csv", used)])
    shares = []
    for row in used:
        peer = max(float(x) for x in row["peer_value"].split("/"))
        value = float(row["value"])
        shares.append((peer / value if row["unit"] == "ms" else value / peer, peer))
    ticks = even_ticks(100 * max(share for share, _ in shares))
    scale = (width - left - 190) / ticks[-1]
    bottom = top + step * len(used)
    for tick in ticks:
        x = left + tick * scale
        picture.line([(x, top - 6), (x, bottom)], "mark" if tick == 100 else "grid")
        picture.text(x, bottom + 18, f"{tick} %", "soft", anchor="middle")
    picture.text(left + 50 * ticks[-1] / 100 * scale, bottom + 36, "speed, % of what stands beside it", anchor="middle")
    for i, (row, (share, peer)) in enumerate(zip(used, shares)):
        y = top + step * i
        colour = "area0" if row["peer"] == "copy" else "area1"
        picture.text(left - 10, y + 10, row["what"], anchor="end", size=11)
        picture.text(left - 10, y + 23, f"size {tokens_name(int(row['size']))}, beside {row['peer']}", "soft", size=10,
                     anchor="end")
        picture.bar(left, y + 2, 100 * share * scale, 20, colour)
        picture.text(width - 24, y + 16, f"{float(row['value']):,g} beside {peer:,g} {row['unit']}", "soft", size=11,
                     anchor="end")
    return picture.svg()


def main():
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(f"plot: {' '.join(sys.argv[1:])}: expected nothing or --check")
    drawings = {path.stem: compared(path.name) for path in sorted(RESULTS.glob("compare-*.csv"))}
    drawings.update({"prefill": prefill(), "operations": operations(), "scale-h200": scaled()})
    stale = []
    for stem, svg in drawings.items():
        path = IMAGES / f"{stem}.svg"
        if path.exists() and path.read_text(encoding="utf-8") == svg:
            continue
        stale.append(str(path.relative_to(ROOT)))
        if not sys.argv[1:]:
            IMAGES.mkdir(parents=True, exist_ok=True)
            path.write_text(svg, encoding="utf-8")
    if sys.argv[1:] and stale:
        sys.exit(f"plot: not up to date: {', '.join(stale)}; run bench/plot.py")
    print("plot:", "wrote " + ", ".join(stale) if stale else "all pictures are up to date")


if __name__ == "__main__":
    main()
