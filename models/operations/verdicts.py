"""What is said of each image under attack: predictions before and after, sizes, the control, the curve."""

import torch
from torch import Tensor

from models.family import Family
from models.operations.core import Params, Rows

SEEN = ("clean", "adversarial", "control", "sweep")
"""What `compute` gives as logits (N, ..., K)."""


def prediction(model: Family, chances: Tensor) -> dict:
    """The most probable class of one row (K,)."""
    index, names = int(chances.argmax()), model.data.classes
    return {"label": names[index] if names else str(index), "index": index, "probability": float(chances[index])}


def items(model: Family, rows: Rows, found: Rows, params: Params, scales: list[float]) -> list[dict]:
    """The facts of each image."""
    chances = {name: found[name].double().softmax(-1) for name in SEEN if name in found}
    facts = []
    for row, scale in enumerate(scales):
        seen = {name: part[row] for name, part in chances.items()}
        item = _measures(rows, found, row) | {name: prediction(model, seen[name]) for name in SEEN[:2]}
        item |= {"perturbation_scale": scale, "notes": _notes(rows, found, params, row, item["clean"])}
        if "control" in seen:
            item["control"] = prediction(model, seen["control"])
            item["control"]["success"] = _fools(rows, found, item["control"]["index"], row)
        if "sweep" in seen:
            item["sweep"] = _sweep(model, rows["sweep"][row], found["sweep_success"][row], seen["sweep"])
            item["flip_eps"] = next((point["eps"] for point in item["sweep"] if point["success"]), None)
        facts.append(item)
    return facts


def _measures(rows: Rows, found: Rows, row: int) -> dict:
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
        "labels_from": "request" if rows["labels"][row] >= 0 else "model",
        "initially_wrong": bool(found["wrong"][row]),
    }


def _fools(rows: Rows, found: Rows, index: int, row: int) -> bool:
    target = int(rows["targets"][row])
    return index == target if target >= 0 else index != int(found["labels"][row])


def _sweep(model: Family, radii: Tensor, hits: Tensor, chances: Tensor) -> list[dict]:
    rows = zip(radii.tolist(), hits.tolist(), chances, strict=True)
    return [{"eps": eps, "success": hit} | prediction(model, part) for eps, hit, part in rows]


def _notes(rows: Rows, found: Rows, params: Params, row: int, clean: dict) -> list[str]:
    """Sentences for the user: what was done otherwise than they may expect."""
    notes, asked, eps = [], params.attack().threat(), float(rows["eps"][row])
    if found["wrong"][row] and rows["targets"][row] >= 0:
        notes.append(f"The model takes this image for {clean['label']} already: it is returned unchanged.")
    elif found["wrong"][row]:
        notes.append("The model misclassifies this image without an attack: it is returned unchanged.")
    if asked.norm == "linf" and eps >= 0 and abs(float(asked.eps) - eps) > 1e-6:
        below = round(eps * 255)
        notes.append(
            f"eps {float(asked.eps):.6g} is {float(asked.eps) * 255:.4g}/255, but 8-bit pixels move in whole 255ths: "
            f"{below}/255 was used; the next is {below + 1}/255."
        )
    if rows["labels"][row] < 0 and rows["targets"][row] < 0:
        notes.append("No label was given: the model's own answer was taken for the truth.")
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
