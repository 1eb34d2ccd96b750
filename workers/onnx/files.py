"""Uploaded ONNX files: read without running anything, then run by ONNX Runtime on the CPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
import torch
from torch import Tensor

from app.core.errors import InvalidRequest
from models.imported.graph import GraphSpec, Node

FIELD = "file"
log = structlog.get_logger(__name__)
DTYPES = {"float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool"}


@dataclass(frozen=True)
class OnnxFile:
    """A file that was read. `shape`: shape of the input, None for a free axis. `outputs`: number of outputs."""

    content: bytes
    spec: GraphSpec
    constants: list[Tensor]
    shape: list[int | None]
    outputs: int

    @property
    def state(self) -> dict[str, Tensor]:
        """The weights of a model that runs the graph node by node."""
        graph = torch.frombuffer(bytearray(self.spec.model_dump_json().encode()), dtype=torch.uint8)
        return {"graph": graph} | {f"t{index}": tensor for index, tensor in enumerate(self.constants)}

    @property
    def opaque_state(self) -> dict[str, Tensor]:
        """The weights of a black-box model: the file itself."""
        return {"file": torch.frombuffer(bytearray(self.content), dtype=torch.uint8)}


def read(content: bytes) -> OnnxFile:
    """Raises InvalidRequest for other files, external weights, or a graph that does not take one image tensor."""
    import onnx

    try:
        model = onnx.load_model_from_string(content)
        graph = model.graph
        attributes = [attribute for node in graph.node for attribute in node.attribute if attribute.HasField("t")]
        for tensor in (*graph.initializer, *(attribute.t for attribute in attributes)):
            require_inline(tensor)
        onnx.checker.check_model(model)
    except InvalidRequest:
        raise
    except Exception as error:  # protobuf and the checker raise many kinds
        log.warning("onnx.unreadable", error=str(error)[:200])
        raise InvalidRequest(
            "The file is not an ONNX file, or it is damaged.",
            field=FIELD,
            remedy="Check it with onnx.checker.check_model, or export it again.",
        ) from None
    constant_names = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constant_names]
    if len(inputs) != 1 or not graph.output:
        names = ", ".join(value.name for value in inputs)
        raise InvalidRequest(f"The graph must have one input, the images; it has {len(inputs)} ({names}).", field=FIELD)
    kind = inputs[0].type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        raise InvalidRequest("The input of the graph must be float32.", field=FIELD, remedy="Export it with float32.")
    shape = [dim.dim_value or None for dim in kind.shape.dim]
    if len(shape) != 4:
        raise InvalidRequest(f"The input of the graph must have 4 axes, like images; it has {len(shape)}.", field=FIELD)
    constants = {tensor.name: tensor_of(tensor) for tensor in graph.initializer}
    nodes = [to_node(node, constants) for node in graph.node]
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 1)
    spec = GraphSpec(
        nodes=tuple(node for node in nodes if node is not None),
        tensors=tuple(constants),
        input=inputs[0].name,
        output=graph.output[0].name,
        opset=opset,
    )
    return OnnxFile(content, spec, list(constants.values()), shape, len(graph.output))


def to_node(node: Any, constants: dict[str, Tensor]) -> Node | None:
    """A node as plain data; tensors among its attributes join the constants. None for a constant node."""
    import onnx

    op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            name = node.output[0] if op == "Constant" else f"{node.output[0]}/{attribute.name}"
            constants[name], attributes["constant"] = tensor_of(value), name
        elif isinstance(value, bytes):
            attributes[attribute.name] = value.decode("utf-8", "replace")
        elif isinstance(value, int | float):
            attributes[attribute.name] = value
        elif isinstance(value, list | tuple) and all(isinstance(one, int | float) for one in value):
            attributes[attribute.name] = list(value)
        else:
            return Node(op=f"{op} with {attribute.name}", inputs=tuple(node.input), outputs=tuple(node.output))
    if op == "Constant":
        for name, dtype in (("value_float", torch.float32), ("value_floats", torch.float32),
                            ("value_int", torch.int64), ("value_ints", torch.int64)):  # fmt: skip
            if name in attributes:
                constants[node.output[0]] = torch.tensor(attributes[name], dtype=dtype)
        return None
    return Node(op=op, inputs=tuple(node.input), outputs=tuple(node.output), attributes=attributes)


def require_inline(tensor: Any) -> None:
    """Raises InvalidRequest for a TensorProto whose numbers are in a second file."""
    import onnx

    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise InvalidRequest(
            "The weights are in a second file.",
            field=FIELD,
            remedy="Export with external_data=False, or save the model as one file.",
        )


def tensor_of(tensor: Any) -> Tensor:
    import onnx

    require_inline(tensor)
    array = onnx.numpy_helper.to_array(tensor)
    if array.dtype.name not in DTYPES:
        raise InvalidRequest(
            f"Numbers of type {array.dtype.name} are not supported.", field=FIELD, remedy="Export with float32."
        )
    return torch.from_numpy(np.array(array))


def session(content: bytes) -> Any:
    """A runtime session of the file on the CPU, with as many threads as torch uses; they do not spin while idle."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def runtime(content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """A function from images to the first output of a file with one input, run by ONNX Runtime."""
    runner = session(content)
    input_name, output_name = runner.get_inputs()[0].name, runner.get_outputs()[0].name
    return lambda images: runner.run([output_name], {input_name: images})[0]
