"""The long kill drill: `python -m tests.benchmarks.kill_drill --jobs 1000 --worker-kills 200 --freezes 20`."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.servers import new_database, postgres_url
from tests.system.drill import Drill, Plan


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("jobs", "worker-kills", "broker-kills", "front-kills", "freezes", "workers", "steps", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Plan, name.replace("-", "_")))
    for name in ("lease-seconds", "step-seconds", "pause-seconds"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Plan, name.replace("-", "_")))
    parser.add_argument("--limit-seconds", type=float, default=3600)
    parser.add_argument("--database-url", help="default: a new SQLite file; 'postgres' starts a private server")
    options = vars(parser.parse_args())
    url = options.pop("database_url")
    with tempfile.TemporaryDirectory(prefix="drill", ignore_cleanup_errors=True) as folder:
        if url == "postgres":
            url = new_database(postgres_url())
        report = Drill(Plan(**options), Path(folder), url or f"sqlite:///{folder}/drill.db").run()
        if report.faults:
            Path("drill-processes.log").write_bytes((Path(folder) / "processes.log").read_bytes())
    for name, count in sorted(report.counts.items()):
        print(f"| {name:<28} | {count:>8} |")
    print(f"| {'seconds':<28} | {report.seconds:>8.0f} |")
    print(f"| {'faults':<28} | {len(report.faults):>8} |")
    print(*report.faults[:20], sep="\n")
    return bool(report.faults)


if __name__ == "__main__":
    sys.exit(main())
