"""The long kill drill: `python -m tests.benchmarks.kill_drill --jobs 600 --job-kills 120 --worker-kills 80 ...`.

Prints a table; fails if there is a fault. What had not ended in time is counted and is no fault.
"""

import argparse
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

from tests.servers import Postgres, new_database
from tests.system.drill.plants import PLANTS
from tests.system.drill.run import Drill, Plan


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for field in fields(Plan):
        if field.name not in ("bug", "deaf", "kinds"):
            parser.add_argument("--" + field.name.replace("_", "-"), type=field.type, default=field.default)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--bug", choices=tuple(PLANTS), default="", help="Plant a bug, to see it found.")
    parser.add_argument("--deaf", action="store_true", help="Jobs that lose their lease do not notice.")
    parser.add_argument("--keep", type=Path, help="Folder for the logs and the database afterwards.")
    options = vars(parser.parse_args())
    kind, keep = options.pop("database"), options.pop("keep")
    with tempfile.TemporaryDirectory(prefix="drill", ignore_cleanup_errors=True) as name:
        folder = keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "postgresql":
            server = Postgres(Path(tempfile.mkdtemp(prefix="drill-pg")))
            report = Drill(Plan(**options), folder, new_database(server.url), server).run()
        else:
            report = Drill(Plan(**options), folder, f"sqlite:///{folder}/drill.db").run()
    print(f"| {kind:<36} | {'':>8} |")
    for what, number in report.rows():
        print(f"| {what:<36} | {number!s:>8} |")
    print(f"| {'faults':<36} | {len(report.verdict.faults):>8} |")
    print(*report.verdict.lines(), sep="\n")
    return bool(report.verdict.faults)


if __name__ == "__main__":
    sys.exit(main())
