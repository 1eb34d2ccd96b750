"""Records the results of the scripts in `runs/` anew: `python -m tests.golden.record [NAME ...]`."""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch

from app.core.settings import settings
from app.core.store import blobs, database
from models import family
from tests.golden.runs import Runner, fingerprint
from workers import devices

FOLDER = Path(__file__).parent


def main(names: list[str]) -> None:
    devices.use_threads = lambda wanted: None
    family.computes_bf16 = lambda device: False
    torch.set_num_threads(1)
    os.environ["ANAMORPH_DEVICE"] = "cpu"
    for name in names or sorted(file.stem for file in FOLDER.glob("runs/*.json")):
        file = FOLDER / "runs" / f"{name}.json"
        with tempfile.TemporaryDirectory() as folder:
            os.environ["ANAMORPH_DATA_DIR"] = folder
            for cached in (settings, blobs.store, database.engine):
                cached.cache_clear()
            database.migrate()
            runner = Runner()
            entries = [entry | {"result": runner.run(entry["step"])} for entry in json.loads(file.read_text())]
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
        file.write_text(f"[\n{lines}\n]\n")
    (FOLDER / "fingerprint.json").write_text(json.dumps(fingerprint(), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
