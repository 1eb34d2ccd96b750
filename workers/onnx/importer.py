"""From an ONNX file and its card to a model: differentiable where every operator is known and the answers agree."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from app.core.errors import InvalidRequest
from models.imported.base import Imported
from models.imported.graph import Graph, unknown_operators
from models.imported.opaque import Opaque
from models.registry import imported
from models.types import DataSpec, ModelError
from workers.onnx.files import OnnxFile, read, runtime

LAYOUTS = {"classifier": "labelled", "estimator": "attributes", "segmenter": "segmentation"}
PARITY = 1e-3
"""Largest difference between torch and ONNX Runtime, as a share of the largest answer, for a white box."""
TRIED = 3


def from_onnx(content: bytes, card: dict[str, Any]) -> tuple[Imported, dict[str, Any], dict[str, Any]]:
    """The model, the facts it is described by, and what was found: metrics, origin, warnings."""
    file, task = read(content), card.get("task", "classifier")
    facts = {"layout": LAYOUTS[task], **size_of(file, card), "classes": None, "columns": {}}
    config: dict[str, Any] = {"layout": card.get("layout", "nchw"), "single": file.shape[0] == 1}
    config |= {name: as_list(card[name]) for name in ("mean", "std") if name in card}
    images = torch.rand((TRIED, facts["channels"], facts["height"], facts["width"]),
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
    wanted, config["single"] = asked(file, task, config, facts, images)
    facts["classes"] = classes_of(task, wanted, config["layout"], card)
    warnings: list[str] = []
    config["gives"] = gives_of(task, wanted, config["layout"], card, warnings)
    white, difference, reason = white_box(file, task, config, facts, images, wanted)
    if white is None and card.get("white_box"):
        raise InvalidRequest(
            f"This model cannot be a white box: {reason}.",
            field="card/white_box",
            remedy="Leave white_box out: black-box attacks then still work.",
        )
    if white is None:
        warnings.append(f"Only black-box attacks can be used: {reason}.")
    elif white.config.gives != config["gives"]:
        warnings.append("The softmax at the end was taken off: attacks see the logits before it.")
    metrics = {} if white is None else {"difference_from_runtime": difference}
    return white or black_box(file, task, config, facts), facts, {"metrics": metrics, "warnings": warnings}


def size_of(file: OnnxFile, card: dict[str, Any]) -> dict[str, int]:
    """Height, width and channels, from the card or else from the graph. Raises where they disagree or nobody says."""
    places = {"nchw": (1, 2, 3), "nhwc": (3, 1, 2)}[card.get("layout", "nchw")]
    found = {}
    for name, place in zip(("channels", "height", "width"), places, strict=True):
        fixed, said = file.shape[place], card.get(name)
        if fixed and said and fixed != said:
            remedy = "Is the layout nhwc?" if card.get("layout", "nchw") == "nchw" else None
            raise InvalidRequest(f"The graph takes {name} {fixed}, the card says {said}.", field=f"card/{name}",
                                 remedy=remedy)  # fmt: skip
        if not (fixed or said):
            raise InvalidRequest(f"The graph leaves {name} open; the card must say it.", field=f"card/{name}")
        found[name] = fixed or said
    if found["channels"] > 4:
        raise InvalidRequest(
            f"The graph takes {found['channels']} channels; images have 1 to 4.",
            field="card/layout",
            remedy="Set layout to nhwc when channels come last.",
        )
    return {name: found[name] for name in ("height", "width", "channels")}


def as_list(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]


def black_box(file: OnnxFile, task: str, config: dict[str, Any], facts: dict[str, Any]) -> Opaque:
    model = imported()[f"opaque_{task}"].create(config, DataSpec.from_facts(facts)).load_for_serving(file.opaque_state)
    model.asked = runtime(file.content)
    return model


def asked(file: OnnxFile, task: str, config: dict, facts: dict, images: Tensor) -> tuple[Tensor, bool]:
    """What the runtime answers, and whether it must be asked for one image at a time."""
    singly = config | {"single": True}
    try:
        alone = black_box(file, task, singly, facts).answer(images)
    except Exception as error:  # of the runtime: many kinds, all the file's fault
        reason = str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__
        raise InvalidRequest(f"ONNX Runtime cannot run this graph: {reason}", field="file") from None
    if not bool(torch.isfinite(alone).all()):
        raise InvalidRequest(
            "The network answers random images with what is not a number.",
            field="file",
            remedy="Are mean and std those of pixels in [0, 1]?",
        )
    if config["single"]:
        return alone, True
    try:
        together = black_box(file, task, config, facts).answer(images)
    except Exception:
        return alone, True
    same = together.shape == alone.shape and share(together, alone) <= PARITY
    return alone, not same


def share(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest number wanted."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))


def classes_of(task: str, answers: Tensor, layout: str, card: dict[str, Any]) -> list[str] | None:
    """The labels, counted against the answers."""
    shape = tuple(answers.shape[1:])
    if task == "estimator":
        if answers[0].numel() != 1:
            raise InvalidRequest(f"An estimator gives one number; this gives {shape}.", field="card/task")
        return None
    if task == "segmenter" and len(shape) != 3:
        raise InvalidRequest(f"A segmenter gives a map for each class; this gives {shape}.", field="card/task")
    if task == "classifier" and (answers[0].numel() != max(shape) or max(shape) < 2):
        raise InvalidRequest(f"A classifier gives a number for each class; this gives {shape}.", field="card/task")
    count = answers[0].numel() if task == "classifier" else shape[0 if layout == "nchw" else 2]
    labels = card.get("labels") or [str(index) for index in range(count)]
    if len(labels) != count:
        raise InvalidRequest(f"There are {len(labels)} labels for {count} classes.", field="card/labels")
    return labels


def gives_of(task: str, answers: Tensor, layout: str, card: dict[str, Any], warnings: list[str]) -> str:
    """logits or probabilities, by the card and by what random images show."""
    said = {"softmax": "probabilities", "logits": "logits"}.get(card.get("output", ""))
    if task == "estimator":
        return "logits"
    axis = 3 if task == "segmenter" and layout == "nhwc" else 1
    rows = answers.flatten(1) if task == "classifier" else answers
    shown = bool((rows >= 0).all()) and bool((rows.sum(axis) - 1).abs().max() < 1e-3)
    if shown and said != "probabilities":
        warnings.append("The answers are probabilities, not logits: they are taken as such.")
    if said == "probabilities" and not shown:
        raise InvalidRequest(
            "The card says that the network ends in a softmax, but its answers are no probabilities.",
            field="card/output",
            remedy="Set output to logits.",
        )
    return "probabilities" if shown else "logits"


def white_box(
    file: OnnxFile, task: str, config: dict, facts: dict, images: Tensor, wanted: Tensor
) -> tuple[Graph | None, float | None, str]:
    """The graph in torch and its difference from the runtime; or None and why not."""
    if unknown := unknown_operators(node.op for node in file.drawing.nodes):
        return None, None, f"there is no gradient of {', '.join(unknown)}"
    ending = next((node for node in file.drawing.nodes if file.drawing.output in node.outputs), None)
    cut = config["gives"] == "probabilities" and ending is not None and ending.op == "Softmax"
    if cut:
        file = replace(file, drawing=file.drawing.model_copy(update={"output": ending.inputs[0]}))
        config = config | {"gives": "logits"}
    try:
        model = imported()[f"graph_{task}"].create(config, DataSpec.from_facts(facts)).load_for_serving(file.state)
        leaf = images.clone().requires_grad_()
        found = model.answer(leaf)
        shown = found.flatten(1).softmax(1).view_as(found) if cut and task == "classifier" else found
        shown = found.softmax(1 if config["layout"] == "nchw" else 3) if cut and task == "segmenter" else shown
        difference = share(shown.detach(), wanted)
        if difference > PARITY:
            return None, None, f"its operators, run one by one, answer otherwise by {difference:.2g}"
        if found.grad_fn is None:
            return None, None, "no gradient of its answers reaches the images"
        (slope,) = torch.autograd.grad(found.square().sum(), leaf)
    except (NotImplementedError, RuntimeError, KeyError, IndexError, TypeError, ValueError, ModelError) as error:
        return None, None, f"its operators cannot all be run one by one ({str(error)[:160]})"
    if not bool(torch.isfinite(slope).all()) or not bool(slope.any()):
        return None, None, "no gradient of its answers reaches the images"
    return model, difference, ""
