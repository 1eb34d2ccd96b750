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

## How to read the tables

Sizes of a dataset are training + validation images; everything is measured on validation images. *Beside it* are
baselines that need no or little learning. *CPU min* is the time of training and measuring, on one core. *How* says how
long the training was; defaults are the full length.

| unit | what it is | better |
|---|---|---|
| FD | Fréchet distance between features of samples and of real images, by the dataset's own feature network | lower |
| KID | squared kernel distance between the same features | lower |
| MSE, L1 per pixel | mean squared, mean absolute difference; pixels lie in [0, 1] | lower |
| dB PSNR | peak signal-to-noise ratio of the restored image | higher |
| nats | negative ELBO or negative log-likelihood of an image | lower |
| % right, accuracy, share | part of the images for which the claim holds | higher |
| mIoU | intersection over union of masks, mean over classes | higher |
| mAP at .5 | mean average precision of boxes, at an overlap of one half | higher |
| mIoU left, mAP left | the same on attacked images | lower for the attack |
| points of mIoU | what a perturbation costs, in hundredths | higher for the attack |
| fooling rate | part of the images whose class changes | higher for the attack |
| AUROC | chance that an adversarial image scores higher than a clean one | higher |
| 1 - cosine | distance between two faces in the features of the identity network | lower |

| baseline | what it is |
|---|---|
| floor | real training images against real validation images: samples cannot be expected to be nearer |
| blurred, repeated | real images blurred; one real image again and again |
| mean image, mean target | the same answer for every image |
| copied input | a translator that changes nothing |
| colour transfer | mean and spread of each colour channel matched to the target domain |
| nearest pair | the target of the most similar training input |
| PCA | as many principal axes as the code has numbers |
| random signs | a perturbation of the same size, each value with a random sign |
| shuffled | the attack's own perturbation with its pixels permuted |
| clean | without an attack |
| z0, pixel, identity | latents of a face: from the encoder, after a search for pixels, after a search for identity |
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
