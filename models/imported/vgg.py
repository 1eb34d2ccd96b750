"""VGG (Simonyan & Zisserman 2015) of any depth, for any image size, with torchvision's names of the weights."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from models.capabilities import Classifies
from models.imported.base import Imported, ImportedConfig
from models.types import DataSpec, ModelError

POOL = 0
Width = Annotated[int, Field(ge=1, le=65536)]


class VggConfig(ImportedConfig):
    """`plan` lists the channels of each convolution; 0 stands for 2x2 max pooling."""

    plan: tuple[Annotated[int, Field(ge=0, le=8192)], ...] = Field(min_length=1, max_length=64)
    hidden: tuple[Width, Width] = (4096, 4096)
    grid: int = Field(7, ge=1, le=64, description="Side of the grid that the last maps are averaged to.")
    batch_norm: bool = False


class VGG(Imported, Classifies):
    """The last maps are averaged to a fixed grid, so that the weights do not depend on the image size."""

    name = "vgg"
    summary = "VGG classifiers with torchvision's weights."
    Config = VggConfig

    def __init__(self, config: VggConfig, data: DataSpec):
        super().__init__(config, data)
        layers, before = [], data.channels
        for width in config.plan:
            if width == POOL:
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers.append(nn.Conv2d(before, width, 3, padding=1))
            layers += [nn.BatchNorm2d(width)] if config.batch_norm else []
            layers.append(nn.ReLU())
            before = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((config.grid, config.grid))
        first, second = config.hidden
        self.classifier = nn.Sequential(
            nn.Linear(before * config.grid**2, first),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(first, second),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(second, len(data.classes)),
        )

    def logits(self, images: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(self.normalised(images))).flatten(1))


def read_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The `config`, `channels` and `classes` of VGG weights with these names and shapes. Raises ModelError.

    The layer numbers give the plan: where one more number than for an activation is skipped, there was a pooling.
    """
    convolutions = {}
    for name, shape in shapes.items():
        kind, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        if kind not in ("features", "classifier") or not number.isdecimal():
            raise _not_vgg(f"the file has the tensor {name}")
        if kind == "features" and name.endswith(".weight") and len(shape) == 4:
            convolutions[int(number)] = shape
    dense = [shapes.get(f"classifier.{number}.weight", ()) for number in (0, 3, 6)]
    if not convolutions or any(len(shape) != 2 for shape in dense):
        raise _not_vgg("the file lacks features.N.weight or classifier.0, .3 and .6.weight")
    batch_norm = any(name.endswith("running_mean") for name in shapes)
    numbers, plan = sorted(convolutions), []
    for number, following in zip(numbers, [*numbers[1:], None], strict=True):
        plan.append(convolutions[number][0])
        if following is None or following > number + (3 if batch_norm else 2):
            plan.append(POOL)
    grid = math.isqrt(dense[0][1] // convolutions[numbers[-1]][0])
    config = {"plan": plan, "hidden": [dense[0][0], dense[1][0]], "grid": max(grid, 1), "batch_norm": batch_norm}
    return {"config": config, "channels": convolutions[numbers[0]][1], "classes": dense[2][0]}


def _not_vgg(reason: str) -> ModelError:
    return ModelError(
        f"only VGG weights, with torchvision's names, can be imported as safetensors; {reason}",
        field="file",
        remedy="export other networks as ONNX",
    )
