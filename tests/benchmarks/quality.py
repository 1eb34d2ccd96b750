"""The quality table: what is claimed of the models, measured beside its target and its trivial baselines.

    python -m tests.benchmarks.quality            every row on its usual dataset, two CPU minutes each
    python -m tests.benchmarks.quality --rows ae-beats-pca,vae-nelbo --minutes 10 --record
    python -m tests.benchmarks.quality --data anamorph-data --dataset mnist   every row that suits an uploaded dataset

`--dataset` is a built-in dataset, or with `--data` (the data folder of a service that has it, running or not) one that
was imported there; DATABASE_URL and BLOBS_URL are honoured. `--minutes` bounds the CPU time of each row: trainings are
shortened to fit, and the result says so. `--record` keeps each result in docs/quality/ and writes docs/quality.md,
which judges every recorded number by the row's target as it stands; a result that the budget cut short replaces no
full one. `--list` names the rows.

A row is a constant in a file of tests/benchmarks/rows (one file for a group of claims; nothing else is edited):

    def beats_pca(subject: Subject) -> Found:
        run = subject.trained("autoencoder", {"latent_dim": 32, "epochs": 30})
        return Found(run.measured["mse"], {"PCA": run.measured["mse_pca"]}, run.note, run.short)

    AE = Row("ae-beats-pca", "A convolutional autoencoder beats PCA with as many numbers", "MSE",
             at_most_times(0.30, "PCA"), beats_pca)

`subject` gives `spec`, `train`, `validation` (Columns), `seed`, `left` (CPU seconds of its budget), `other(name)` for a
second dataset, and `trained(family, config, share=1.0)`, which trains as long as the config asks or the budget allows.
`suits` says on which datasets a claim makes sense, `dataset` on which it is measured by default. See claims.py.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from app.core.settings import settings
from app.core.store import blobs, database
from app.core.store.keys import LOCAL
from tests.benchmarks.claims import Found, Row, Subject
from tests.benchmarks.place import own_place
from tests.benchmarks.rows import rows
from workers.store.training_data import open_source

RECORDS = Path(__file__).parents[2] / "docs" / "quality"
PAGE = RECORDS.with_suffix(".py")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda text: text.split(","), help="names of rows, with commas between")
    parser.add_argument("--dataset", help="a built-in dataset, or one of the service in --data")
    parser.add_argument("--data", type=Path, help="data folder of a service; without it a place of its own")
    parser.add_argument("--minutes", type=float, default=2.0, help="CPU minutes for each row")
    parser.add_argument("--images", type=int, help="longest training, in images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="keep the results in docs/quality")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--trace", action="store_true", help="show where a row failed")
    options = parser.parse_args()
    known = rows()
    if unknown := sorted(set(options.rows or ()) - known.keys()):
        parser.error(f"there is no row {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [known[name] for name in options.rows or known]
    if options.list:
        print("\n".join(f"{row.name:28} {row.claim} ({row.unit} {row.target.text})" for row in chosen))
        return 0
    torch.set_num_threads(options.threads)
    with place(options.data):
        failed = [name for name, rows in measures(chosen).items() if not attempt(rows, options)]
    if options.record:
        subprocess.run([sys.executable, str(PAGE)], check=True)
    return bool(failed)


def place(folder: Path | None):
    """The service whose datasets are measured: that of a folder, or a new one in a temporary folder."""
    if folder is None:
        return own_place()
    os.environ["ANAMORPH_DATA_DIR"] = str(folder)
    for cache in (settings, blobs.store, database.engine):
        cache.cache_clear()
    database.migrate()
    return nullcontext()


def measures(chosen: list[Row]) -> dict[str, list[Row]]:
    """Rows that one measurement answers together, by the name of the first."""
    found: dict[tuple, list[Row]] = {}
    for row in chosen:
        found.setdefault((row.measure, row.dataset), []).append(row)
    return {group[0].name: group for group in found.values()}


def attempt(group: list[Row], options: argparse.Namespace) -> bool:
    """Measures, prints and perhaps keeps rows that share a measurement; other rows go on when it fails."""
    row, before = group[0], cpu_seconds()
    name = options.dataset or row.dataset
    try:
        source = open_source(None, LOCAL, name)
        subject = Subject(name, source, options.seed, options.minutes, options.images)
        if not row.suits(subject.spec):
            print(f"{row.name:28} {name}: this claim is not about such a dataset", flush=True)
            return True
        found = row.measure(subject)
    except Exception as error:
        print(f"{row.name:28} {name}: could not be measured: {type(error).__name__}: {error}", flush=True)
        if options.trace:
            traceback.print_exception(error)
        return False
    minutes = (cpu_seconds() - before) / 60
    for row in group:
        print(line(row, name, found, minutes), flush=True)
        if options.record:
            keep(row, subject, found, minutes)
    return True


def line(row: Row, dataset: str, found: Found, minutes: float) -> str:
    baselines = ", ".join(f"{name} {value:.4g}" for name, value in found.baselines.items()) or "none"
    verdict = "reached" if row.target.holds(found) else "NOT REACHED"
    verdict += " (budget ended it early)" if found.short else ""
    return (
        f"{row.name:28} {dataset}: {found.value:.4g} {row.unit}, target {row.target.text}, beside {baselines}: "
        f"{verdict}, {minutes:.1f} CPU min" + (f"; {found.note}" if found.note else "")
    )


def keep(row: Row, subject: Subject, found: Found, minutes: float) -> None:
    """One small file for a row on a dataset."""
    RECORDS.mkdir(exist_ok=True)
    file = RECORDS / f"{row.name}@{subject.name}.json"
    if found.short and file.exists() and not json.loads(file.read_text())["short"]:
        print(f"{'':28} {file.name} holds a full measurement and is kept", flush=True)
        return
    counts = {side: max(columns.values(), default=0) for side, columns in subject.spec.columns.items()}
    kept = {
        "row": row.name,
        "dataset": subject.name,
        "images": counts,
        "value": float(f"{found.value:.6g}"),
        "baselines": {name: float(f"{value:.6g}") for name, value in found.baselines.items()},
        "note": found.note,
        "short": found.short,
        "seed": subject.seed,
        "cpu_minutes": round(minutes, 1),
    }
    file.write_text(json.dumps(kept, indent=1) + "\n")


def cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    sys.exit(main())
