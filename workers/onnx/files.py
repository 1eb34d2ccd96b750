"""Uploaded ONNX files: read, and run by ONNX Runtime on the CPU, both in a sealed process (workers/sandbox)."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from app.core.errors import AnamorphError, InvalidRequest, OutOfMemory
from app.core.settings import settings
from models.imported.graph import GraphSpec, Node
from workers.sandbox.room import Broken, Late, NeedsMemory, Raised, Room

FIELD = "file"
SEALED = "workers.onnx.sealed"
OVERRUN = (Late, NeedsMemory, Broken, OutOfMemory)
"""What a file does to its process."""
ROOMS = 8
"""Processes of stored black boxes that a worker keeps; those that ran longest ago end, and start again when needed."""


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


class Runtime:
    """One file in a sealed process, which starts when it is first needed. Thread-safe."""

    def __init__(self, content: bytes):
        self.content = content
        answer_bytes = max(settings().sandbox_bytes // 4, len(content) * 5 // 4)  # `read` returns the weights
        self.room = Room(SEALED, first=("load", content, torch.get_num_threads()), answer_bytes=answer_bytes)

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        """The first output of the file for its inputs.

        Raises InvalidRequest for what the file does, DeadlineExceeded if it does not end.
        """
        recent.use(self.room)
        try:
            output = self.room.call("run", list(arrays))
        except Raised as error:
            raise refusal(error, "ONNX Runtime cannot run this graph for these images.") from None
        if not isinstance(output, np.ndarray):
            raise InvalidRequest("The first output of the graph must be one tensor.", field=FIELD)
        return output

    def read(self) -> OnnxFile:
        """Raises InvalidRequest for other files, external weights, unknown operators, or a graph that does not take one
        image tensor."""
        try:
            graph = self.room.call("read")
            spec = GraphSpec(
                nodes=tuple(Node.model_validate(node) for node in graph["nodes"]),
                tensors=tuple(graph["constants"]),
                **{name: graph[name] for name in ("input", "output", "opset")},
            )
            constants = [torch.from_numpy(array) for array in graph["constants"].values()]
            return OnnxFile(self.content, spec, constants, graph["shape"], graph["outputs"])
        except Raised as error:
            raise refusal(error, "The file is not an ONNX file, or it is damaged.") from None
        except OVERRUN as error:
            raise too_much(error, "read") from None


class Recent:
    """The rooms that ran last; ends the oldest idle one when there are more than ROOMS."""

    def __init__(self) -> None:
        self._rooms: WeakValueDictionary[int, Room] = WeakValueDictionary()
        self._order: OrderedDict[int, None] = OrderedDict()
        self._lock = threading.Lock()

    def use(self, room: Room) -> None:
        with self._lock:
            self._rooms[id(room)] = room
            self._order[id(room)] = None
            self._order.move_to_end(id(room))
            for key in [key for key in self._order if key not in self._rooms]:
                del self._order[key]
            surplus = [self._rooms.get(key) for key in list(self._order)[:-ROOMS]]
        for old in surplus:
            if old is not None and old.close_if_idle():
                with self._lock:
                    self._order.pop(id(old), None)


recent = Recent()


def runtime(content: bytes) -> Runtime:
    """A function from images to the first output of a file with one input, run by ONNX Runtime."""
    return Runtime(content)


def session(content: bytes) -> Any:
    """A runtime session in this process, for files that this software wrote from networks of its own."""
    from workers.onnx.sealed import session_of

    return session_of(content, torch.get_num_threads())


def refusal(error: Raised, reason: str) -> InvalidRequest:
    """The public error for an exception in the sealed process: walk.Refused carries its own text."""
    if error.kind == "Refused":
        reason, _, remedy = error.detail.partition("\n")
        return InvalidRequest(reason, field=FIELD, remedy=remedy)
    remedy = "Check it with onnx.checker.check_model and ONNX Runtime, or export it again."
    return InvalidRequest(reason, field=FIELD, remedy=remedy)


def too_much(error: AnamorphError, what: str) -> InvalidRequest:
    """The 422 of an import whose file takes too long, too much memory, or breaks its process."""
    return InvalidRequest(f"The file cannot be {what}. {error.detail}", field=FIELD, remedy=error.remedy)
