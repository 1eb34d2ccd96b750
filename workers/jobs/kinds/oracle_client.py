"""Asking an oracle over HTTP: a batch of images goes out, scores or labels come back; no redirects, no long answers."""

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
PAUSE, LONGEST = 0.5, 60.0
"""Seconds before the first repetition, doubled each time, and the longest that an oracle may ask us to wait."""


class OracleClient:
    """Raises OracleUnavailable, with the reason, when a batch cannot be answered for good."""

    def __init__(self, oracle: Oracle, tick: Callable[[], None] = lambda: None):
        self.oracle, self.tick = oracle, tick
        headers = {"Accept": "application/json", "User-Agent": "anamorph"}
        if oracle.token:
            headers["Authorization"] = f"Bearer {oracle.token.get_secret_value()}"
        # no proxies, no .netrc: nothing from the environment says where requests go
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
                if status != 429 and status < 500:  # a redirect or a refusal: the same request would meet the same
                    break
                pause = max(pause, min(after, LONGEST))
            if attempt < self.oracle.retries:
                self._sleep(pause)
        raise OracleUnavailable(f"the oracle gives no more answers: {why}")

    def _post(self, images: Tensor) -> tuple[int, float, bytes]:
        """Status, seconds of Retry-After, and the body, which is read only as far as it may be long."""
        with self.http.stream("POST", self.oracle.url, **outgoing(images, self.oracle.send)) as answer:
            body = bytearray()
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > MAX_ANSWER:
                    raise OracleUnavailable(f"the oracle's answer is longer than {MAX_ANSWER} bytes")
            after = answer.headers.get("retry-after", "")
            return answer.status_code, float(after) if after.isdecimal() else 0.0, bytes(body)

    def _wait(self) -> None:
        """Keeps to the rate."""
        self.tick()
        if self.oracle.per_second:
            self._sleep(max(0.0, self._next - time.monotonic()))
            self._next = max(self._next, time.monotonic()) + 1 / self.oracle.per_second

    def _sleep(self, seconds: float) -> None:
        """In short pieces, so that the job can be stopped meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.tick()
            time.sleep(min(left, 0.25))


def outgoing(images: Tensor, send: str) -> dict[str, Any]:
    """The body: `png` is multipart with a field `image` for each; `npy` is one uint8 array (n, C, H, W)."""
    if send == "npy":
        file = io.BytesIO()
        np.save(file, images.numpy(), allow_pickle=False)
        return {"content": file.getvalue(), "headers": {"Content-Type": "application/x-npy"}}
    files = codecs.encode_png(images.numpy())
    return {"files": [("image", (f"{index}.png", file, "image/png")) for index, file in enumerate(files)]}


def read_answer(body: bytes, count: int, oracle: Oracle) -> Tensor:
    """JSON {"scores": [[...]]}, {"labels": [...]}, or what this service's classify answers.

    Raises OracleUnavailable.
    """
    try:
        found = _read(json.loads(body), oracle)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError):
        found = None
    if found is None or len(found) != count:
        raise OracleUnavailable(
            f"the oracle's answer is not understood: {oracle.answers} of {count} images were expected"
        )
    if found.ndim == 2 and (found.shape[1] < 2 or (oracle.classes and found.shape[1] != len(oracle.classes))):
        raise OracleUnavailable(
            f"the oracle gives {found.shape[1]} scores for each image, which does not fit its classes"
        )
    return found


def _read(answer: dict[str, Any], oracle: Oracle) -> Tensor:
    if oracle.answers == "labels":
        return torch.tensor([_label(label, oracle) for label in _labels(answer)], dtype=torch.int64)
    if "scores" in answer:
        return torch.tensor(answer["scores"], dtype=torch.float32)
    rows = [{entry["index"]: entry["probability"] for entry in row["predictions"]} for row in _rows(answer)]
    width = len(oracle.classes or ()) or min(max(max(row) for row in rows), MAX_CLASSES - 1) + 1
    return torch.tensor([[row.get(index, 0.0) for index in range(width)] for row in rows], dtype=torch.float32)


def _rows(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """What classify says: of one image at the top, of several in `data`."""
    return answer.get("data", [answer])


def _labels(answer: dict[str, Any]) -> list[Any]:
    return answer["labels"] if "labels" in answer else [row["predictions"][0]["label"] for row in _rows(answer)]


def _label(given: Any, oracle: Oracle) -> int:
    if isinstance(given, str):
        return oracle.classes.index(given)
    if isinstance(given, bool) or not 0 <= int(given) < len(oracle.classes):
        raise ValueError("no class")
    return int(given)
