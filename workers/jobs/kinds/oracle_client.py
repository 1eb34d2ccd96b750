"""The HTTP client of an oracle: sends batches of images, reads scores or labels. Redirects are not followed."""

import io
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import torch
from torch import Tensor

from app.core.oracles import Oracle
from models.attacks.core.remote import OracleUnavailable
from workers import codecs

MAX_ANSWER, MAX_CLASSES = 16 << 20, 100_000
PAUSE, MAX_PAUSE = 0.5, 60.0
"""Seconds before the first retry, doubled each time, and the longest Retry-After that is honoured."""


class OracleClient:
    """Raises OracleUnavailable with the reason when all retries of a batch failed. `tick` may raise to stop the job."""

    def __init__(self, oracle: Oracle, tick: Callable[[], None] = lambda: None):
        self.oracle, self.tick = oracle, tick
        headers = {"Accept": "application/json", "User-Agent": "anamorph"}
        if oracle.token:
            headers["Authorization"] = f"Bearer {oracle.token.get_secret_value()}"
        # trust_env=False: no proxies and no .netrc, so the environment cannot redirect requests
        self.http = httpx.Client(
            headers=headers, timeout=oracle.timeout_seconds, follow_redirects=False, trust_env=False
        )
        self._next = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (n, C, H, W) -> float32 (n, K) or int64 (n,)."""
        parts = [self._batch(part) for part in images.split(self.oracle.batch)]
        return torch.cat(parts)

    def _batch(self, images: Tensor) -> Tensor:
        why = ""
        for attempt in range(self.oracle.retries + 1):
            self._wait()
            pause = PAUSE * 2**attempt
            try:
                status, after, body = self._post(images)
            except httpx.HTTPError as error:
                why = f"it could not be reached ({type(error).__name__})"
            else:
                if status == 200:
                    return read_answer(body, len(images), self.oracle)
                why = f"it answered with status {status}"
                if status != 429 and status < 500:  # a redirect or refusal: a retry would not change it
                    break
                pause = max(pause, min(after, MAX_PAUSE))
            if attempt < self.oracle.retries:
                self._sleep(pause)
        raise OracleUnavailable(f"the oracle gives no more answers: {why}")

    def _post(self, images: Tensor) -> tuple[int, float, bytes]:
        """Status, seconds of Retry-After, and the body. Raises OracleUnavailable for a body over MAX_ANSWER bytes."""
        with self.http.stream("POST", self.oracle.url, **outgoing(images, self.oracle.send)) as answer:
            body = bytearray()
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > MAX_ANSWER:
                    raise OracleUnavailable(f"the oracle's answer is longer than {MAX_ANSWER} bytes")
            after = answer.headers.get("retry-after", "")
            return answer.status_code, float(after) if after.isdecimal() else 0.0, bytes(body)

    def _wait(self) -> None:
        """Waits until the rate limit of the oracle allows another request."""
        self.tick()
        if self.oracle.per_second:
            self._sleep(max(0.0, self._next - time.monotonic()))
            self._next = max(self._next, time.monotonic()) + 1 / self.oracle.per_second

    def _sleep(self, seconds: float) -> None:
        """Sleeps in short steps, so that the job can be stopped."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.tick()
            time.sleep(min(left, 0.25))


def outgoing(images: Tensor, send: str) -> dict[str, Any]:
    """The request body: `png` is multipart with a field `image` for each; `npy` is one uint8 array (n, C, H, W)."""
    if send == "npy":
        file = io.BytesIO()
        np.save(file, images.numpy(), allow_pickle=False)
        return {"content": file.getvalue(), "headers": {"Content-Type": "application/x-npy"}}
    files = codecs.encode_png(images.numpy())
    return {"files": [("image", (f"{index}.png", file, "image/png")) for index, file in enumerate(files)]}


def read_answer(body: bytes, count: int, oracle: Oracle) -> Tensor:
    """Reads JSON {"scores": [[...]]}, {"labels": [...]}, or an answer of our classify. Raises OracleUnavailable."""
    try:
        outputs = _read(json.loads(body), oracle)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError):
        outputs = None
    if outputs is None or len(outputs) != count:
        raise OracleUnavailable(
            f"the oracle's answer is not understood: {oracle.answers} of {count} images were expected"
        )
    if outputs.ndim == 2 and (outputs.shape[1] < 2 or (oracle.classes and outputs.shape[1] != len(oracle.classes))):
        raise OracleUnavailable(
            f"the oracle gives {outputs.shape[1]} scores for each image, which does not fit its classes"
        )
    return outputs


def _read(answer: dict[str, Any], oracle: Oracle) -> Tensor:
    if oracle.answers == "labels":
        return torch.tensor([_label(label, oracle) for label in _labels(answer)], dtype=torch.int64)
    if "scores" in answer:
        return torch.tensor(answer["scores"], dtype=torch.float32)
    rows = [{entry["index"]: entry["probability"] for entry in row["predictions"]} for row in _rows(answer)]
    width = len(oracle.classes or ()) or min(max(max(row) for row in rows), MAX_CLASSES - 1) + 1
    return torch.tensor([[row.get(index, 0.0) for index in range(width)] for row in rows], dtype=torch.float32)


def _rows(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an answer of classify: one image stands at the top level, several in `data`."""
    return answer.get("data", [answer])


def _labels(answer: dict[str, Any]) -> list[Any]:
    return answer["labels"] if "labels" in answer else [row["predictions"][0]["label"] for row in _rows(answer)]


def _label(label: Any, oracle: Oracle) -> int:
    if isinstance(label, str):
        return oracle.classes.index(label)
    if isinstance(label, bool) or not 0 <= int(label) < len(oracle.classes):
        raise ValueError("no class")
    return int(label)
