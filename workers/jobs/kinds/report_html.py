"""A report as one HTML page to read and print. It loads nothing from elsewhere, and every text is escaped."""

import base64
from html import escape
from typing import Any

MAX_ROWS, MAX_LIST = 200, 8
"""Rows of a table, and entries of a list among the numbers, that the page shows."""
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
h1{font-size:1.6rem;margin-bottom:.2rem} h2{font-size:1.15rem;margin-top:2rem} p.about{color:#555;margin-top:0}
table{border-collapse:collapse;font-size:.85rem;margin:.5rem 0} caption{text-align:left;color:#555}
th,td{border:1px solid #ccc;padding:.2rem .5rem;text-align:left;vertical-align:top} th{background:#f3f3f3}
figure{margin:1rem 0} img,svg{max-width:100%;height:auto} img.sheet{image-rendering:pixelated;min-width:50%}
@media print{body{max-width:none;margin:0} h2{break-after:avoid} figure,tr{break-inside:avoid}}
"""


def page(value: dict[str, Any], tables: dict[str, list[dict[str, Any]]], files: dict[str, bytes]) -> bytes:
    """`value`: the result of the report; `tables`: its complete tables; `files`: its plots (SVG) and sheets (PNG)."""
    about = " · ".join(f"{name} {value[name]}" for name in ("model", "dataset", "seed") if value.get(name) is not None)
    title = f"Report {value['report'].replace('_', ' ')}"
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="about">{escape(about)}</p>']
    parts += [f"<p>{escape(str(note))}</p>" for note in value["notes"]]
    for name, data in files.items():
        parts.append(f"<figure>{picture(name, data)}<figcaption>{escape(name)}</figcaption></figure>")
    facts = {name: fact for name, fact in folded(value["facts"]).items() if brief(fact)}
    parts += ["<h2>Numbers</h2>", table([{"what": name, "value": fact} for name, fact in facts.items()])]
    for name, rows in tables.items():
        parts += [f"<h2>{escape(name.replace('_', ' ').capitalize())}</h2>", table([*map(folded, rows)])]
    parts += ["<h2>Settings</h2>", table([{"what": name, "value": fact} for name, fact in value["params"].items()])]
    origin = {name: value.get(name) for name in ("version", "dataset_digest", "engine", "torch")}
    parts += ["<h2>Made from</h2>", table([{"what": name, "value": fact} for name, fact in origin.items() if fact])]
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    return f"{head}<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>".encode()


def picture(name: str, data: bytes) -> str:
    """An SVG as markup (we drew it; its labels are escaped), any other image as a data URL."""
    if name.endswith(".svg"):
        text = data.decode()
        return text[text.index("<svg") :]
    return f'<img class="sheet" alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def folded(row: dict[str, Any]) -> dict[str, Any]:
    """Joins x, x_low and x_high into one entry: the columns of many intervals would not fit on paper."""
    ends = {name: (f"{name}_low", f"{name}_high") for name in row if f"{name}_low" in row and f"{name}_high" in row}
    apart = {end for pair in ends.values() for end in pair}
    joined = {name: value for name, value in row.items() if name not in apart}
    for name, (low, high) in ends.items():
        joined[name] = "–" if row[name] is None else f"{text(row[name])} ({text(row[low])} to {text(row[high])})"
    return joined


def brief(fact: Any) -> bool:
    """Whether the page shows a number or list; longer ones are in the tables and in report.json."""
    if isinstance(fact, list):
        return len(fact) <= MAX_LIST and not any(isinstance(part, (list, dict)) for part in fact)
    return not isinstance(fact, dict)


def table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "<p>none</p>"
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{escape(str(name))}</th>" for name in names)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(text(row.get(name)))}</td>' for name in names)}</tr>" for row in rows[:MAX_ROWS]
    )
    more = (
        f"<caption>the first {MAX_ROWS} of {len(rows)}; report.json has all</caption>" if len(rows) > MAX_ROWS else ""
    )
    return f"<table>{more}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def text(value: Any) -> str:
    """A value as text for people."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case list() | tuple():
            return ", ".join(map(text, value))
        case dict():
            return ", ".join(f"{name} {text(part)}" for name, part in value.items())
    return str(value)
