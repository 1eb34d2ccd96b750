"""The job kind "export": writes a part of a published model as an ONNX file and checks it against the model."""

from app.core.errors import UnsupportedOperation
from models.export import graph
from models.types import InputError
from workers.jobs.job import Result, RunningJob
from workers.onnx.exporter import store_part
from workers.store.models import load_model


def run_export(job: RunningJob) -> Result:
    """Exports `spec["part"]` of the model `spec["model"]` (a digest); stores file and facts with the model."""
    digest, part = job.spec["model"], job.spec.get("part")
    model = load_model(digest)
    try:
        part_graph = graph(model, part)
    except InputError as error:
        raise UnsupportedOperation(error.detail, field="part", remedy=error.remedy) from None
    job.stop_if_asked()
    _, facts = store_part(digest, part_graph, default=part is None)
    return Result({**facts, "model": job.spec.get("name"), "version": digest})
