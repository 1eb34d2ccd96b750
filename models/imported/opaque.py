"""A network that can only be asked: another program runs its file, and no gradient comes back."""

from collections.abc import Callable
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from models.capabilities import Classifies, Regresses, Segments
from models.imported.base import Imported
from models.imported.graph import GraphConfig, as_logits, per_pixel
from models.types import ModelError

Asked = Callable[[np.ndarray], np.ndarray]


class Opaque(Imported):
    """The file lies among the weights as bytes. Whoever loads the model attaches what runs it."""

    Config = GraphConfig
    asked: Asked | None = None

    def load_for_serving(self, state: dict[str, Tensor]) -> Self:
        if list(state) != ["file"]:
            raise ModelError("these are not the weights of such a model", field="file")
        self.register_buffer("file", state["file"])
        return self.eval()

    @property
    def content(self) -> bytes:
        return self.file.cpu().numpy().tobytes()

    def answer(self, images: Tensor) -> Tensor:
        """(b, c, h, w) in [0, 1] -> what the network gives, as float32, without a graph."""
        x = self.normalised(images).detach()
        x = (x if self.config.layout == "nchw" else x.permute(0, 2, 3, 1)).cpu().contiguous().numpy()
        parts = np.split(x, len(x)) if self.config.single else [x]
        found = np.concatenate([self.asked(part) for part in parts])
        return torch.from_numpy(found).float().to(images.device)


class OpaqueClassifier(Opaque, Classifies):
    """A classifier whose inside is not known here."""

    name: ClassVar[str] = "opaque_classifier"
    summary = "A classifier that came as ONNX and can only be asked."

    def logits(self, images: Tensor) -> Tensor:
        found = self.answer(images).flatten(1)
        return as_logits(found) if self.config.gives == "probabilities" else found


class OpaqueEstimator(Opaque, Regresses):
    """A regressor whose inside is not known here."""

    name: ClassVar[str] = "opaque_estimator"
    summary = "A regressor that came as ONNX and can only be asked."

    def estimate(self, images: Tensor) -> Tensor:
        return self.answer(images).flatten()


class OpaqueSegmenter(Opaque, Segments):
    """A segmenter whose inside is not known here."""

    name: ClassVar[str] = "opaque_segmenter"
    summary = "A segmenter that came as ONNX and can only be asked."

    def pixel_logits(self, images: Tensor) -> Tensor:
        return per_pixel(self.answer(images), images, self.config, len(self.data.classes))
