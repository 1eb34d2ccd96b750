"""Every error a client can see. An error is a status, a stable code, a sentence and a remedy; it crosses processes as a
problem (RFC 9457) and comes back as the same class.

AnamorphError
├─ InvalidRequest · InvalidImage · InvalidDataset · InvalidConfig · Diverged · IdempotencyMismatch      422
├─ Unauthorized 401 · Forbidden 403 · NotFound 404 · MethodNotAllowed 405 · NotAcceptable 406
├─ Conflict · UnsupportedOperation · ModelNotReady                                           409
├─ TooLarge 413 · UnsupportedMedia 415 · QuotaExceeded · RateLimited 429
├─ Overloaded · Unavailable · WorkerLost · OutOfMemory 503 · DeadlineExceeded 504 · StorageFull 507
└─ AttemptsExhausted · Internal 500
"""

from typing import Any, ClassVar


class AnamorphError(Exception):
    """`field` is a JSON pointer or parameter name; `remedy` says what to do; `extra` become members of the problem."""

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
    status, code, title = 422, "invalid-request", "The request is malformed"


class InvalidImage(AnamorphError):
    status, code, title = 422, "invalid-image", "The image cannot be read"


class InvalidDataset(AnamorphError):
    status, code, title = 422, "invalid-dataset", "The dataset cannot be used"


class InvalidConfig(AnamorphError):
    status, code, title = 422, "invalid-config", "The configuration is not valid"


class Diverged(AnamorphError):
    status, code, title = 422, "diverged", "The training diverged"


class IdempotencyMismatch(AnamorphError):
    status, code, title = 422, "idempotency-mismatch", "The idempotency key was used for another request"


class Unauthorized(AnamorphError):
    status, code, title = 401, "unauthorized", "A valid API key is needed"


class Forbidden(AnamorphError):
    status, code, title = 403, "forbidden", "The API key does not allow this"


class NotFound(AnamorphError):
    status, code, title = 404, "not-found", "There is no such thing"


class MethodNotAllowed(AnamorphError):
    status, code, title = 405, "method-not-allowed", "The address does not take this method"


class NotAcceptable(AnamorphError):
    status, code, title = 406, "not-acceptable", "None of the accepted media types can be produced"


class Conflict(AnamorphError):
    status, code, title = 409, "conflict", "The present state does not allow this"


class UnsupportedOperation(AnamorphError):
    status, code, title = 409, "unsupported-operation", "The model cannot do this"


class ModelNotReady(AnamorphError):
    status, code, title = 409, "model-not-ready", "The model is not ready yet"


class TooLarge(AnamorphError):
    status, code, title = 413, "too-large", "The request is too large"


class UnsupportedMedia(AnamorphError):
    status, code, title = 415, "unsupported-media", "The media type is not supported"


class QuotaExceeded(AnamorphError):
    status, code, title = 429, "quota-exceeded", "The quota is used up"


class RateLimited(AnamorphError):
    status, code, title = 429, "rate-limited", "Too many requests"


class Overloaded(AnamorphError):
    status, code, title = 503, "overloaded", "The service is busy"


class Unavailable(AnamorphError):
    status, code, title = 503, "unavailable", "A part of the service cannot be reached"


class OracleSilent(AnamorphError):
    status, code, title = 502, "oracle-silent", "The oracle does not answer"


class WorkerLost(AnamorphError):
    status, code, title = 503, "worker-lost", "The worker disappeared"


class OutOfMemory(AnamorphError):
    status, code, title = 503, "out-of-memory", "The worker ran out of memory"


class DeadlineExceeded(AnamorphError):
    status, code, title = 504, "deadline-exceeded", "The deadline passed"


class StorageFull(AnamorphError):
    status, code, title = 507, "storage-full", "There is no space left to store this"


class AttemptsExhausted(AnamorphError):
    status, code, title = 500, "attempts-exhausted", "The job failed too often"


class Internal(AnamorphError):
    """An unforeseen error: the traceback goes to the log, the client gets this."""


CODES: dict[str, type[AnamorphError]] = {error.code: error for error in AnamorphError.__subclasses__()}


def from_problem(problem: dict[str, Any]) -> AnamorphError:
    """The error that `problem` was made from; an unknown code becomes `Internal`."""
    known = {"type", "title", "status", "detail", "code", "remedy", "retry_after", "errors"}
    errors = problem.get("errors") or [{}]
    return CODES.get(problem.get("code", ""), Internal)(
        problem.get("detail", ""),
        field=errors[0].get("pointer"),
        remedy=problem.get("remedy"),
        retry_after=problem.get("retry_after"),
        **{key: value for key, value in problem.items() if key not in known},
        **({"errors": errors} if len(errors) > 1 else {}),
    )
