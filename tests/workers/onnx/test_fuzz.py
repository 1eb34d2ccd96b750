"""Generated and damaged ONNX files: no byte of another file comes out, every end is a 422 or a 504 in bounded time."""

import random

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper

from app.core.errors import AnamorphError
from tests.workers.onnx import graphs
from tests.workers.onnx.test_importer import network
from workers.onnx.walk import Refused, check
from workers.sandbox.room import Room

SECRET = b"sixteen letters."


class Generator:
    """Valid files from a seed: nodes that compute nothing of use, nested in every way that ONNX knows. `outside`: how
    many of their tensors are in the decoy; they are at random places."""

    def __init__(self, seed: int, outside: int):
        self.random, self.outside = random.Random(seed), outside

    def file(self) -> bytes:
        file = onnx.load_model_from_string(network())
        for number in range(self.random.randint(2, 6)):
            file.graph.node.append(self.node(f"top{number}", 3))
        for number in range(self.random.randint(0, 2)):
            nodes = [self.node(f"function{number}", 2)]
            function = helper.make_function("local", f"F{number}", ["i"], ["o"], nodes, [helper.make_opsetid("", 17)])
            function.attribute_proto.append(helper.make_attribute("default", self.tensor("default")))
            file.functions.append(function)
        file.graph.sparse_initializer.append(self.sparse("more"))
        file.graph.initializer.append(self.tensor("spare"))
        if self.random.random() < 0.3:
            file.training_info.add().initialization.CopyFrom(self.graph("initialization", 1))
        tensors = [item for _, item in everything(file) if isinstance(item, TensorProto)]
        for tensor in self.random.sample(tensors, min(self.outside, len(tensors))):
            tensor.CopyFrom(graphs.outside(tensor.name, tensor.data_type))
        return file.SerializeToString()

    def tensor(self, name: str) -> TensorProto:
        return graphs.constant(np.arange(16, dtype=self.random.choice([np.float32, np.uint8, np.int64])), name)

    def sparse(self, name: str) -> onnx.SparseTensorProto:
        return graphs.sparse(graphs.constant(np.ones(2, np.float32), name), graphs.constant(np.arange(2), f"{name}i"))

    def graph(self, name: str, depth: int) -> onnx.GraphProto:
        nodes = [self.node(f"{name}{number}", depth - 1) for number in range(self.random.randint(1, 2))]
        tensors = [self.tensor(f"{name}t") for _ in range(self.random.randint(0, 2))]
        return helper.make_graph(nodes, name, [], [graphs.value("o", TensorProto.FLOAT, 16)], tensors)

    def node(self, name: str, depth: int) -> onnx.NodeProto:
        kinds = ["tensor", "sparse", "tensors", "sparses"] + ["graph", "graphs", "graph"] * (depth > 0)
        node = helper.make_node(self.random.choice(["Identity", "Constant", "If", "Loop", "Scan"]), [], [name])
        for number in range(self.random.randint(1, 3)):
            attribute = AttributeProto(name=f"a{number}")
            match self.random.choice(kinds):
                case "tensor":
                    attribute.t.CopyFrom(self.tensor(name))
                    attribute.type = AttributeProto.TENSOR
                case "sparse":
                    attribute.sparse_tensor.CopyFrom(self.sparse(name))
                    attribute.type = AttributeProto.SPARSE_TENSOR
                case "tensors":
                    attribute.tensors.extend([self.tensor(name), self.tensor(f"{name}2")])
                    attribute.type = AttributeProto.TENSORS
                case "sparses":
                    attribute.sparse_tensors.extend([self.sparse(name)])
                    attribute.type = AttributeProto.SPARSE_TENSORS
                case "graph":
                    attribute.g.CopyFrom(self.graph(name, depth))
                    attribute.type = AttributeProto.GRAPH
                case "graphs":
                    attribute.graphs.extend([self.graph(name, depth) for _ in range(2)])
                    attribute.type = AttributeProto.GRAPHS
            node.attribute.append(attribute)
        return node


def everything(message) -> list[tuple[str, object]]:
    """Every message inside a message, by reflection: it knows nothing of ONNX, so it forgets no place."""
    found = []
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if not hasattr(value, "ListFields") else [value]:
                found += [(field.name, item), *everything(item)]
    return found


def test_the_walk_sees_what_reflection_sees():
    """100 files with a tensor outside at a random place are refused, the same files without it are not."""
    for seed in range(100):
        check(onnx.load_model_from_string(Generator(seed, outside=0).file()))
        with pytest.raises(Refused, match="in a second file"):
            check(onnx.load_model_from_string(Generator(seed, outside=1).file()))


def test_damaged_files_end_with_a_reason(tmp_path, monkeypatch):
    """Bytes of files flipped, cut out and doubled at random; each is read and run in a room, whatever it has become."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / graphs.DECOY).write_bytes(SECRET)
    draws, room, ends = random.Random(0), Room("workers.onnx.sealed"), set()
    sources = [network(), *(make().SerializeToString() for make in (*graphs.LEAKS, lambda: graphs.huge(10**12)))]
    for _ in range(60):
        content = bytearray(draws.choice(sources))
        for _ in range(draws.randint(0, 4)):
            place = draws.randrange(len(content))
            match draws.randrange(3):
                case 0:
                    content[place] = draws.randrange(256)
                case 1:
                    del content[place : place + draws.randint(1, 8)]
                case _:
                    content[place:place] = content[place : place + draws.randint(1, 64)]
        try:
            room.call("load", bytes(content), 1, seconds=10)
            output = room.call("run", [np.ones((1, 1, 8, 8), np.float32)], seconds=10)
            ends.add("answered")
            assert SECRET not in np.asarray(output).tobytes()
            assert SECRET not in np.nan_to_num(np.asarray(output, np.float64)).clip(0, 255).astype(np.uint8).tobytes()
        except AnamorphError as error:
            assert error.status in (422, 504), error
            assert SECRET.decode() not in error.detail
            ends.add(type(error).__name__)
    room.close()
    assert "Raised" in ends
