"""Draws cpu.py's report: for each model a panel, in it a bar for each figure and engine, as long as its share of the
roofline, with the tokens a second behind it."""
COLOURS = {"Penstock": "#4c8bd0", "llama.cpp": "#e5893a", "ik_llama.cpp": "#4aa564"}
WIDTH, MARGIN, LABEL, BAR, GAP = 900, 24, 118, 9, 9
STYLE = ("text{font:12px system-ui,'Segoe UI','DejaVu Sans',sans-serif;fill:#25303b}.title{font-size:16px;font-weight:600}"
         ".faint{fill:#687684}.small{font-size:10px}.ground{fill:#fff}.grid{stroke:#dfe4e9}"
         "@media(prefers-color-scheme:dark){text{fill:#e3e8ed}.faint{fill:#93a0ad}.ground{fill:#12171d}.grid{stroke:#2b343d}}")


def text(x, y, words, kind="", anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{words}</text>'


def panel(model, left, top, width):
    """The parts, and where it ends."""
    start, length = left + LABEL, width - LABEL - 44  # behind the longest bar its number has room
    engines = list(next(iter(model["figures"].values()))["engines"])
    step = len(engines) * BAR + GAP
    bottom = top + 30 + step * len(model["figures"])
    parts = [text(left, top + 12, model["name"], "title")]
    for share in (0, 25, 50, 75, 100):
        x = start + length * share / 100
        parts += [f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top + 24}" y2="{bottom - 4}"/>',
                  text(x, bottom + 9, f"{share} %", "faint small", "middle")]
    for row, (label, figure) in enumerate(model["figures"].items()):
        y = top + 30 + row * step
        parts.append(text(start - 8, y + (step - GAP) / 2 + 4, label, "", "end"))
        for i, name in enumerate(engines):
            engine = figure["engines"][name]
            bar = length * min(engine["shares"]["roofline"], 1)
            parts.append(f'<rect x="{start}" y="{y + i * BAR}" width="{bar:.1f}" height="{BAR - 1}" rx="1.5" '
                         f'fill="{COLOURS[name]}"><title>{model["name"]}, {label}: {name}, {engine["tokens_per_s"]:.1f} '
                         f'tokens/s, {100 * engine["shares"]["roofline"]:.0f} % of the roofline</title></rect>')
            parts.append(text(start + bar + 4, y + i * BAR + BAR - 1, f"{engine['tokens_per_s']:,.0f}", "faint small"))
    return parts, bottom + 34


def draw(report):
    """An SVG document of two columns."""
    width = (WIDTH - 3 * MARGIN) / 2
    parts = [text(MARGIN, 30, "Share of the roofline, and tokens per second", "title"),
             text(MARGIN, 50, f"{report['processor']}, {report['threads']} threads: "
                  f"{report['limits'][report['threads']]['read_gb_s']:.1f} GB/s, "
                  f"{report['limits'][report['threads']]['int8_tops']:.2f} Tops int8", "faint")]
    names = {name for model in report["models"] for figure in model["figures"].values() for name in figure["engines"]}
    x = WIDTH - MARGIN
    for name in reversed([name for name in COLOURS if name in names]):
        x -= 110
        parts += [f'<rect x="{x}" y="20" width="12" height="12" rx="1.5" fill="{COLOURS[name]}"/>', text(x + 18, 30, name)]
    ends = [70, 70]
    for model in report["models"]:
        column = ends.index(min(ends))
        made, ends[column] = panel(model, MARGIN + column * (width + MARGIN), ends[column], width)
        parts += made
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {max(ends)}" role="img" '
            f'aria-label="Speed of Penstock and others, as a share of what the machine allows">\n<style>{STYLE}</style>\n'
            f'<rect class="ground" width="{WIDTH}" height="{max(ends)}"/>\n' + "\n".join(parts) + "\n</svg>\n")
