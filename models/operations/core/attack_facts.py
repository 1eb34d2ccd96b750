"""The facts of each attacked image: predictions before and after, norms, controls, eps sweep, notes."""

import torch
from torch import Tensor

from models.family import Family
from models.operations.core.base import Params, Rows
from models.operations.core.victims import Victim, victim_of

SCALARS = ("success", "success_float", "queries", "gradients", "wrong", "zero_gradient", "probabilities")
"""Rows of an attack with one number or flag per image."""
CONTROLS = ("control", "shuffled")
"""Perturbations of the same size, which an attack should beat by far."""


def items(model: Family, rows: Rows, found: Rows, params: Params, scales: list[float]) -> list[dict]:
    """The facts of each image."""
    victim, facts = victim_of(model, params), []
    columns = {name: found[name].tolist() for name in SCALARS}
    sizes = _sizes(rows, found)
    for row, scale in enumerate(scales):
        scalars = {name: values[row] for name, values in columns.items()}
        item = {
            **{name: scalars[name] for name in ("success", "success_float")},
            **sizes[row],
            **{name: scalars[name] for name in ("queries", "gradients")},
            "control": None,
            "sweep": None,
            "labels_from": "request" if victim.given(rows, row) else "model",
            "initially_wrong": scalars["wrong"],
        }
        for name in ("clean", "adversarial", *CONTROLS):
            if name in found:
                item[name] = victim.describe(model, found[name][row], found, row)
        for name in CONTROLS:
            if name in found:
                item[name]["success"] = bool(found[f"{name}_success"][row])
        item |= {"perturbation_scale": scale, "notes": _notes(victim, rows, scalars, params, row, item)}
        if "sweep" in found:
            item["sweep"] = _sweep(victim, model, rows["sweep"][row].tolist(), found, row)
            item["flip_eps"] = next((point["eps"] for point in item["sweep"] if point["success"]), None)
        facts.append(item)
    return facts


def _sizes(rows: Rows, found: Rows) -> list[dict]:
    """The norms of each perturbation, beside the eps that was allowed."""
    delta = found["images"] - rows["inputs"]
    flat, changed = delta.abs().flatten(1), (delta != 0).any(1).flatten(1)
    columns = zip(
        rows["eps"].tolist(), flat.amax(1).tolist(), flat.norm(dim=1).tolist(), changed.sum(1).tolist(), strict=True
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
        {"eps": eps, "success": success} | victim.describe(model, seen, found, row, brief=True)
        for eps, success, seen in points
    ]


def _notes(victim: Victim, rows: Rows, scalars: dict, params: Params, row: int, item: dict) -> list[str]:
    """Sentences for the user about what they may not expect."""
    notes, requested, eps, clean = [], params.attack().threat(), item["eps"], item["clean"]
    if clean.get("left_out") and clean["left_out"] == clean["objects"]:
        notes.append(victim.nothing_left)
    elif scalars["wrong"] and params.target is not None and "label" in clean:
        notes.append(f"The model already predicts {clean['label']} for this image: it is returned unchanged.")
    elif scalars["wrong"]:
        notes.append(victim.fooled)
    if 0 < clean.get("left_out", 0) < clean["objects"]:
        notes.append(victim.left_out)
    if requested.norm == "linf" and eps is not None and abs(float(requested.eps) - eps) > 1e-6:
        below = round(eps * 255)
        notes.append(
            f"eps {float(requested.eps):.6g} is {float(requested.eps) * 255:.4g}/255, but 8-bit pixels change in "
            f"steps of 1/255: "
            f"{below}/255 was used; the next step is {below + 1}/255."
        )
    if item["labels_from"] == "model" and params.target is None:
        notes.append(victim.presumed)
    if scalars["success_float"] and not scalars["success"]:
        notes.append("The attack succeeds only before rounding to 8 bits; no rounded image within eps does.")
    if scalars["zero_gradient"]:
        notes.append("The gradient was zero at least once, so failure does not show robustness.")
    if scalars["probabilities"]:
        notes.append("The model outputs probabilities; their logarithms were attacked.")
    return notes


def perturbation(before: Tensor, after: Tensor) -> tuple[Tensor, list[float]]:
    """The perturbations as images around mid-grey, scaled to reach black or white, and the scale of each."""
    delta = after - before
    top = delta.abs().flatten(1).amax(1) if len(delta) else delta.new_zeros(0)
    scale = torch.where(top > 0, 0.5 / top.clamp_min(1e-12), 1.0)
    return (0.5 + delta * scale.view(-1, 1, 1, 1)).clamp(0, 1), scale.tolist()
