"""Labels of a dataset as the classes of a model that may have learned from another."""

import torch
from torch import Tensor

from models.types import DataError, DataSpec


def classes_in(model: DataSpec, data: DataSpec) -> Tensor:
    """(K,): for each class of the dataset the model's index of it: by name, or by place when there are no names.

    Raises DataError when a class of the dataset is none of the model's.
    """
    mine, theirs = model.classes, data.classes
    if not mine or not theirs:
        return torch.arange(len(theirs or mine or ()) or 1000)
    missing = [name for name in theirs if name not in mine]
    if missing and len(mine) != len(theirs):
        raise DataError(
            f"the model knows no class {missing[0]!r}, which the dataset has",
            "dataset",
            "use a dataset with the classes that the model learned",
        )
    return torch.arange(len(theirs)) if missing else torch.tensor([mine.index(name) for name in theirs])
