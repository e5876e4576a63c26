"""Tables and the plot."""

import html
import statistics

BEGIN, END = "<!-- results: written by make bench RECORD=1 -->", "<!-- end of results -->"


def ratios(measurement, peer):
    """Weft against a peer, round by round."""
    values = measurement["values"]
    return [ours / theirs for ours, theirs in zip(values["Weft"], values[peer], strict=True) if theirs > 0]


def spread(values, digits=1):
    low, middle, high = min(values), statistics.median(values), max(values)
    if len(values) == 1:
        return f"{middle:,.{digits}f}"
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def table(results):
    machine = results["machine"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, Linux {machine['kernel']}, {machine['date']}, "
        f"load before the run {machine['load']}.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in results["versions"].items()) + ".",
    ]
    if results["quick"]:
        lines.append("A quick run: two short rounds, for a look only.")
    lines += [
        "",
        "| What | Unit | Proxy | Median (range) | Requests/s | Weft is | Target | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for measurement in results["measurements"]:
        lines += rows(measurement)
    return "\n".join(lines) + "\n"


def rows(measurement):
    what = measurement["title"]
    for name, values in measurement["values"].items():
        rate = measurement.get("rates", {}).get(name)
        rate = f"{statistics.median(rate):,.0f}" if rate else ""
        ratio = target = verdict = ""
        if measurement["kind"] == "absolute" and name == "Weft":
            target, verdict = f"at most {measurement['limit']}", judge(statistics.median(values), measurement["limit"])
        elif measurement["kind"] == "ratio" and name != "Weft":
            found = ratios(measurement, name)
            ratio = spread(found, 2) if found else ""
            limit = measurement["targets"].get(name)
            if limit and found:
                target, verdict = f"at most {limit}", judge(statistics.median(found), limit)
        yield f"| {what} | {measurement['unit']} | {name} | {spread(values)} | {rate} | {ratio} | {target} | {verdict} |"
        what = ""


def judge(value, limit):
    return "met" if value <= limit else "**missed**"


def plot(results):
    """Bars of CPU per request, one group for each measure, each group on its own scale."""
    groups = [m for m in results["measurements"] if m["unit"] == "us of CPU per request"]
    left, width, bar, gap = 170, 420, 16, 34
    parts, y = [], 10
    for group in groups:
        parts.append(f'<text x="4" y="{y + 12}" class="t">{html.escape(group["title"])}</text>')
        y += 20
        medians = {name: statistics.median(values) for name, values in group["values"].items()}
        scale = width / max(max(values) for values in group["values"].values())
        for name, value in medians.items():
            low, high = min(group["values"][name]) * scale + left, max(group["values"][name]) * scale + left
            kind = "w" if name == "Weft" else "p"
            parts.append(f'<text x="{left - 6}" y="{y + 12}" text-anchor="end">{html.escape(name)}</text>')
            parts.append(f'<rect x="{left}" y="{y}" width="{value * scale:.1f}" height="{bar - 3}" class="{kind}"/>')
            parts.append(f'<path d="M{low:.1f} {y + 6}H{high:.1f}" class="r"/>')
            parts.append(f'<text x="{high + 6:.1f}" y="{y + 12}">{value:,.0f}</text>')
            y += bar
        y += gap - bar
    style = "text{font:12px sans-serif}.t{font-weight:bold}.w{fill:#0b7a75}.p{fill:#b8bfc6}.r{stroke:#333;stroke-width:2}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 80}" height="{y}">'
    title = "<title>Microseconds of CPU per request: median and range</title>"
    return f'{head}{title}<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'


def record(docs, results, written):
    """Replaces what stands between the marks in docs/performance.md."""
    page = docs / "performance.md"
    text = page.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    page.write_text(f"{head}{BEGIN}\n\n{written}\n{END}{tail}")
    (docs / "performance.svg").write_text(plot(results))
