"""Counts the files of ours that one request passes: `python -m tests.system.hops`.

Front end, broker and worker run in this process, the broker being a real one, so that a request takes the way it takes
in a service. A file counts when a function of it is called while the request is answered, on any thread; code that runs
at import does not count, nor do the loops that run without a request (sweeper, watch of the workers).
Each request is sent three times: the first finds no model in memory, the last is what a running service does all day.
"""

import asyncio
import base64
import inspect
import io
import json
import os
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType

import httpx
import msgpack
import numpy as np
import redis
from PIL import Image

from tests.servers import Valkey

ROOT = Path(__file__).parents[2]
PACKAGES = tuple(f"{ROOT / name}{os.sep}" for name in ("app", "workers", "models"))
FUNCTION = inspect.CO_OPTIMIZED | inspect.CO_NEWLOCALS
TRAINING = {"family": "vae", "dataset": "mnist5k", "name": "counted", "config": {"epochs": 1}}


class Recorder:
    """The files of ours whose functions are called between `start` and `stop`, in the order of their first call."""

    def __init__(self) -> None:
        self.recording = False
        self.files: dict[str, str] = {}
        threading.setprofile(self._called)
        sys.setprofile(self._called)

    def start(self) -> None:
        self.files, self.recording = {}, True

    def stop(self) -> dict[str, str]:
        self.recording = False
        return self.files

    def _called(self, frame: FrameType, event: str, argument: object) -> None:
        if self.recording and event == "call":
            code: CodeType = frame.f_code
            if code.co_flags & FUNCTION == FUNCTION and code.co_filename.startswith(PACKAGES):
                self.files.setdefault(str(Path(code.co_filename).relative_to(ROOT)), code.co_qualname)


def serve_calls(socket: Path) -> None:
    """An inference worker's consumer: takes messages off the queue and runs their Celery task in this thread."""
    from workers import main

    main.load_host()
    client = redis.Redis(unix_socket_path=str(socket))
    while True:
        message = json.loads(client.brpop("infer")[1])
        (payload,), _, _ = msgpack.unpackb(base64.b64decode(message["body"]))
        main.run_calls(payload)


def png(side: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def publish_denoiser() -> None:
    """An untrained denoising autoencoder of the demo's size, called `denoiser`."""
    import torch

    from app.core.store.database import migrate, transaction
    from models.registry import families
    from models.types import DataSpec
    from tests.tiny import facts
    from workers.store import model_rows, models

    migrate()
    about = facts(28, classes=None)
    torch.manual_seed(0)
    family = families()["denoising_autoencoder"].create({}, DataSpec.from_facts(about))
    _, card = models.publish(family, about, {"name": "denoiser", "seed": 0, "metrics": {}})
    with transaction() as conn:
        model_rows.register(conn, tenant="local", card=card, job_id=None)


async def count(recorder: Recorder) -> dict[str, dict[str, str]]:
    """For each request the files it passes, with the first function called there."""
    from app.main import create_app

    app = create_app()
    await app.state.calls.start()
    transport, image = httpx.ASGITransport(app), png(28)
    requests = {
        "POST /v1/models/{m}/denoise": {
            "url": "/v1/models/denoiser/denoise", "content": image, "headers": {"Content-Type": "image/png"},
        },
        "POST /v1/trainings": {"url": "/v1/trainings", "json": TRAINING},
    }  # fmt: skip
    counted = {}
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
        for name, request in requests.items():
            for turn in ("first", "second", "third"):
                recorder.start()
                answer = await client.post(**request)
                counted[f"{name}, {turn}"] = recorder.stop()
                assert answer.status_code in (200, 202), answer.text
                await asyncio.sleep(0.2)
    await app.state.calls.stop()
    return counted


def hops() -> dict[str, dict[str, str]]:
    """Counts in a service of its own, which is gone afterwards. Changes this process: call it in a fresh one."""
    with tempfile.TemporaryDirectory(prefix="hp") as folder:
        valkey = Valkey(Path(folder))
        for name in ("DATABASE_URL", "BLOBS_URL"):
            os.environ.pop(name, None)
        os.environ |= {"ANAMORPH_DATA_DIR": f"{folder}/data", "BROKER_URL": valkey.url}
        (Path(folder) / "data").mkdir()
        try:
            publish_denoiser()
            recorder = Recorder()
            threading.Thread(target=serve_calls, args=(valkey.socket,), daemon=True).start()
            return asyncio.run(count(recorder))
        finally:
            sys.setprofile(None)
            valkey.kill()


def main() -> None:
    for name, files in hops().items():
        print(f"{name}: {len(files)} files")
        for number, (file, function) in enumerate(files.items(), 1):
            print(f"{number:4}  {file:44} {function}")
        print()


if __name__ == "__main__":
    main()
