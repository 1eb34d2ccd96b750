"""What is said of each image under attack: predictions before and after, sizes, the control, the curve."""

import torch
from torch import Tensor

from models.family import Family
from models.operations.core import Params, Rows
from models.victims import Victim, victim_of

CONTROLS = ("control", "shuffled")
"""Perturbations of the same size that an attack has to beat by far."""


def items(model: Family, rows: Rows, found: Rows, params: Params, scales: list[float]) -> list[dict]:
    """The facts of each image."""
    victim, facts = victim_of(model, params), []
    for row, scale in enumerate(scales):
        item = _measures(victim, rows, found, row)
        for name in ("clean", "adversarial", *CONTROLS):
            if name in found:
                item[name] = victim.describe(model, found[name][row], found, row)
        for name in CONTROLS:
            if name in found:
                item[name]["success"] = bool(found[f"{name}_success"][row])
        item |= {"perturbation_scale": scale, "notes": _notes(victim, rows, found, params, row, item["clean"])}
        if "sweep" in found:
            item["sweep"] = _sweep(victim, model, rows["sweep"][row].tolist(), found, row)
            item["flip_eps"] = next((point["eps"] for point in item["sweep"] if point["success"]), None)
        facts.append(item)
    return facts


def _measures(victim: Victim, rows: Rows, found: Rows, row: int) -> dict:
    delta, eps = found["images"][row] - rows["inputs"][row], float(rows["eps"][row])
    linf = float(delta.abs().max())
    return {
        "success": bool(found["success"][row]),
        "success_float": bool(found["success_float"][row]),
        "eps": eps if eps >= 0 else None,
        "linf_255": round(linf * 255),
        "norms": {"linf": linf, "l2": float(delta.norm()), "l0": int((delta != 0).any(0).sum())},
        "queries": int(found["queries"][row]),
        "gradients": int(found["gradients"][row]),
        "control": None,
        "sweep": None,
        "labels_from": "request" if victim.given(rows, row) else "model",
        "initially_wrong": bool(found["wrong"][row]),
    }


def _sweep(victim: Victim, model: Family, radii: list[float], found: Rows, row: int) -> list[dict]:
    points = zip(radii, found["sweep_success"][row].tolist(), found["sweep"][row], strict=True)
    return [
        {"eps": eps, "success": hit} | victim.describe(model, seen, found, row, brief=True) for eps, hit, seen in points
    ]


def _notes(victim: Victim, rows: Rows, found: Rows, params: Params, row: int, clean: dict) -> list[str]:
    """Sentences for the user: what was done otherwise than they may expect."""
    notes, asked, eps = [], params.attack().threat(), float(rows["eps"][row])
    if found["wrong"][row] and params.target is not None and "label" in clean:
        notes.append(f"The model takes this image for {clean['label']} already: it is returned unchanged.")
    elif found["wrong"][row]:
        notes.append(victim.fooled)
    if asked.norm == "linf" and eps >= 0 and abs(float(asked.eps) - eps) > 1e-6:
        below = round(eps * 255)
        notes.append(
            f"eps {float(asked.eps):.6g} is {float(asked.eps) * 255:.4g}/255, but 8-bit pixels move in whole 255ths: "
            f"{below}/255 was used; the next is {below + 1}/255."
        )
    if not victim.given(rows, row) and params.target is None:
        notes.append(victim.presumed)
    if found["success_float"][row] and not found["success"][row]:
        notes.append("The attack succeeds before rounding to 8 bits only, and no repair was found within eps.")
    if found["flat"][row]:
        notes.append("The gradient vanished at least once: failure here is no sign of robustness.")
    if found["soft"][row]:
        notes.append("The model gives probabilities; their logarithms were attacked.")
    return notes


def perturbation(before: Tensor, after: Tensor) -> tuple[Tensor, list[float]]:
    """The change of each image around mid-grey, its largest entry at black or white, and the factor that takes."""
    delta = after - before
    top = delta.abs().flatten(1).amax(1) if len(delta) else delta.new_zeros(0)
    scale = torch.where(top > 0, 0.5 / top.clamp_min(1e-12), 1.0)
    return (0.5 + delta * scale.view(-1, 1, 1, 1)).clamp(0, 1), scale.tolist()
