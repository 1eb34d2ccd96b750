"""Writes docs/quality.md from the measurements in docs/quality: `python docs/quality.py`. A test compares the two.

Verdicts are not stored: each number is judged by the target of its row as it stands.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.benchmarks.claims import Found, Row
from tests.benchmarks.rows import groups

FILE = Path(__file__).with_suffix(".md")
RECORDS = FILE.with_suffix("")
HEADS = ("claim", "dataset", "measured", "target", "beside it", "CPU min", "how")
INTRODUCTION = """# Quality: measured against target

Written by `python docs/quality.py` from the measurements in docs/quality; do not edit. Measure again with

```sh
python -m tests.benchmarks.quality --rows NAME --dataset ANY --minutes 10 --record
```

A measurement that the budget cut short stands with *cut short*: what it missed is open, not refuted.
"""


def main() -> str:
    known = {row.name: row for group in groups().values() for row in group}
    kept = [json.loads(file.read_text()) for file in sorted(RECORDS.glob("*.json"))]
    kept = [record for record in kept if record["row"] in known]
    order = list(known)
    kept.sort(key=lambda record: (order.index(record["row"]), record["dataset"]))
    reached = [record for record in kept if known[record["row"]].target.holds(found_of(record))]
    missed = [record for record in kept if record not in reached]
    never = [row for name, row in known.items() if name not in {record["row"] for record in kept}]
    return "\n".join(
        [
            INTRODUCTION,
            *table(f"Reached ({len(reached)})", known, reached),
            *table(f"Not reached ({len(missed)})", known, missed),
            *unmeasured(never),
        ]
    )


def found_of(record: dict) -> Found:
    return Found(record["value"], record["baselines"], record["note"], record["short"])


def table(title: str, known: dict[str, Row], records: list[dict]) -> Iterator[str]:
    yield f"## {title}\n"
    if not records:
        yield "None.\n"
        return
    yield f"| {' | '.join(HEADS)} |\n{'|---' * len(HEADS)}|"
    for record in records:
        row = known[record["row"]]
        beside = ", ".join(f"{name} {value:.4g}" for name, value in record["baselines"].items())
        note = record["note"] + (" (*cut short*)" if record["short"] else "")
        of = f"{record['dataset']} ({' + '.join(str(count) for count in record['images'].values())})"
        cells = (f"{row.claim} `{row.name}`", of, f"**{record['value']:.4g}** {row.unit}", row.target.text, beside,
                 f"{record['cpu_minutes']:g}", note)  # fmt: skip
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def unmeasured(rows: list[Row]) -> Iterator[str]:
    if rows:
        yield f"## Never measured ({len(rows)})\n"
        yield from (f"- {row.claim} `{row.name}`: {row.unit} {row.target.text}" for row in rows)
        yield ""


if __name__ == "__main__":
    FILE.write_text(main())
