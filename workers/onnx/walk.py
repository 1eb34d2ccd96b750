"""Refuses ONNX files that keep tensors elsewhere, use unknown operators or are too large to look at; runs nothing.

The walk visits every graph (branches of If, bodies of Loop, Scan and SequenceMap), every local function, training
information, and every tensor in them, also sparse ones and those in lists.
"""

from collections.abc import Iterator
from typing import Any

import onnx

MAX_NODES, MAX_NAMES, MAX_TENSORS, MAX_ATTRIBUTES = 50_000, 500_000, 50_000, 500_000
"""Over all graphs and functions; the largest common networks have some thousands of nodes."""
STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml"})
MICROSOFT = frozenset(
    {
        "Attention", "BiasGelu", "ConvTransposeWithDynamicPads", "CropAndResize", "DequantizeLinear",
        "DynamicQuantizeMatMul", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul", "GatherND", "Gelu", "GridSample",
        "Inverse", "MatMulInteger16", "MatMulIntegerToFloat", "MatMulNBits", "MultiHeadAttention", "NhwcMaxPool", "Pad",
        "QAttention", "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearConv",
        "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid", "QLinearSoftmax",
        "QLinearWhere", "QuantizeLinear", "QuickGelu", "RotaryEmbedding", "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization", "TransposeMatMul", "Trilu",
    }
)  # fmt: skip
"""Operators of com.microsoft for the CPU that quantisation and optimisation tools write into image networks; each is
arithmetic on its inputs. Others, such as EPContext, read files, generate text in loops, or have no use here."""


class Refused(Exception):
    """The file is refused. The text is the reason, then a line with the remedy."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(f"{reason}\n{remedy}")


def check(model: onnx.ModelProto) -> None:
    """Raises Refused."""
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and not 1 <= opset.version <= newest:
            raise Refused(
                f"The graph has opset {opset.version}; 1 to {newest} can be read.",
                f"Export it with an opset of at most {newest}.",
            )
    functions = {(function.domain, function.name) for function in model.functions}
    nodes = names = tensors = attributes = 0
    for place, item in everything(model):
        if isinstance(item, onnx.NodeProto):
            nodes, names = nodes + 1, names + len(item.input) + len(item.output)
            attributes += len(item.attribute)
            require_known(place, item, functions)
        else:
            tensors += 1
            require_inline(place, item)
        if nodes > MAX_NODES or names > MAX_NAMES or tensors > MAX_TENSORS or attributes > MAX_ATTRIBUTES:
            raise Refused(
                f"The file has too many parts; {MAX_NODES} nodes and {MAX_TENSORS} tensors can be read.",
                "Export a smaller network.",
            )


def everything(model: onnx.ModelProto) -> Iterator[tuple[str, Any]]:
    """Each NodeProto and TensorProto of the file with its place in words."""
    stack: list[tuple[str, Any]] = [("graph", model.graph)]
    stack += [(f"function {function.name}", function) for function in model.functions]
    for number, training in enumerate(model.training_info):
        for name in ("initialization", "algorithm"):
            stack.append((f"training_info {number} {name}", getattr(training, name)))
    while stack:
        place, item = stack.pop()
        if isinstance(item, onnx.NodeProto):
            yield place, item
            stack += [(f"{place}, {attribute.name}", attribute) for attribute in item.attribute]
        elif isinstance(item, onnx.TensorProto):
            yield place, item
        elif isinstance(item, onnx.SparseTensorProto):
            stack += [(place, item.values), (place, item.indices)]
        elif isinstance(item, onnx.AttributeProto):
            single = [getattr(item, name) for name in ("t", "g", "sparse_tensor") if item.HasField(name)]
            stack += [(place, each) for each in (*single, *item.tensors, *item.graphs, *item.sparse_tensors)]
        else:
            stack += [(f"{place}, node {number} ({node.op_type})", node) for number, node in enumerate(item.node)]
            if isinstance(item, onnx.GraphProto):
                stack += [(f"{place}, initializer {tensor.name}", tensor) for tensor in item.initializer]
                stack += [(f"{place}, initializer {each.values.name}", each) for each in item.sparse_initializer]
            else:
                stack += [(f"{place}, {attribute.name}", attribute) for attribute in item.attribute_proto]


def require_inline(place: str, tensor: onnx.TensorProto) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise Refused(
            f"The weights are in a second file ({short(place)}).",
            "Export with external_data=False, or save the model as one file.",
        )


def require_known(place: str, node: onnx.NodeProto, functions: set[tuple[str, str]]) -> None:
    standard = node.domain in STANDARD or (node.domain == "com.microsoft" and node.op_type in MICROSOFT)
    if not standard and (node.domain, node.op_type) not in functions:
        raise Refused(
            f"The operator {short(node.domain)}.{short(node.op_type)} cannot be run ({short(place)}).",
            "Export with the operators of ONNX.",
        )


def short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:100]} ... {text[-100:]}"
