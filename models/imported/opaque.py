"""Imported networks that another program runs: they answer, but have no gradient."""

from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from models import deadline
from models.capabilities import Classifies, Regresses, Segments
from models.imported.base import Imported
from models.imported.graph import GraphConfig, as_logits, per_pixel
from models.types import ModelError

RunFile = Callable[[np.ndarray], np.ndarray]
"""From the network's input to its output."""


class Opaque(Imported):
    """The file is stored in the state dict as bytes; the loader of the model sets `run_file`, which runs it."""

    Config = GraphConfig
    run_file: RunFile | None = None

    def load_for_serving(self, state: dict[str, Tensor]) -> Self:
        if list(state) != ["file"]:
            raise ModelError(
                f"the weights of an opaque model are one tensor named file; found {sorted(state)}", field="file"
            )
        self.register_buffer("file", state["file"])
        return self.eval()

    @property
    def content(self) -> bytes:
        return self.file.cpu().numpy().tobytes()

    def answer(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) in [0, 1] -> the network's output (b, ...) as float32, without gradient.

        Raises ModelError if the output has no row per image.
        """
        x = self.normalised(images).detach()
        x = (x if self.config.layout == "nchw" else x.permute(0, 2, 3, 1)).cpu().contiguous().numpy()
        parts = np.split(x, len(x)) if self.config.single else [x]
        with deadline.paused():  # another process computes
            outputs = [self.run_file(part) for part in parts]
        for output, part in zip(outputs, parts, strict=True):
            require(output.ndim > 0 and len(output) == len(part), output.shape, len(part))
            require(output.shape[1:] == outputs[0].shape[1:], output.shape, len(part))
        output = np.concatenate(outputs)
        return torch.from_numpy(output).float().to(images.device)


class OpaqueClassifier(Opaque, Classifies):
    """A classifier without gradient."""

    name: ClassVar[str] = "opaque_classifier"
    summary = "An imported ONNX classifier, run by ONNX Runtime: black-box attacks only."

    def logits(self, images: Tensor) -> Tensor:
        output = self.answer(images)
        require(output[0].numel() == len(self.data.classes or ()), output.shape, len(images))
        output = output.flatten(1)
        return as_logits(output) if self.config.gives == "probabilities" else output


class OpaqueEstimator(Opaque, Regresses):
    """A regressor without gradient."""

    name: ClassVar[str] = "opaque_estimator"
    summary = "An imported ONNX regressor, run by ONNX Runtime: black-box attacks only."

    def estimate(self, images: Tensor) -> Tensor:
        output = self.answer(images)
        require(output[0].numel() == 1, output.shape, len(images))
        return output.flatten()


class OpaqueSegmenter(Opaque, Segments):
    """A segmenter without gradient."""

    name: ClassVar[str] = "opaque_segmenter"
    summary = "An imported ONNX segmenter, run by ONNX Runtime: black-box attacks only."

    def pixel_logits(self, images: Tensor) -> Tensor:
        output, classes = self.answer(images), len(self.data.classes)
        axis = 1 if self.config.layout == "nchw" else 3
        require(output.ndim == 4 and classes in (output.shape[1], output.shape[axis]), output.shape, len(images))
        return per_pixel(output, images, self.config, classes)


def require(fits: bool, shape: Sequence[int], images: int) -> None:
    """Raises ModelError for an output whose shape does not fit, which can depend on the images."""
    if not fits:
        raise ModelError(
            f"the network's output for {images} images has the shape {'x'.join(map(str, shape)) or 'of one number'},"
            " which does not fit its card",
            field="file",
            remedy="export a network whose output has the same shape for all images",
        )
