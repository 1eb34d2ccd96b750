"""Writes the description of the HTTP API to a file: `python -m app.openapi [build/openapi.json]`."""

import json
import sys
from pathlib import Path

from app.main import create_app

if __name__ == "__main__":
    file = Path(*sys.argv[1:2] or ["build", "openapi.json"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(create_app().openapi(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
