"""Imported ONNX graphs, run node by node in torch, so that they have gradients like any network."""

from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models import deadline
from models.capabilities import Classifies, Regresses, Segments
from models.imported.base import Imported, ImportedConfig
from models.imported.onnx_ops import OPS
from models.types import ConfigError, ModelError

Output = Literal["logits", "probabilities"]
SHAPE_INPUTS = {
    "ConstantOfShape": (0,), "Expand": (1,), "Pad": (1, 3), "Range": (0, 1, 2), "Reshape": (1,), "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,), "Unsqueeze": (1,), "Upsample": (1,),
} | dict.fromkeys(("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), (1,))  # fmt: skip
"""Operator -> the inputs whose values say which shape its output has."""


class Node(BaseModel):
    """One operator. `inputs` and `outputs` are tensor names of the file; an empty name is an omitted input."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = {}


class GraphSpec(BaseModel):
    """The graph without its numbers, stored in the state dict as JSON text (the tensor `graph`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: tuple[Node, ...]
    tensors: tuple[str, ...]
    """Names of the constants, which the state dict holds as t0, t1, ..."""
    input: str
    output: str
    opset: int = Field(ge=1, le=1000)


class GraphConfig(ImportedConfig):
    """The format of the graph's input and output. `gives`: what the output is."""

    layout: Literal["nchw", "nhwc"] = "nchw"
    gives: Output = "logits"
    single: bool = Field(False, description="The graph takes one image at a time.")


class Graph(Imported):
    """The base of the three kinds below. `load_for_serving` reads the nodes from the weights."""

    Config = GraphConfig

    def load_for_serving(self, state: dict[str, Tensor]) -> Self:
        try:
            self.spec = GraphSpec.model_validate_json(bytes(state["graph"].numpy()))
            constants = [state[f"t{index}"] for index in range(len(self.spec.tensors))]
        except (KeyError, ValueError):
            raise ModelError("the weights are not those of an imported graph", field="file") from None
        if unknown := unknown_operators(node.op for node in self.spec.nodes):
            raise ConfigError(f"no gradient is implemented for the operators {', '.join(unknown)}", field="file")
        if dependent := image_dependent_shapes(self.spec):
            raise ConfigError(f"the shape that {dependent[0]} gives depends on the values of the image", field="file")
        self.register_buffer("graph", state["graph"])
        for index, constant in enumerate(constants):
            self.register_buffer(f"t{index}", constant)
        self.last = {name: index for index, node in enumerate(self.spec.nodes) for name in node.inputs}
        return self.eval()

    def answer(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) in [0, 1] -> the output of the graph as float32."""
        if self.config.single and len(images) > 1:
            return torch.cat([self.answer(image) for image in images.split(1)])
        x = self.normalised(images)
        return self.run(x if self.config.layout == "nchw" else x.permute(0, 2, 3, 1)).float()

    def run(self, x: Tensor) -> Tensor:
        """The output for the input `x`. A tensor is freed after the last node that reads it.

        Shapes follow from the shape of `x` alone, so what a trial of one image costs, every image costs.
        """
        spec = self.spec
        values: dict[str, Any] = {name: getattr(self, f"t{index}") for index, name in enumerate(spec.tensors)}
        values[spec.input], values[""] = x, None
        for index, node in enumerate(spec.nodes):
            deadline.check()
            attributes = {**node.attributes, "opset": spec.opset, "outputs": len(node.outputs)}
            if "constant" in attributes:
                attributes["value"] = values[attributes["constant"]]
            outputs = OPS[node.op]([values[name] for name in node.inputs], attributes)
            values.update(zip(node.outputs, outputs if isinstance(outputs, list) else [outputs], strict=False))
            for name in node.inputs:
                if self.last[name] == index and name not in ("", spec.output):
                    values.pop(name, None)
        return values[spec.output]


class GraphClassifier(Graph, Classifies):
    """A classifier; probabilities p are turned into the logits log p, whose softmax is p."""

    name: ClassVar[str] = "graph_classifier"
    summary = "An imported ONNX classifier with gradients."

    def logits(self, images: Tensor) -> Tensor:
        output = self.answer(images).flatten(1)
        return as_logits(output) if self.config.gives == "probabilities" else output


class GraphEstimator(Graph, Regresses):
    """A regressor: one number per image."""

    name: ClassVar[str] = "graph_estimator"
    summary = "An imported ONNX regressor with gradients."

    def estimate(self, images: Tensor) -> Tensor:
        return self.answer(images).flatten()


class GraphSegmenter(Graph, Segments):
    """A segmenter: a class per pixel; an output of another size is scaled to the images' size."""

    name: ClassVar[str] = "graph_segmenter"
    summary = "An imported ONNX segmenter with gradients."

    def pixel_logits(self, images: Tensor) -> Tensor:
        return per_pixel(self.answer(images), images, self.config, len(self.data.classes))


def per_pixel(output: Tensor, images: Tensor, config: GraphConfig, classes: int) -> Tensor:
    """An output (b, k, h', w'), or (b, h', w', k), as logits (b, k, h, w) of the images' pixels."""
    if config.layout == "nhwc" and output.shape[1] != classes:
        output = output.permute(0, 3, 1, 2)
    if output.shape[2:] != images.shape[2:]:
        output = F.interpolate(output, images.shape[2:], mode="bilinear", align_corners=False)
    return as_logits(output) if config.gives == "probabilities" else output


def as_logits(probabilities: Tensor) -> Tensor:
    """log(max(p, 1e-30)): finite where p is 0."""
    return probabilities.clamp_min(1e-30).log()


def image_dependent_shapes(spec: GraphSpec) -> list[str]:
    """The operators whose shape-giving inputs are computed from pixels: what they cost cannot be known before."""
    from_pixels, operators = {spec.input}, []
    for node in spec.nodes:
        shapes = [node.inputs[place] for place in SHAPE_INPUTS.get(node.op, ()) if place < len(node.inputs)]
        if not from_pixels.isdisjoint(shapes):
            operators.append(node.op)
        if node.op != "Shape" and not from_pixels.isdisjoint(node.inputs):
            from_pixels.update(node.outputs)
    return operators


def unknown_operators(names) -> list[str]:
    """The operators without an implementation in onnx_ops.py, each once, in alphabetical order."""
    return sorted(set(names) - OPS.keys())
