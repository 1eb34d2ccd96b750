"""The job kind "export": a part of a published model as an ONNX file beside its weights, checked against the model."""

from app.core.errors import UnsupportedOperation
from models.export import graph
from models.types import InputError
from workers.jobs.job import Result, RunningJob
from workers.onnx.exporter import keep_part
from workers.store.models import load_model


def run_export(job: RunningJob) -> Result:
    """Exports `spec["part"]` of the model `spec["model"]` (a digest), and keeps file and facts with the model."""
    digest, part = job.spec["model"], job.spec.get("part")
    model = load_model(digest)
    try:
        found = graph(model, part)
    except InputError as error:
        raise UnsupportedOperation(error.detail, field="part", remedy=error.remedy) from None
    job.stop_if_asked()
    _, facts = keep_part(digest, found, default=part is None)
    return Result({**facts, "model": job.spec.get("name"), "version": digest})
