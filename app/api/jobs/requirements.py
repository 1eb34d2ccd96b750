"""What a job requires of the model and the dataset that it names, checked before it is accepted."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from app.core.catalog.builtins import Builtin
from app.core.catalog.describe import joined
from app.core.errors import InvalidDataset, NotFound, UnsupportedOperation
from app.core.store import datasets as dataset_rows
from app.core.store import models as model_rows
from app.core.store.database import reading
from app.core.store.models import ResolvedModel

Data = dataset_rows.Row | Builtin
WAYS = {
    "labels": "a folder for each class, or a labels.csv with a column label",
    "targets": "a labels.csv with a column target, or an npz with targets",
    "input": "the folders input/ and target/",
    "target": "the folders input/ and target/",
    "a": "the folders a/ and b/",
    "b": "the folders a/ and b/",
    "masks": "the folders images/ and masks/",
    "boxes": "a boxes.csv",
}
"""What an upload must contain to have a column."""


def require_model(tenant: str, reference: str, needs: Iterable[str], job: str, field: str = "/model") -> ResolvedModel:
    """The exact version. Raises NotFound, or UnsupportedOperation when it lacks a capability that `job` needs."""
    with reading() as conn, _named(field):
        model = model_rows.resolve(conn, tenant, reference)
    missing = sorted(set(needs) - set(model.capabilities))
    if missing:
        raise UnsupportedOperation(
            f"{job} needs a model with {joined(missing)}; {model.name} is a {model.family}.",
            field=field,
            remedy="GET /v1/families lists the capabilities of each family.",
        )
    return model


def require_dataset(tenant: str, name: str, columns: Iterable[str], job: str) -> Data:
    """The dataset, imported or built in. Raises NotFound, or InvalidDataset when it lacks a column."""
    with reading() as conn, _named("/dataset"):
        data = dataset_rows.get(conn, tenant, name)
    has = columns_of(data)
    missing = [column for column in columns if column not in has]
    if missing:
        detail = f"{job} needs {joined(missing)}; dataset {name} has {joined(has)}."
        ways = list(dict.fromkeys(WAYS[column] for column in missing if column in WAYS))
        raise InvalidDataset(
            detail, field="/dataset", remedy=f"Upload a dataset with {joined(ways)}." if ways else None
        )
    return data


def facts_of(data: Data) -> dict[str, Any]:
    """The facts of a dataset, imported or built in."""
    return data.facts if isinstance(data, Builtin) else data["facts"]


def columns_of(data: Data) -> Collection[str]:
    """The training columns of a dataset, imported or built in."""
    return facts_of(data)["columns"].get("train", {})


def check_size(tenant: str, model: ResolvedModel, data: Data, any_size: bool = False) -> None:
    """Raises InvalidDataset when the images have another size than the model.

    With `any_size` only the number of channels has to be the same.
    """
    with reading() as conn:
        card = model_rows.get(conn, tenant, model.exact)["card"].get("data", {})
    size, required = _size(facts_of(data)), _size(card)
    if None not in required and (size[0] != required[0] or (size != required and not any_size)):
        raise InvalidDataset(
            f"The images of the dataset are {_describe(size)}; {model.name} takes {_describe(required)}.",
            field="/dataset",
            remedy=f"Import the dataset again with image_size={required[1]}x{required[2]}&channels={required[0]}.",
        )


@contextmanager
def _named(field: str) -> Iterator[None]:
    """Adds the pointer of the field to a NotFound."""
    try:
        yield
    except NotFound as error:
        raise NotFound(error.detail, field=field, remedy=error.remedy) from None


def _size(facts: dict[str, Any]) -> tuple[int | None, ...]:
    return tuple(facts.get(name) for name in ("channels", "height", "width"))


def _describe(size: tuple[int | None, ...]) -> str:
    return f"{size[1]}x{size[2]} with {size[0]} channel{'s' * (size[0] != 1)}"
