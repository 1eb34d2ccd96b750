"""Runs the forward passes of a model with ONNX Runtime: exported parts replace methods, where both agree.

Torch still computes gradients, inputs of another shape than the traced one, and parts that cannot be exported. The
choice depends only on model, request and setting.
"""

import copy
import hashlib
import json
from collections.abc import Callable

import structlog
import torch
from torch import Tensor

from app.core.errors import AnamorphError
from app.core.store import blobs
from models.export import BY_CAPABILITY, Graph, graph, parts
from models.family import Family
from models.imported.opaque import Opaque
from workers.onnx.exporter import store_part
from workers.onnx.files import session
from workers.store.models import model_key

DIRECT = {"encoder": "encode", "decoder": "decode"} | {part: entry[1] for part, entry in BY_CAPABILITY.items()}
log = structlog.get_logger(__name__)


def by_runtime(digest: str, model: Family) -> Family | None:
    """The same model with its parts computed by ONNX Runtime; None for an opaque model, which uses the runtime anyway.

    Exports parts that are not stored yet, which takes seconds, once per version.
    """
    if isinstance(model, Opaque):
        return None
    view, directions = copy.copy(model), {}
    for part in parts(model):
        part_graph = graph(model, part)
        try:
            method = runtime_method(part_graph, part_file(digest, part_graph))
        except AnamorphError as error:
            log.info("part.stays_with_torch", digest=digest, part=part, why=error.detail)
            continue
        if part in DIRECT:
            setattr(view, DIRECT[part], method)
        else:
            directions[part.removeprefix("translator_")] = method
    if directions:
        view.translate = lambda images, direction: (
            directions[direction](images) if direction in directions else model.translate(images, direction)
        )
    return view


def part_file(digest: str, part_graph: Graph) -> bytes:
    """The ONNX file of a part, from the store or exported now; a damaged one is exported again.

    Raises AnamorphError if the part cannot be exported.
    """
    key = model_key(digest, f"{part_graph.part}.onnx")
    try:
        facts, data = json.loads(blobs.get(f"{key}.json")), blobs.get(key)
    except (FileNotFoundError, ValueError):
        return store_part(digest, part_graph)[0]
    intact = facts.get("sha256") in (None, hashlib.sha256(data).hexdigest())
    return data if intact else store_part(digest, part_graph)[0]


def runtime_method(part_graph: Graph, content: bytes) -> Callable[..., Tensor]:
    """A replacement for the part's method that runs the ONNX file."""
    runtime = session(content)
    names = list(part_graph.inputs)
    traced = [(tensor.shape[1:], tensor.dtype) for tensor in part_graph.inputs.values()]

    def method(*inputs: Tensor) -> Tensor:
        fits = [(tensor.shape[1:], tensor.dtype) for tensor in inputs] == traced
        if not fits or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)):
            return part_graph.module(*inputs)
        arrays = {name: tensor.detach().contiguous().numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(runtime.run([part_graph.output], arrays)[0])

    return method
