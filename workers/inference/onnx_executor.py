"""Models whose answers ONNX Runtime computes: the exported parts in place of torch's forward passes, where they agree.

Gradients, inputs of another shape than a part was traced with, and parts that cannot be exported stay with torch: for
the same model, request and setting always the same way.
"""

import copy
from collections.abc import Callable

import structlog
import torch
from torch import Tensor

from app.core.errors import AnamorphError
from app.core.store import blobs
from models.export import BY_CAPABILITY, Graph, graph, parts
from models.family import Family
from models.imported.opaque import Opaque
from workers.onnx.exporter import keep_part
from workers.onnx.files import session
from workers.store.models import model_key

DIRECT = {"encoder": "encode", "decoder": "decode"} | {part: entry[1] for part, entry in BY_CAPABILITY.items()}
log = structlog.get_logger(__name__)


def by_runtime(digest: str, model: Family) -> Family | None:
    """The same model with its parts computed by ONNX Runtime; None when there is nothing to gain.

    Files that nobody has asked for yet are written now, which takes seconds once for a version.
    """
    if isinstance(model, Opaque):
        return None
    view, directions = copy.copy(model), {}
    for part in parts(model):
        found = graph(model, part)
        try:
            asked = answering(found, part_of(digest, found))
        except AnamorphError as error:
            log.info("part.stays_with_torch", digest=digest, part=part, why=error.detail)
            continue
        if part in DIRECT:
            setattr(view, DIRECT[part], asked)
        else:
            directions[part.removeprefix("translator_")] = asked
    if directions:
        view.translate = lambda images, direction: (
            directions[direction](images) if direction in directions else model.translate(images, direction)
        )
    return view


def part_of(digest: str, found: Graph) -> bytes:
    """The file of a part, from the store or made now. Raises AnamorphError when there can be none."""
    key = model_key(digest, f"{found.part}.onnx")
    if blobs.exists(f"{key}.json"):
        return blobs.get(key)
    return keep_part(digest, found)[0]


def answering(found: Graph, content: bytes) -> Callable[..., Tensor]:
    """A stand-in for the part's method."""
    run = session(content)
    names, wanted = list(found.inputs), [(tensor.shape[1:], tensor.dtype) for tensor in found.inputs.values()]

    def answer(*inputs: Tensor) -> Tensor:
        fits = [(tensor.shape[1:], tensor.dtype) for tensor in inputs] == wanted
        if not fits or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)):
            return found.module(*inputs)
        given = {name: tensor.detach().contiguous().numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(run.run([found.output], given)[0])

    return answer
