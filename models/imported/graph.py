"""A graph that came as ONNX, run node by node in torch, so that it can be differentiated like any network."""

from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.capabilities import Classifies, Regresses, Segments
from models.imported.base import Imported, ImportedConfig
from models.imported.onnx_ops import OPS
from models.types import ConfigError, ModelError

Output = Literal["logits", "probabilities"]


class Node(BaseModel):
    """One operator. Names are those of the file; an empty one is an input left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = {}


class Drawing(BaseModel):
    """The graph itself: it lies among the weights as the JSON text of this."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: tuple[Node, ...]
    tensors: tuple[str, ...]
    """Names of the constants; the weights hold them as t0, t1 ..."""
    input: str
    output: str
    opset: int = Field(ge=1, le=1000)


class GraphConfig(ImportedConfig):
    """How images come to the graph and how its answer reads."""

    layout: Literal["nchw", "nhwc"] = "nchw"
    gives: Output = "logits"
    single: bool = Field(False, description="The graph takes one image at a time.")


class Graph(Imported):
    """What the three kinds below share. The nodes are known once `serve` has been given the weights."""

    Config = GraphConfig

    def load_for_serving(self, state: dict[str, Tensor]) -> Self:
        try:
            self.drawing = Drawing.model_validate_json(bytes(state["graph"].numpy()))
            constants = [state[f"t{index}"] for index in range(len(self.drawing.tensors))]
        except (KeyError, ValueError):
            raise ModelError("these are not the weights of a graph", field="file") from None
        if unknown := unknown_operators(node.op for node in self.drawing.nodes):
            raise ConfigError(f"the graph uses {', '.join(unknown)}, which cannot be differentiated here", field="file")
        self.register_buffer("graph", state["graph"])
        for index, constant in enumerate(constants):
            self.register_buffer(f"t{index}", constant)
        self.last = {name: index for index, node in enumerate(self.drawing.nodes) for name in node.inputs}
        return self.eval()

    def answer(self, images: Tensor) -> Tensor:
        """(b, c, h, w) in [0, 1] -> what the graph gives, as float32."""
        if self.config.single and len(images) > 1:
            return torch.cat([self.answer(image) for image in images.split(1)])
        x = self.normalised(images)
        return self.run(x if self.config.layout == "nchw" else x.permute(0, 2, 3, 1)).float()

    def run(self, x: Tensor) -> Tensor:
        drawing = self.drawing
        values: dict[str, Any] = {name: getattr(self, f"t{index}") for index, name in enumerate(drawing.tensors)}
        values[drawing.input], values[""] = x, None
        for index, node in enumerate(drawing.nodes):
            attributes = {**node.attributes, "opset": drawing.opset, "outputs": len(node.outputs)}
            if "constant" in attributes:
                attributes["value"] = values[attributes["constant"]]
            found = OPS[node.op]([values[name] for name in node.inputs], attributes)
            values.update(zip(node.outputs, found if isinstance(found, list) else [found], strict=False))
            for name in node.inputs:  # what nobody needs any more goes at once
                if self.last[name] == index and name not in ("", drawing.output):
                    values.pop(name, None)
        return values[drawing.output]


class GraphClassifier(Graph, Classifies):
    """Probabilities are taken back to logits: log p, whose softmax is p."""

    name: ClassVar[str] = "graph_classifier"
    summary = "A classifier that came as ONNX."

    def logits(self, images: Tensor) -> Tensor:
        found = self.answer(images).flatten(1)
        return as_logits(found) if self.config.gives == "probabilities" else found


class GraphEstimator(Graph, Regresses):
    """One number for each image."""

    name: ClassVar[str] = "graph_estimator"
    summary = "A regressor that came as ONNX."

    def estimate(self, images: Tensor) -> Tensor:
        return self.answer(images).flatten()


class GraphSegmenter(Graph, Segments):
    """A class for each pixel; maps of another size than the images are scaled to it."""

    name: ClassVar[str] = "graph_segmenter"
    summary = "A segmenter that came as ONNX."

    def pixel_logits(self, images: Tensor) -> Tensor:
        return per_pixel(self.answer(images), images, self.config, len(self.data.classes))


def per_pixel(found: Tensor, images: Tensor, config: GraphConfig, classes: int) -> Tensor:
    """An answer (b, k, h', w'), or with k last, as logits (b, k, h, w) of the images' pixels."""
    if config.layout == "nhwc" and found.shape[1] != classes:
        found = found.permute(0, 3, 1, 2)
    if found.shape[2:] != images.shape[2:]:
        found = F.interpolate(found, images.shape[2:], mode="bilinear", align_corners=False)
    return as_logits(found) if config.gives == "probabilities" else found


def as_logits(probabilities: Tensor) -> Tensor:
    """log p, finite where p is 0."""
    return probabilities.clamp_min(1e-30).log()


def unknown_operators(names) -> list[str]:
    """Operators that are not in the table, each once, in alphabetical order."""
    return sorted(set(names) - OPS.keys())
