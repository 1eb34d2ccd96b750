"""Exports a part of a model as an ONNX file and checks the file against the model."""

import hashlib
import io
import json
import logging
import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.core.errors import AnamorphError, UnsupportedOperation
from app.core.store import blobs
from models.export import Graph, parts
from models.imported.base import Imported
from workers.onnx.files import runtime, session
from workers.store.models import model_key

OPSET = 20
TOLERANCE = 1e-4
"""Largest allowed difference from the model, as a fraction of its largest output."""
BATCHES = (1, 5)
"""Batch sizes of the check; the graph is traced with another."""


def store_part(digest: str, part_graph: Graph, default: bool = False) -> tuple[bytes, dict[str, Any]]:
    """Exports a part and stores it beside the weights; with `default`, also as the model's default part."""
    data, facts = export(part_graph)
    facts |= {"model": digest, "part": part_graph.part, "parts": parts(part_graph.module.model)}
    blobs.put(model_key(digest, f"{part_graph.part}.onnx"), data, create_only=False)
    for name in (part_graph.part, *(["default"] if default else [])):  # the facts come last: they mark a complete file
        blobs.put(model_key(digest, f"{name}.onnx.json"), json.dumps(facts).encode(), create_only=False)
    return data, facts


def export(part_graph: Graph) -> tuple[bytes, dict[str, Any]]:
    """The ONNX file of a part, and its facts. Raises AnamorphError if its outputs differ from the model's."""
    try:
        data = to_onnx(part_graph)
    except Exception as error:  # the exporter raises many kinds, none of them the client's fault
        logging.getLogger(__name__).warning("export failed", exc_info=error)
        raise UnsupportedOperation(
            f"The part {part_graph.part} of this model cannot be exported as ONNX.",
            field="part",
            remedy="Download weights.safetensors, which every model has.",
        ) from error
    difference = parity(part_graph, data)
    if not difference <= TOLERANCE:
        raise AnamorphError(
            f"The exported {part_graph.part} differs from the model by {difference:.2g} of its largest output.",
            remedy="Download weights.safetensors instead.",
        )
    shapes = {name: ["batch", *tensor.shape[1:]] for name, tensor in part_graph.inputs.items()}
    facts = {
        "inputs": shapes,
        "output": part_graph.output,
        "opset": OPSET,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "difference": difference,
    }
    return data, facts


def to_onnx(part_graph: Graph) -> bytes:
    """One ONNX file with its weights, traced without gradients and with a free batch axis."""
    batch = torch.export.Dim("batch", min=1)
    out, quiet = io.BytesIO(), logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                part_graph.module,
                tuple(part_graph.inputs.values()),
                dynamo=True,
                verbose=False,
                dynamic_shapes=(tuple({0: batch} for _ in part_graph.inputs),),
                input_names=list(part_graph.inputs),
                output_names=[part_graph.output],
                opset_version=OPSET,
            )
        program.save(out)
    finally:
        quiet.setLevel(level)
    return out.getvalue()


def parity(part_graph: Graph, data: bytes) -> float:
    """The largest difference between file and model, as a fraction of the largest output, over BATCHES."""
    worst, foreign = 0.0, any(isinstance(module, Imported) for module in part_graph.module.modules())
    run = runtime(data) if foreign else partial(_run, session(data))
    for size in BATCHES:
        inputs = {name: _resized(tensor, size) for name, tensor in part_graph.inputs.items()}
        with torch.no_grad():
            expected = part_graph.module(*inputs.values()).numpy()
        answer = run(*(tensor.numpy() for tensor in inputs.values()))
        scale = max(float(np.abs(expected).max()), 1e-6)
        worst = max(worst, float(np.abs(answer - expected).max()) / scale)
    return worst


def _run(runner: Any, *arrays: np.ndarray) -> np.ndarray:
    names = [value.name for value in runner.get_inputs()]
    return runner.run(None, dict(zip(names, arrays, strict=True)))[0]


def _resized(tensor: Tensor, size: int) -> Tensor:
    """`size` random rows of the same shape; labels repeat in turn."""
    if not tensor.is_floating_point() or tensor.ndim == 1:
        return tensor[torch.arange(size) % len(tensor)]
    draws = torch.Generator().manual_seed(size)
    draw = torch.randn if tensor.ndim == 2 else torch.rand
    return draw((size, *tensor.shape[1:]), generator=draws)
