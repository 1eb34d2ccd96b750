"""Functions on one foreign ONNX file, for the child process of a room (workers/sandbox): `load` comes first.

Reads the file into plain values, and runs it with ONNX Runtime on the CPU. Knows neither torch nor the service.
"""

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from workers.onnx.walk import Refused, check

DTYPES = {"float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool"}
LISTED = 4096
"""Longest list among a node's attributes."""
CONSTANTS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
NO_ONNX = Refused(
    "The file is not an ONNX file, or it is damaged.",
    "Check it with onnx.checker.check_model, or export it again.",
)
file: dict[str, Any] = {}
"""content, threads, and session once it runs."""


def prepare() -> None:
    """Runs a graph of one node: what the libraries load from files is loaded."""
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    session_of(model.SerializeToString(), 1).run(None, {"x": np.zeros(1, np.float32)})


def load(content: bytes, threads: int) -> None:
    """Keeps the file after a walk over all its parts. Raises Refused."""
    file.clear()
    check(parsed(content))
    file.update(content=content, threads=threads)


def parsed(content: bytes) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(content)
    except Exception:  # protobuf raises many kinds
        raise NO_ONNX from None


def session_of(content: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads do not spin while idle
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(arrays: list[np.ndarray]) -> np.ndarray:
    """The first output for the inputs in their order, run by ONNX Runtime."""
    if "session" not in file:
        file["session"] = session_of(file["content"], file["threads"])
    session = file["session"]
    names = [value.name for value in session.get_inputs()]
    return session.run([session.get_outputs()[0].name], dict(zip(names, arrays, strict=True)))[0]


def read() -> dict[str, Any]:
    """The graph as plain values: nodes, constants by name, input, output, opset, shape of the input (None for a free
    axis), number of outputs. Raises Refused for graphs that do not take one image tensor."""
    model = parsed(file["content"])
    graph = model.graph
    try:
        onnx.checker.check_model(model)
    except (MemoryError, Refused):
        raise
    except Exception:  # the checker raises many kinds
        raise NO_ONNX from None
    constant_names = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constant_names]
    if len(inputs) != 1 or not graph.output:
        names = ", ".join(value.name for value in inputs)[:200]
        raise Refused(
            f"The graph must have one input, the images; it has {len(inputs)} ({names}).", "Export it with one input."
        )
    kind = inputs[0].type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        raise Refused("The input of the graph must be float32.", "Export it with float32.")
    shape = [dim.dim_value or None for dim in kind.shape.dim]
    if len(shape) != 4:
        raise Refused(
            f"The input of the graph must have 4 axes, like images; it has {len(shape)}.", "Export it for images."
        )
    constants = {tensor.name: array_of(tensor) for tensor in graph.initializer}
    nodes = [plain_node(node, constants) for node in graph.node]
    return {
        "nodes": [node for node in nodes if node is not None],
        "constants": constants,
        "input": inputs[0].name,
        "output": graph.output[0].name,
        "opset": next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 1),
        "shape": shape,
        "outputs": len(graph.output),
    }


def plain_node(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """A node as plain data; tensors among its attributes join the constants. None for a constant node."""
    op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    ends = {"inputs": list(node.input), "outputs": list(node.output)}
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            name = node.output[0] if op == "Constant" else f"{node.output[0]}/{attribute.name}"
            constants[name], attributes["constant"] = array_of(value), name
        elif isinstance(value, bytes):
            attributes[attribute.name] = value.decode("utf-8", "replace")
        elif isinstance(value, int | float):
            attributes[attribute.name] = value
        elif isinstance(value, list | tuple) and all(isinstance(one, int | float) for one in value[:LISTED + 1]) \
                and len(value) <= LISTED:  # fmt: skip
            attributes[attribute.name] = list(value)
        else:
            return {"op": f"{op} with {attribute.name}", **ends, "attributes": {}}
    if op == "Constant":
        for name, dtype in CONSTANTS.items():
            if name in attributes:
                constants[node.output[0]] = np.array(attributes[name], dtype)
        return None
    return {"op": op, **ends, "attributes": attributes}


def array_of(tensor: onnx.TensorProto) -> np.ndarray:
    array = numpy_helper.to_array(tensor)
    if array.dtype.name not in DTYPES:
        raise Refused(f"Numbers of type {array.dtype.name} are not supported.", "Export with float32.")
    return np.array(array)
