"""The job kind "dataset": imports an upload, a built-in dataset, or the outputs of a model for another dataset."""

from typing import Any

from sqlalchemy import Connection

from app.core.store.database import reading
from app.core.store.datasets import find
from workers.data.builtin_rows import BuiltinSource
from workers.data.importing import Origin, built_in, name_conflict, open_upload, read_source, register
from workers.data.publish import Published
from workers.data.rows import Options, Report, Source
from workers.jobs.job import Result, RunningJob


def run_dataset(job: RunningJob) -> Result:
    """Makes the dataset `spec["name"]` from `spec["upload"]`, the built-in `spec["builtin"]`, or a model's outputs."""
    spec, report = job.spec, Report()
    name = spec.get("name") or spec.get("builtin")
    with reading(job.bind) as conn:
        if find(conn, job.tenant, name):
            raise name_conflict(name)
    options = Options.read(spec)
    source, origin = open_rows(job, options, report)
    published = read_source(source, options, report, job.progress, job.stop_if_asked)

    def also(conn: Connection) -> None:
        register(conn, job.tenant, name, published, origin)

    return Result(result_of(name, published, report), also)


def open_rows(job: RunningJob, options: Options, report: Report) -> tuple[Source, Origin]:
    """The source in the spec, to be read row by row."""
    if builtin := job.spec.get("builtin"):
        return BuiltinSource(builtin, options.size), built_in(builtin)
    if "model" in job.spec:
        from workers.jobs.kinds.derived_rows import open_derived

        return open_derived(job)
    return open_upload(job.spec, report), Origin("upload")


def result_of(name: str, published: Published, report: Report) -> dict[str, Any]:
    columns = published.facts["columns"]
    return {
        "dataset": name,
        "digest": published.digest,
        "facts": published.facts,
        "layout": published.facts["layout"],
        "classes": published.facts["classes"],
        "count": sum(max(side.values(), default=0) for side in columns.values()),
        "bytes": published.bytes,
        "refused": report.refused,
        "refused_count": report.refused_count,
        "warnings": report.warnings,
    }
