"""Results of an attack on an oracle, saved group by group, and the result of its job."""

import io
import json
import zipfile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.core.errors import OracleSilent
from app.core.store import blobs
from models.attacks.core.result import AttackResult
from workers import codecs
from workers.jobs.job import RunningJob
from workers.jobs.kinds.operation import EPOCH

ITEMS = 100
"""Most items in the facts of the job's result; facts.json has all."""


def add_group(
    job: RunningJob, results: dict, group: AttackResult, images: Tensor, truth: Tensor, asked: int, most: int | None
) -> dict:
    """Saves a group with the results before it. `most`: upper bound of the queries per image of the group, if known."""
    key = job.artifact_key(f"part-{len(results['parts']):05}.npy")
    file = io.BytesIO()
    np.save(file, codecs.to_uint8(group.images), allow_pickle=False)
    blobs.put(key, file.getvalue(), create_only=False)
    results = {
        "items": results["items"] + items(group, images, truth, len(results["items"]), most),
        "parts": [*results["parts"], key],
        "asked": asked,
    }
    job.checkpoint({"kept": results})
    return results


def items(group: AttackResult, images: Tensor, truth: Tensor, start: int, most: int | None) -> list[dict[str, Any]]:
    delta = group.images - images
    rows = []
    for row in range(len(images)):
        logits = group.logits[row]
        rows.append(
            {
                "image": start + row,
                "success": bool(group.success[row]),
                "initially_wrong": bool(group.initially_wrong[row]),
                "finite": not bool(group.nonfinite[row]),
                "label": int(truth[row]),
                "answer": int(logits.argmax()) if bool(torch.isfinite(logits).all()) else None,
                "linf_255": round(float(delta[row].abs().max()) * 255),
                "l2": float(delta[row].norm()),
                "l0": int((delta[row] != 0).any(0).sum()),
                "queries": min(int(group.queries[row]), int(group.queries[row]) if most is None else most),
            }
        )
    return rows


def job_result(job: RunningJob, results: dict, total: int, ended: str | None) -> dict[str, Any]:
    """The result of the job: the facts, and the adversarial images as files. `ended`: why the oracle stopped."""
    rows, spec = results["items"], job.spec
    files = io.BytesIO()
    with zipfile.ZipFile(files, "w", zipfile.ZIP_STORED) as archive:
        index = 0
        for key in results["parts"]:
            for png in codecs.encode_png(np.load(io.BytesIO(blobs.get(key)), allow_pickle=False)):
                archive.writestr(zipfile.ZipInfo(f"{index:04}.png", EPOCH), png)
                index += 1
    contents = {"images.zip": files.getvalue(), "facts.json": json.dumps({"items": rows}).encode()}
    finite = [row for row in rows if row.get("finite", True)]
    if rows and not finite:
        raise OracleSilent(f"The oracle's scores were not finite for any of the {len(rows)} images.")
    attackable = [row for row in finite if not row["initially_wrong"]]
    hits = sum(row["success"] for row in attackable)
    notes = [] if ended is None else [f"{ended.capitalize()}: {len(rows)} of {total} images are in the result."]
    return {
        "oracle": spec["oracle"],
        "method": spec["method"],
        "params": spec["params"],
        "images": len(rows),
        "complete": ended is None and len(rows) == total,
        "not_finite": len(rows) - len(finite),
        "queries": results["asked"],
        "right_before": len(attackable),
        "fooled": hits,
        "success_rate": hits / len(attackable) if attackable else None,
        "facts": {"items": rows[:ITEMS]},
        "warnings": notes,
        **job.store_artifacts(contents),
    }
