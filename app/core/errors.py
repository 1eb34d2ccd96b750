"""Every error that a client can see: a status, a stable code, a sentence and a remedy.

An error crosses processes as a problem (RFC 9457) and comes back as the same class.

AnamorphError
├─ InvalidRequest · InvalidImage · InvalidDataset · InvalidConfig · Diverged · IdempotencyMismatch · TooLong  422
├─ Unauthorized 401 · Forbidden 403 · NotFound 404 · MethodNotAllowed 405 · NotAcceptable 406
├─ Conflict · UnsupportedOperation · ModelNotReady                                           409
├─ CrossSite 403 · RequestTimeout 408 · TooLarge 413 · UnsupportedMedia 415 · HeadersTooLarge 431
├─ QuotaExceeded · RateLimited 429 · ClientGone 499
├─ Overloaded · Unavailable · WorkerLost · OutOfMemory · StorageDamaged 503 · DeadlineExceeded 504 · StorageFull 507
└─ AttemptsExhausted · Internal 500
"""

from typing import Any, ClassVar


class AnamorphError(Exception):
    """`detail` says what is wrong and what is allowed, `remedy` what to do. Both are full sentences.

    `field` is a JSON pointer into the body or the name of a parameter; `extra` become members of the problem.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str = "",
        *,
        field: str | None = None,
        remedy: str | None = None,
        retry_after: float | None = None,
        **extra: Any,
    ):
        super().__init__(detail)
        self.detail, self.field, self.remedy, self.retry_after, self.extra = detail, field, remedy, retry_after, extra

    def problem(self) -> dict[str, Any]:
        body = {
            "type": f"/errors/{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail or self.title,
            "code": self.code,
        }
        if self.remedy:
            body["remedy"] = self.remedy
        if self.retry_after is not None:
            body["retry_after"] = self.retry_after
        if self.field is not None:
            body["errors"] = [{"pointer": self.field, "code": self.code, "detail": self.detail}]
        return body | self.extra


class InvalidRequest(AnamorphError):
    status, code, title = 422, "invalid-request", "Invalid request"


class InvalidImage(AnamorphError):
    status, code, title = 422, "invalid-image", "Invalid image"


class InvalidDataset(AnamorphError):
    status, code, title = 422, "invalid-dataset", "Invalid dataset"


class InvalidConfig(AnamorphError):
    status, code, title = 422, "invalid-config", "Invalid configuration"


class Diverged(AnamorphError):
    status, code, title = 422, "diverged", "Training diverged"


class IdempotencyMismatch(AnamorphError):
    status, code, title = 422, "idempotency-mismatch", "Idempotency key used for another request"


class TooLong(AnamorphError):
    status, code, title = 422, "too-long", "Takes too long to wait for"


class Unauthorized(AnamorphError):
    status, code, title = 401, "unauthorized", "Valid API key required"


class Forbidden(AnamorphError):
    status, code, title = 403, "forbidden", "Forbidden"


class CrossSite(AnamorphError):
    status, code, title = 403, "cross-site", "Origin or host not allowed"


class NotFound(AnamorphError):
    status, code, title = 404, "not-found", "Not found"


class MethodNotAllowed(AnamorphError):
    status, code, title = 405, "method-not-allowed", "Method not allowed"


class NotAcceptable(AnamorphError):
    status, code, title = 406, "not-acceptable", "Not acceptable"


class Conflict(AnamorphError):
    status, code, title = 409, "conflict", "Conflict with the current state"


class UnsupportedOperation(AnamorphError):
    status, code, title = 409, "unsupported-operation", "Unsupported operation"


class ModelNotReady(AnamorphError):
    status, code, title = 409, "model-not-ready", "Model not ready"


class RequestTimeout(AnamorphError):
    status, code, title = 408, "request-timeout", "Request too slow"


class TooLarge(AnamorphError):
    status, code, title = 413, "too-large", "Request too large"


class UnsupportedMedia(AnamorphError):
    status, code, title = 415, "unsupported-media", "Unsupported media type"


class HeadersTooLarge(AnamorphError):
    status, code, title = 431, "headers-too-large", "Request headers too large"


class QuotaExceeded(AnamorphError):
    status, code, title = 429, "quota-exceeded", "Quota exceeded"


class RateLimited(AnamorphError):
    status, code, title = 429, "rate-limited", "Too many requests"


class ClientGone(AnamorphError):
    status, code, title = 499, "client-gone", "The client left"


class Overloaded(AnamorphError):
    status, code, title = 503, "overloaded", "Service overloaded"


class Unavailable(AnamorphError):
    status, code, title = 503, "unavailable", "Service unavailable"


class OracleSilent(AnamorphError):
    status, code, title = 502, "oracle-silent", "Oracle does not answer"


class WorkerLost(AnamorphError):
    status, code, title = 503, "worker-lost", "Worker lost"


class OutOfMemory(AnamorphError):
    status, code, title = 503, "out-of-memory", "Out of memory"


class StorageDamaged(AnamorphError):
    """Stored bytes are missing or are not those that were stored; another attempt would read the same."""

    status, code, title = 503, "storage-damaged", "Stored files damaged"


class DeadlineExceeded(AnamorphError):
    status, code, title = 504, "deadline-exceeded", "Deadline exceeded"


class StorageFull(AnamorphError):
    status, code, title = 507, "storage-full", "Storage full"


class AttemptsExhausted(AnamorphError):
    status, code, title = 500, "attempts-exhausted", "Job failed repeatedly"


class Internal(AnamorphError):
    """An unexpected error: the traceback goes to the log, not to the client."""


CODES: dict[str, type[AnamorphError]] = {error.code: error for error in AnamorphError.__subclasses__()}


def from_problem(problem: dict[str, Any]) -> AnamorphError:
    """The error that `problem` was made from; an unknown code becomes `Internal`."""
    standard = {"type", "title", "status", "detail", "code", "remedy", "retry_after", "errors"}
    errors = problem.get("errors") or [{}]
    return CODES.get(problem.get("code", ""), Internal)(
        problem.get("detail", ""),
        field=errors[0].get("pointer"),
        remedy=problem.get("remedy"),
        retry_after=problem.get("retry_after"),
        **{key: value for key, value in problem.items() if key not in standard},
        **({"errors": errors} if len(errors) > 1 else {}),
    )
