"""Writes a part of a model as an ONNX file and checks that file against the model."""

import io
import json
import logging
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.core.errors import AnamorphError, UnsupportedOperation
from app.core.store import blobs
from models.export import Graph, parts
from workers.onnx.files import session
from workers.store.models import model_key

OPSET = 20
TOLERANCE = 1e-4
"""Largest difference from the model, as a share of the largest number it answers with."""
BATCHES = (1, 5)
"""Batch sizes of the check; the graph was traced with another."""


def keep_part(digest: str, found: Graph, default: bool = False) -> tuple[bytes, dict[str, Any]]:
    """Exports a part and stores it beside the weights, as what the model gives by default too when asked so."""
    data, facts = export(found)
    facts |= {"model": digest, "part": found.part, "parts": parts(found.module.model)}
    blobs.put(model_key(digest, f"{found.part}.onnx"), data, create_only=False)
    for name in (found.part, *(["default"] if default else [])):  # the facts come last: they say that the file is whole
        blobs.put(model_key(digest, f"{name}.onnx.json"), json.dumps(facts).encode(), create_only=False)
    return data, facts


def export(found: Graph) -> tuple[bytes, dict[str, Any]]:
    """The ONNX file of a part, and what is known of it. Raises AnamorphError when the file would answer otherwise."""
    try:
        data = to_onnx(found)
    except Exception as error:  # the exporter has many, none of them the client's fault
        logging.getLogger(__name__).warning("export failed", exc_info=error)
        raise UnsupportedOperation(
            f"The part {found.part} of this model cannot be written as ONNX.",
            field="part",
            remedy="Use weights.safetensors, which every model has.",
        ) from error
    difference = parity(found, data)
    if not difference <= TOLERANCE:
        raise AnamorphError(
            f"The exported {found.part} answers otherwise than the model, by {difference:.2g} of its largest answer.",
            remedy="Use weights.safetensors.",
        )
    shapes = {name: ["batch", *tensor.shape[1:]] for name, tensor in found.inputs.items()}
    facts = {"inputs": shapes, "output": found.output, "opset": OPSET, "bytes": len(data), "difference": difference}
    return data, facts


def to_onnx(found: Graph) -> bytes:
    """Traced without gradients, with the batch axis free; one file, weights inside."""
    batch = torch.export.Dim("batch", min=1)
    out, quiet = io.BytesIO(), logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                found.module,
                tuple(found.inputs.values()),
                dynamo=True,
                verbose=False,
                dynamic_shapes=(tuple({0: batch} for _ in found.inputs),),
                input_names=list(found.inputs),
                output_names=[found.output],
                opset_version=OPSET,
            )
        program.save(out)
    finally:
        quiet.setLevel(level)
    return out.getvalue()


def parity(found: Graph, data: bytes) -> float:
    """The largest difference between file and model over batches of sizes it was not traced with, as a share."""
    asked, worst = session(data), 0.0
    for size in BATCHES:
        inputs = {name: _resized(tensor, size) for name, tensor in found.inputs.items()}
        with torch.no_grad():
            wanted = found.module(*inputs.values()).numpy()
        (answer,) = asked.run([found.output], {name: tensor.numpy() for name, tensor in inputs.items()})
        scale = max(float(np.abs(wanted).max()), 1e-6)
        worst = max(worst, float(np.abs(answer - wanted).max()) / scale)
    return worst


def _resized(tensor: Tensor, size: int) -> Tensor:
    """`size` other rows of the same form; labels in turn."""
    if not tensor.is_floating_point() or tensor.ndim == 1:
        return tensor[torch.arange(size) % len(tensor)]
    draws = torch.Generator().manual_seed(size)
    draw = torch.randn if tensor.ndim == 2 else torch.rand
    return draw((size, *tensor.shape[1:]), generator=draws)
