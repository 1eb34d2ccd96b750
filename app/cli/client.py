"""An HTTP client of the service: requests with retries, and jobs followed to their end. Raises problems as errors."""

import json
import os
import time
import uuid
from collections.abc import Iterator
from typing import Any, Self

import httpx

from app.cli.service_lock import running
from app.core.errors import AnamorphError, from_problem
from app.core.settings import settings

DEFAULT_URL = "http://127.0.0.1:8000"
ENDINGS = {"succeeded", "failed", "canceled"}
ATTEMPTS = 4


class Unreachable(Exception):
    """No service answers at the address (exit status 3)."""


class Client:
    """`url` and `key` default to those of the service on the data folder, else port 8000 of this machine."""

    def __init__(self, url: str | None = None, key: str | None = None):
        self.url = (url or (running(settings().data_dir) or {}).get("url") or DEFAULT_URL).rstrip("/")
        key = key or _saved_key()
        headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=httpx.Timeout(120, connect=5))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The answer. Raises problems as errors. Retries when the service is busy and a repetition is safe."""
        headers = options.pop("headers", {})
        if method == "POST" and path in ("/v1/trainings", "/v1/datasets"):
            headers |= {"Idempotency-Key": str(uuid.uuid4())}  # one key for all attempts: never two jobs
        for attempt in range(ATTEMPTS):
            last = attempt == ATTEMPTS - 1
            try:
                answer = self.http.request(method, path, headers=headers, **options)
            except httpx.ConnectError as error:
                raise Unreachable(
                    f"No service answers at {self.url}. Start one with `anamorph up`, or set --url."
                ) from error
            except httpx.TransportError as error:
                if last or (method not in ("GET", "HEAD") and "Idempotency-Key" not in headers):
                    raise Unreachable(f"The connection to {self.url} broke: {type(error).__name__}. Retry.") from error
                time.sleep(0.5)
                continue
            if answer.status_code in (429, 503) and not last:
                time.sleep(min(float(answer.headers.get("Retry-After", 1)), 10))
                continue
            if answer.is_error:
                raise problem_of(answer)
            return answer
        raise AssertionError("the last attempt returns or raises")

    def get(self, path: str, **params: Any) -> Any:
        return self.ask("GET", path, params=params).json()

    def follow(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job whenever it changes, until it ends; a broken stream is continued."""
        last = ""
        while True:
            job = self.get(f"/v1/jobs/{job_id}")
            yield job
            if job["status"] in ENDINGS:
                return
            try:
                for number, kind, data in self._events(job_id, last):
                    last = number
                    if kind == "progress":
                        yield job | {"progress": data, "status": "running"}
                    elif kind != "metrics":
                        break  # the state changed: read the job
            except httpx.TransportError:
                time.sleep(1)

    def measured(self, name: str) -> dict[str, Any]:
        """The model, once the job that measures it has ended."""
        model = self.get(f"/v1/models/{name}")
        measurement = model["measurement"] or {}
        if measurement.get("status") != "measuring":
            return model
        for _ in self.follow(measurement["job"].rsplit("/", 1)[-1]):
            pass
        return self.get(f"/v1/models/{name}")

    def _events(self, job_id: str, last: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(id, kind, data) of each server-sent event after `last`."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        with self.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                name, _, value = line.partition(":")
                if line and name:
                    fields[name] = value.removeprefix(" ")
                elif not line and "data" in fields:
                    last = fields.get("id", last)
                    yield last, fields.get("event", "message"), json.loads(fields["data"])
                    fields = {}

    def wait(self, job_id: str) -> dict[str, Any]:
        """The finished job. Raises the error of a failed job."""
        *_, job = self.follow(job_id)
        return succeeded(job)


def succeeded(job: dict[str, Any]) -> dict[str, Any]:
    if job["status"] == "succeeded":
        return job
    raise from_problem(job.get("error") or {"code": "conflict", "detail": f"The job was {job['status']}."})


def problem_of(answer: httpx.Response) -> AnamorphError:
    answer.read()
    try:
        body = answer.json()
    except ValueError:
        body = {}
    is_problem = isinstance(body, dict) and "code" in body
    return from_problem(
        body if is_problem else {"code": "internal", "detail": f"{answer.status_code} {answer.reason_phrase}"}
    )


def _saved_key() -> str | None:
    file = settings().data_dir / "key"
    return os.environ.get("ANAMORPH_KEY") or (file.read_text().strip() if file.exists() else None)
