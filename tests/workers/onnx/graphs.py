"""ONNX files that try to read files, never end, or take any memory. Inputs are images (1, 1, 8, 8); 16 outputs."""

import numpy as np
from onnx import AttributeProto, ModelProto, SparseTensorProto, TensorProto, helper, numpy_helper

DECOY = "decoy.txt"
"""A file of 16 bytes in the working folder that the graphs with outside tensors try to read."""
CARD = {"height": 8, "width": 8, "channels": 1}


def value(name: str, kind: int, *shape: int):
    return helper.make_tensor_value_info(name, kind, shape)


def constant(array, name: str) -> TensorProto:
    return numpy_helper.from_array(np.array(array), name)


def outside(name: str, kind: int = TensorProto.UINT8, length: int = 16) -> TensorProto:
    """A tensor whose numbers are in the decoy."""
    tensor = TensorProto(name=name, data_type=kind, dims=[16], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", DECOY), ("offset", "0"), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def model(nodes, initializers=(), functions=(), sparse=(), opset: int = 17) -> ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])
    q = helper.make_tensor_value_info("q", TensorProto.FLOAT, [1, 16])
    graph = helper.make_graph(list(nodes), "g", [x], [q], list(initializers), sparse_initializer=list(sparse))
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid("local", 1)] if functions else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))


BYTES = helper.make_tensor_value_info("o", TensorProto.UINT8, [16])
NUMBERS = [constant(np.float32(-1), "low"), constant([1, 16], "s"), constant(np.float32(0), "nil")]
HEAD = [
    helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0),
    helper.make_node("Greater", ["m", "low"], ["cond"]),
]
TAIL = [
    helper.make_node("Cast", ["b"], ["f"], to=TensorProto.FLOAT),
    helper.make_node("Reshape", ["f", "s"], ["r"]),
    helper.make_node("Mul", ["m", "nil"], ["n"]),
    helper.make_node("Add", ["r", "n"], ["q"]),
]


def branch(nodes, initializers=(), name: str = "then"):
    return helper.make_graph(list(nodes), name, [], [BYTES], list(initializers))


def other():
    return branch([helper.make_node("Identity", ["z"], ["o"])], [constant(np.zeros(16, np.uint8), "z")], "else")


def conditional(then) -> ModelProto:
    nodes = [*HEAD, helper.make_node("If", ["cond"], ["b"], then_branch=then, else_branch=other()), *TAIL]
    return model(nodes, NUMBERS)


def initializer_in_a_branch() -> ModelProto:
    return conditional(branch([helper.make_node("Identity", ["p"], ["o"])], [outside("p")]))


def constant_in_a_branch() -> ModelProto:
    return conditional(branch([helper.make_node("Constant", [], ["o"], value=outside("p"))]))


def branch_in_a_branch() -> ModelProto:
    inner = branch([helper.make_node("Identity", ["p"], ["o"])], [outside("p")], "inner")
    return conditional(branch([helper.make_node("If", ["cond"], ["o"], then_branch=inner, else_branch=other())]))


def constant_in_a_function() -> ModelProto:
    function = helper.make_function(
        "local", "Leak", ["i"], ["o"], [helper.make_node("Constant", [], ["o"], value=outside("p"))],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    return model([*HEAD, helper.make_node("Leak", ["x"], ["b"], domain="local"), *TAIL], NUMBERS, [function])


def branch_in_a_function() -> ModelProto:
    then = branch([helper.make_node("Identity", ["p"], ["o"])], [outside("p")])
    function = helper.make_function(
        "local", "Leak", ["c"], ["o"], [helper.make_node("If", ["c"], ["o"], then_branch=then, else_branch=other())],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    return model([*HEAD, helper.make_node("Leak", ["cond"], ["b"], domain="local"), *TAIL], NUMBERS, [function])


def default_of_a_function() -> ModelProto:
    then = helper.make_attribute("a", outside("p"))
    node = helper.make_node("Constant", [], ["o"])
    node.attribute.append(AttributeProto(name="value", type=AttributeProto.TENSOR, ref_attr_name="a"))
    function = helper.make_function("local", "Leak", ["i"], ["o"], [node], [helper.make_opsetid("", 17)])
    function.attribute_proto.append(then)
    return model([*HEAD, helper.make_node("Leak", ["x"], ["b"], domain="local"), *TAIL], NUMBERS, [function])


def body_of_a_loop() -> ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["ci"], ["co"]), helper.make_node("Identity", ["p"], ["so"])], "body",
        [value("it", TensorProto.INT64), value("ci", TensorProto.BOOL),
         value("si", TensorProto.UINT8, 16)],
        [value("co", TensorProto.BOOL), value("so", TensorProto.UINT8, 16)],
        [outside("p")],
    )  # fmt: skip
    start = [constant(np.int64(1), "one"), constant(np.zeros(16, np.uint8), "zero")]
    return model([*HEAD, helper.make_node("Loop", ["one", "cond", "zero"], ["b"], body=body), *TAIL], NUMBERS + start)


def sparse(values: TensorProto, indices: TensorProto) -> SparseTensorProto:
    return SparseTensorProto(values=values, indices=indices, dims=[16])


def sparse_values() -> ModelProto:
    values = outside("p", TensorProto.FLOAT)
    values.dims[0] = 4
    tensor = sparse(values, constant(np.arange(4), "i"))
    return model([*HEAD, helper.make_node("Identity", ["p"], ["b"]), *TAIL], NUMBERS, sparse=[tensor])


def sparse_indices() -> ModelProto:
    indices = outside("i", TensorProto.INT64)
    indices.dims[0] = 2
    tensor = sparse(constant(np.ones(2, np.float32), "p"), indices)
    return model([*HEAD, helper.make_node("Identity", ["p"], ["b"]), *TAIL], NUMBERS, sparse=[tensor])


def sparse_constant() -> ModelProto:
    values = outside("p", TensorProto.FLOAT)
    values.dims[0] = 4
    node = helper.make_node("Constant", [], ["b"], sparse_value=sparse(values, constant(np.arange(4), "i")))
    return model([*HEAD, node, *TAIL], NUMBERS)


def list_of_tensors() -> ModelProto:
    file = initializer_in_a_branch()
    node = helper.make_node("Identity", ["x"], ["unused"])
    node.attribute.append(AttributeProto(name="many", type=AttributeProto.TENSORS, tensors=[outside("p")]))
    del file.graph.node[2].attribute[:]
    file.graph.node.append(node)
    return file


def training_information() -> ModelProto:
    file = endless_from_the_image()
    file.training_info.add().algorithm.CopyFrom(branch([helper.make_node("Identity", ["p"], ["o"])], [outside("p")]))
    return file


LEAKS = (
    initializer_in_a_branch, constant_in_a_branch, branch_in_a_branch, constant_in_a_function, branch_in_a_function,
    default_of_a_function, body_of_a_loop, sparse_values, sparse_indices, sparse_constant, list_of_tensors,
    training_information,
)  # fmt: skip


def loop(counts) -> ModelProto:
    """64 inputs to 16 numbers, then a loop whose trip count `counts` (nodes and initializers) gives as `n`."""
    body = helper.make_graph(
        [helper.make_node("Mul", ["si", "one"], ["so"]), helper.make_node("Identity", ["ci"], ["co"])], "body",
        [value("it", TensorProto.INT64), value("ci", TensorProto.BOOL),
         value("si", TensorProto.FLOAT, 1, 16)],
        [value("co", TensorProto.BOOL), value("so", TensorProto.FLOAT, 1, 16)],
        [constant(np.float32(1), "one")],
    )  # fmt: skip
    nodes, initializers = counts
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0),
        *nodes,
        helper.make_node("Reshape", ["x", "s64"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
        helper.make_node("Loop", ["n", "yes", "y"], ["q"], body=body),
    ]
    weights = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    return model(nodes, [constant([1, 64], "s64"), constant(weights, "w"), constant(True, "yes"), *initializers])


def endless() -> ModelProto:
    return loop(([], [constant(np.int64(2**62), "n")]))


def endless_from_the_image() -> ModelProto:
    """Ends, unless the mean of the image is above .95."""
    return loop((
        [helper.make_node("Greater", ["m", "limit"], ["bright"]),
         helper.make_node("Where", ["bright", "many", "few"], ["n"])],
        [constant(np.float32(0.95), "limit"), constant(np.int64(2**62), "many"), constant(np.int64(1), "few")],
    ))  # fmt: skip


def filled(nodes, initializers) -> ModelProto:
    """A tensor of the shape `n`, which `nodes` and `initializers` give, whose mean is added to 16 numbers."""
    nodes = [
        *nodes,
        helper.make_node("ConstantOfShape", ["n"], ["big"], value=constant(np.ones(1, np.float32), "v")),
        helper.make_node("ReduceMean", ["big"], ["mb"], keepdims=0),
        helper.make_node("Reshape", ["x", "s64"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
        helper.make_node("Add", ["y", "mb"], ["q"]),
    ]
    weights = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    return model(nodes, [constant([1, 64], "s64"), constant(weights, "w"), *initializers])


def huge(size: int) -> ModelProto:
    """A constant of `size` numbers."""
    return filled([], [constant([size], "n")])


def huge_from_the_image(size: int) -> ModelProto:
    """`size` numbers where the mean of the image is above .95, else one."""
    return filled(
        [helper.make_node("ReduceMean", ["x"], ["m"], axes=[1, 2, 3], keepdims=0),
         helper.make_node("Greater", ["m", "limit"], ["bright"]),
         helper.make_node("Where", ["bright", "many", "few"], ["n"])],
        [constant(np.float32([0.95]), "limit"), constant([size], "many"), constant([1], "few")],
    )  # fmt: skip
