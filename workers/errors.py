"""The one map from an exception to the error that a client sees."""

import errno
import sys

from sqlalchemy import exc

from app.core import errors
from app.core.errors import AnamorphError
from app.core.store.blobs import FULL

UNREACHABLE = (OSError, exc.OperationalError, exc.InterfaceError, exc.TimeoutError)


def error_of(exception: BaseException) -> AnamorphError:
    """The error that a client sees for `exception`; details stay in the log."""
    model_error = getattr(sys.modules.get("models.types"), "ModelError", ())  # whoever raises one has imported it
    if isinstance(exception, AnamorphError):
        return exception
    if isinstance(exception, model_error):
        kind = errors.CODES.get(exception.code, errors.InvalidRequest)
        return kind(exception.detail, field=exception.field, remedy=exception.remedy)
    if _out_of_memory(exception):
        return errors.OutOfMemory(
            "The worker ran out of memory.", remedy="Use smaller images, a smaller batch or a smaller network."
        )
    if isinstance(exception, OSError) and exception.errno in FULL:
        return errors.StorageFull("There is no space left on the worker.", remedy="Free disk space, then try again.")
    if isinstance(exception, UNREACHABLE) and getattr(exception, "errno", None) != errno.ENOENT:
        return errors.Unavailable("The worker could not reach its storage or database.", retry_after=5)
    return errors.Internal("Something went wrong inside the worker; its log has the details.")


def _out_of_memory(exception: BaseException) -> bool:
    if isinstance(exception, MemoryError) or type(exception).__name__ == "OutOfMemoryError":
        return True
    text = str(exception).lower()
    return isinstance(exception, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
