"""What an attack on an oracle has found so far, kept group by group, and the result of its job."""

import io
import json
import zipfile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.core.store import blobs
from models.attacks.core.result import AttackResult
from workers import codecs
from workers.jobs.job import RunningJob
from workers.jobs.kinds.operation import EPOCH

ITEMS = 100
"""Rows of facts in the job's result; the file has all."""


def keep(
    job: RunningJob, kept: dict, found: AttackResult, images: Tensor, truth: Tensor, asked: int, most: int | None
) -> dict:
    """Adds a group to what the job has, for good. `most` queries can have been made for an image of it, if known."""
    key = job.artifact_key(f"part-{len(kept['parts']):05}.npy")
    file = io.BytesIO()
    np.save(file, codecs.to_uint8(found.images), allow_pickle=False)
    blobs.put(key, file.getvalue(), create_only=False)
    kept = {
        "items": kept["items"] + items(found, images, truth, len(kept["items"]), most),
        "parts": [*kept["parts"], key],
        "asked": asked,
    }
    job.checkpoint({"kept": kept})
    return kept


def items(found: AttackResult, images: Tensor, truth: Tensor, start: int, most: int | None) -> list[dict[str, Any]]:
    delta = found.images - images
    rows = []
    for row in range(len(images)):
        said = found.logits[row]
        rows.append(
            {
                "image": start + row,
                "success": bool(found.success[row]),
                "initially_wrong": bool(found.initially_wrong[row]),
                "label": int(truth[row]),
                "answer": int(said.argmax()) if bool(torch.isfinite(said).all()) else None,
                "linf_255": round(float(delta[row].abs().max()) * 255),
                "l2": float(delta[row].norm()),
                "l0": int((delta[row] != 0).any(0).sum()),
                "queries": min(int(found.queries[row]), int(found.queries[row]) if most is None else most),
            }
        )
    return rows


def concluded(job: RunningJob, kept: dict, wanted: int, ended: str | None) -> dict[str, Any]:
    """The job's result: the facts, and the adversarial images as files."""
    rows, spec = kept["items"], job.spec
    files = io.BytesIO()
    with zipfile.ZipFile(files, "w", zipfile.ZIP_STORED) as archive:
        index = 0
        for key in kept["parts"]:
            for png in codecs.encode_png(np.load(io.BytesIO(blobs.get(key)), allow_pickle=False)):
                archive.writestr(zipfile.ZipInfo(f"{index:04}.png", EPOCH), png)
                index += 1
    written = {"images.zip": files.getvalue(), "facts.json": json.dumps({"items": rows}).encode()}
    keys = {name: job.artifact_key(name) for name in written}
    for name, data in written.items():
        blobs.put(keys[name], data, create_only=False)
    attackable = [row for row in rows if not row["initially_wrong"]]
    hits = sum(row["success"] for row in attackable)
    notes = [] if ended is None else [f"{ended.capitalize()}: {len(rows)} of {wanted} images are in the result."]
    return {
        "oracle": spec["oracle"],
        "method": spec["method"],
        "params": spec["params"],
        "images": len(rows),
        "complete": ended is None and len(rows) == wanted,
        "queries": kept["asked"],
        "right_before": len(attackable),
        "fooled": hits,
        "success_rate": hits / len(attackable) if attackable else None,
        "facts": {"items": rows[:ITEMS]},
        "warnings": notes,
        "artifacts": keys,
    }
