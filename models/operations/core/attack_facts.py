"""What is said of each image under attack: predictions before and after, sizes, the control, the curve."""

import torch
from torch import Tensor

from models.family import Family
from models.operations.core.base import Params, Rows
from models.operations.core.victims import Victim, victim_of

KNOWN = ("success", "success_float", "queries", "gradients", "wrong", "zero_gradient", "probabilities")
"""What was found of each image that is a number or a yes."""
CONTROLS = ("control", "shuffled")
"""Perturbations of the same size that an attack has to beat by far."""


def items(model: Family, rows: Rows, found: Rows, params: Params, scales: list[float]) -> list[dict]:
    """The facts of each image."""
    victim, facts = victim_of(model, params), []
    known = {name: found[name].tolist() for name in KNOWN}
    sizes = _sizes(rows, found)
    for row, scale in enumerate(scales):
        said = {name: values[row] for name, values in known.items()}
        item = {
            **{name: said[name] for name in ("success", "success_float")},
            **sizes[row],
            **{name: said[name] for name in ("queries", "gradients")},
            "control": None,
            "sweep": None,
            "labels_from": "request" if victim.given(rows, row) else "model",
            "initially_wrong": said["wrong"],
        }
        for name in ("clean", "adversarial", *CONTROLS):
            if name in found:
                item[name] = victim.describe(model, found[name][row], found, row)
        for name in CONTROLS:
            if name in found:
                item[name]["success"] = bool(found[f"{name}_success"][row])
        item |= {"perturbation_scale": scale, "notes": _notes(victim, rows, said, params, row, item)}
        if "sweep" in found:
            item["sweep"] = _sweep(victim, model, rows["sweep"][row].tolist(), found, row)
            item["flip_eps"] = next((point["eps"] for point in item["sweep"] if point["success"]), None)
        facts.append(item)
    return facts


def _sizes(rows: Rows, found: Rows) -> list[dict]:
    """How far each image was changed, beside how far it might have been."""
    delta = found["images"] - rows["inputs"]
    flat, moved = delta.abs().flatten(1), (delta != 0).any(1).flatten(1)
    columns = zip(
        rows["eps"].tolist(), flat.amax(1).tolist(), flat.norm(dim=1).tolist(), moved.sum(1).tolist(), strict=True
    )
    return [
        {
            "eps": eps if eps >= 0 else None,
            "linf_255": round(linf * 255),
            "norms": {"linf": linf, "l2": l2, "l0": l0},
        }
        for eps, linf, l2, l0 in columns
    ]


def _sweep(victim: Victim, model: Family, radii: list[float], found: Rows, row: int) -> list[dict]:
    points = zip(radii, found["sweep_success"][row].tolist(), found["sweep"][row], strict=True)
    return [
        {"eps": eps, "success": hit} | victim.describe(model, seen, found, row, brief=True) for eps, hit, seen in points
    ]


def _notes(victim: Victim, rows: Rows, said: dict, params: Params, row: int, item: dict) -> list[str]:
    """Sentences for the user: what was done otherwise than they may expect."""
    notes, asked, eps, clean = [], params.attack().threat(), item["eps"], item["clean"]
    if clean.get("left_out") and clean["left_out"] == clean["objects"]:
        notes.append(victim.nothing_left)
    elif said["wrong"] and params.target is not None and "label" in clean:
        notes.append(f"The model takes this image for {clean['label']} already: it is returned unchanged.")
    elif said["wrong"]:
        notes.append(victim.fooled)
    if 0 < clean.get("left_out", 0) < clean["objects"]:
        notes.append(victim.left_out)
    if asked.norm == "linf" and eps is not None and abs(float(asked.eps) - eps) > 1e-6:
        below = round(eps * 255)
        notes.append(
            f"eps {float(asked.eps):.6g} is {float(asked.eps) * 255:.4g}/255, but 8-bit pixels move in whole 255ths: "
            f"{below}/255 was used; the next is {below + 1}/255."
        )
    if item["labels_from"] == "model" and params.target is None:
        notes.append(victim.presumed)
    if said["success_float"] and not said["success"]:
        notes.append("The attack succeeds before rounding to 8 bits only, and no repair was found within eps.")
    if said["zero_gradient"]:
        notes.append("The gradient vanished at least once: failure here is no sign of robustness.")
    if said["probabilities"]:
        notes.append("The model gives probabilities; their logarithms were attacked.")
    return notes


def perturbation(before: Tensor, after: Tensor) -> tuple[Tensor, list[float]]:
    """The change of each image around mid-grey, its largest entry at black or white, and the factor that takes."""
    delta = after - before
    top = delta.abs().flatten(1).amax(1) if len(delta) else delta.new_zeros(0)
    scale = torch.where(top > 0, 0.5 / top.clamp_min(1e-12), 1.0)
    return (0.5 + delta * scale.view(-1, 1, 1, 1)).clamp(0, 1), scale.tolist()
