"""From an ONNX file and its card to a model: a white box if every operator is known and the outputs agree."""

from dataclasses import replace
from typing import Any

import structlog
import torch
from torch import Tensor

from app.core.errors import DeadlineExceeded, InvalidRequest
from app.core.settings import settings
from models.imported.base import Imported
from models.imported.graph import Graph, unknown_operators
from models.imported.opaque import Opaque
from models.imported.work_limit import TooMuchWork, WorkLimit
from models.registry import imported
from models.types import ConfigError, DataSpec, ModelError
from workers.inference.batching import CHUNKS
from workers.onnx.files import OVERRUN, OnnxFile, Runtime, runtime, too_much

log = structlog.get_logger(__name__)
LAYOUTS = {"classifier": "labelled", "estimator": "attributes", "segmenter": "segmentation"}
PARITY = 1e-3
"""Largest difference between torch and ONNX Runtime for a white box, as a fraction of the largest output."""
TRIAL_IMAGES = 3


def from_onnx(content: bytes, card: dict[str, Any]) -> tuple[Imported, dict[str, Any], dict[str, Any]]:
    """The model, the facts of its data, and its metrics and warnings."""
    run_file = runtime(content)
    file, task = run_file.read(), card.get("task", "classifier")
    facts = {"layout": LAYOUTS[task], **size_of(file, card), "classes": None, "columns": {}}
    config: dict[str, Any] = {"layout": card.get("layout", "nchw"), "single": file.shape[0] == 1}
    config |= {name: as_list(card[name]) for name in ("mean", "std") if name in card}
    images = torch.rand((TRIAL_IMAGES, facts["channels"], facts["height"], facts["width"]),
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
    outputs, config["single"] = runtime_outputs(black_box(file, task, config, facts, run_file), config, images)
    facts["classes"] = classes_of(task, outputs, config["layout"], card)
    warnings: list[str] = []
    config["gives"] = gives_of(task, outputs, config["layout"], card, warnings)
    white, difference, reason = white_box_model(file, task, config, facts, images, outputs)
    if white is None and card.get("white_box"):
        raise InvalidRequest(
            f"This model cannot be a white box: {reason}.",
            field="card/white_box",
            remedy="Leave out white_box: black-box attacks still work.",
        )
    if white is None:
        warnings.append(f"Only black-box attacks can be used: {reason}.")
    elif white.config.gives != config["gives"]:
        warnings.append("The final softmax was removed: attacks use the logits before it.")
    metrics = {} if white is None else {"difference_from_runtime": difference}
    return white or black_box(file, task, config, facts, run_file), facts, {"metrics": metrics, "warnings": warnings}


def size_of(file: OnnxFile, card: dict[str, Any]) -> dict[str, int]:
    """Height, width and channels, from the graph or the card. Raises if they disagree or neither states them."""
    places = {"nchw": (1, 2, 3), "nhwc": (3, 1, 2)}[card.get("layout", "nchw")]
    size = {}
    for name, place in zip(("channels", "height", "width"), places, strict=True):
        fixed, stated = file.shape[place], card.get(name)
        if fixed and stated and fixed != stated:
            remedy = "Set card/layout to nhwc if channels come last." if card.get("layout", "nchw") == "nchw" else None
            raise InvalidRequest(
                f"card/{name} must be {fixed}, as in the graph; you sent {stated}.",
                field=f"card/{name}",
                remedy=remedy,
            )
        if not (fixed or stated):
            raise InvalidRequest(f"card/{name} is required: the graph does not fix it.", field=f"card/{name}")
        size[name] = fixed or stated
    if size["channels"] > 4:
        raise InvalidRequest(
            f"Images have 1 to 4 channels; the graph takes {size['channels']}.",
            field="card/layout",
            remedy="Set card/layout to nhwc if channels come last.",
        )
    return {name: size[name] for name in ("height", "width", "channels")}


def as_list(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]


def black_box(file: OnnxFile, task: str, config: dict[str, Any], facts: dict[str, Any], run_file: Runtime) -> Opaque:
    model = imported()[f"opaque_{task}"].create(config, DataSpec.from_facts(facts)).load_for_serving(file.opaque_state)
    model.run_file = run_file
    return model


def runtime_outputs(model: Opaque, config: dict[str, Any], images: Tensor) -> tuple[Tensor, bool]:
    """The runtime's outputs, and whether it must be run one image at a time."""
    try:
        alone = torch.cat([model.answer(image) for image in images.split(1)])
    except OVERRUN as error:
        raise too_much(error, "run") from None
    except (InvalidRequest, ModelError, RuntimeError, ValueError, TypeError) as error:
        log.warning("onnx.not_runnable", error=str(error)[-200:])
        raise InvalidRequest(
            "ONNX Runtime cannot run this graph with images of the size in the card.",
            field="file",
            remedy="Check height, width, channels and layout in the card.",
        ) from None
    if not bool(torch.isfinite(alone).all()):
        raise InvalidRequest(
            "The outputs of the network for random images are not finite.",
            field="file",
            remedy="Check mean and std: they apply to pixels in [0, 1].",
        )
    if config["single"]:
        return alone, True
    try:
        together = model.answer(images)
    except (InvalidRequest, DeadlineExceeded, ModelError, RuntimeError, ValueError, TypeError):
        return alone, True
    same = together.shape == alone.shape and relative_difference(together, alone) <= PARITY
    return alone, not same


def require_bounded(model: Graph) -> None:
    """Raises TooMuchWork unless a pass of one image fits a batch into the memory of a sealed process.

    Shapes do not depend on pixels (models/imported/graph.py), so what holds for this image holds for all.
    """
    rows = next((rows for pixels, rows in CHUNKS if model.data.pixels <= pixels), 1)
    with torch.no_grad(), WorkLimit(settings().sandbox_bytes / rows):
        model.answer(torch.full((1, *model.data.shape), 0.5))


def relative_difference(outputs: Tensor, expected: Tensor) -> float:
    """The largest difference, as a fraction of the largest expected number."""
    return float((outputs - expected).abs().max() / expected.abs().max().clamp_min(1e-6))


def classes_of(task: str, answers: Tensor, layout: str, card: dict[str, Any]) -> list[str] | None:
    """The class names, checked against the shape of the outputs."""
    shape = tuple(answers.shape[1:])
    if task == "estimator":
        if answers[0].numel() != 1:
            raise InvalidRequest(
                f"card/task estimator needs one output number; the graph gives {shape}.", field="card/task"
            )
        return None
    if task == "segmenter" and len(shape) != 3:
        raise InvalidRequest(
            f"card/task segmenter needs one map per class; the graph gives {shape}.", field="card/task"
        )
    if task == "classifier" and (answers[0].numel() != max(shape) or max(shape) < 2):
        raise InvalidRequest(
            f"card/task classifier needs one number per class; the graph gives {shape}.", field="card/task"
        )
    count = answers[0].numel() if task == "classifier" else shape[0 if layout == "nchw" else 2]
    labels = card.get("labels") or [str(index) for index in range(count)]
    if len(labels) != count:
        raise InvalidRequest(
            f"card/labels must have {count} labels, one per class; you sent {len(labels)}.", field="card/labels"
        )
    return labels


def gives_of(task: str, answers: Tensor, layout: str, card: dict[str, Any], warnings: list[str]) -> str:
    """logits or probabilities, from the card and the outputs for random images."""
    stated = {"softmax": "probabilities", "logits": "logits"}.get(card.get("output", ""))
    if task == "estimator":
        return "logits"
    axis = 3 if task == "segmenter" and layout == "nhwc" else 1
    rows = answers.flatten(1) if task == "classifier" else answers
    normalised = bool((rows >= 0).all()) and bool((rows.sum(axis) - 1).abs().max() < 1e-3)
    if normalised and stated != "probabilities":
        warnings.append("The outputs are probabilities, not logits; they are used as probabilities.")
    if stated == "probabilities" and not normalised:
        raise InvalidRequest(
            "card/output is softmax, but the outputs of the network are not probabilities.",
            field="card/output",
            remedy="Set card/output to logits.",
        )
    return "probabilities" if normalised else "logits"


def white_box_model(
    file: OnnxFile, task: str, config: dict, facts: dict, images: Tensor, expected: Tensor
) -> tuple[Graph | None, float | None, str]:
    """The graph in torch and its difference from the runtime; or None and why not."""
    if unknown := unknown_operators(node.op for node in file.spec.nodes):
        return None, None, f"there is no gradient for the operators {', '.join(unknown)}"
    ending = next((node for node in file.spec.nodes if file.spec.output in node.outputs), None)
    cut = config["gives"] == "probabilities" and ending is not None and ending.op == "Softmax"
    if cut:
        file = replace(file, spec=file.spec.model_copy(update={"output": ending.inputs[0]}))
        config = config | {"gives": "logits"}
    try:
        model = imported()[f"graph_{task}"].create(config, DataSpec.from_facts(facts)).load_for_serving(file.state)
        require_bounded(model)
        leaf = images.clone().requires_grad_()
        outputs = model.answer(leaf)
        comparable = outputs.flatten(1).softmax(1).view_as(outputs) if cut and task == "classifier" else outputs
        comparable = (
            outputs.softmax(1 if config["layout"] == "nchw" else 3) if cut and task == "segmenter" else comparable
        )
        difference = relative_difference(comparable.detach(), expected)
        if difference > PARITY:
            return None, None, f"its operators, run one by one, differ from ONNX Runtime by {difference:.2g}"
        if outputs.grad_fn is None:
            return None, None, "no gradient of its outputs reaches the images"
        (gradient,) = torch.autograd.grad(outputs.square().sum(), leaf)
    except (TooMuchWork, ConfigError) as error:
        return None, None, error.detail
    except NotImplementedError as error:
        return None, None, f"there is no gradient for {error}"
    except (RuntimeError, KeyError, IndexError, TypeError, ValueError, ModelError) as error:
        log.warning("onnx.not_differentiable", error=str(error)[:200])
        return None, None, "its operators cannot all be run one by one"
    if not bool(torch.isfinite(gradient).all()) or not bool(gradient.any()):
        return None, None, "no gradient of its outputs reaches the images"
    return model, difference, ""
