"""The job kind "oracle": black-box attacks on a model elsewhere. What was found before it fell silent is kept."""

import torch
from torch import Tensor

from app.core.calls.messages import unpack_inputs
from app.core.errors import InvalidRequest, NotFound, OracleSilent
from app.core.oracles import Oracle
from app.core.settings import settings
from app.core.store import blobs
from models.attacks.core.base import Attack
from models.attacks.core.combine import quantised
from models.attacks.core.logits import as_logits
from models.attacks.core.remote import RemoteOracle
from models.attacks.core.result import AttackResult
from models.attacks.core.run import BudgetExhausted
from models.attacks.criteria.classification import Criterion, Misclassified, Targeted
from models.data import Columns
from models.registry import attacks
from models.seeds import derive
from models.types import DataSpec, InputError
from workers import codecs
from workers.jobs.job import Result, RunningJob
from workers.jobs.kinds.oracle_client import OracleClient
from workers.jobs.kinds.oracle_results import concluded, keep
from workers.store.training_data import open_source

GROUP = 8
"""Images attacked side by side: their queries travel together."""
LEVELS = 256
MAX_PIXELS = 1 << 26


def run_oracle(job: RunningJob) -> Result:
    """Attacks the oracle of the spec {"oracle", "method", "params", "label", "target", images or dataset rows}."""
    spec = job.spec
    oracle = settings().oracles.get(spec["oracle"])
    if oracle is None:
        raise NotFound(f"There is no oracle {spec['oracle']}.", field="oracle")
    attack = quantised(attacks()[spec["method"]](**spec["params"]))
    images, labels = open_images(job, oracle)
    kept = (job.last_checkpoint or {}).get("kept") or {"items": [], "parts": [], "asked": 0}
    access = distant(job, oracle, kept["asked"])
    for start in range(len(kept["items"]), len(images), GROUP):
        rows = slice(start, min(start + GROUP, len(images)))
        before = access.asked
        found = attacked(attack, access, images[rows], labels[rows], spec, start, oracle)
        if found is None:
            break
        kept = keep(job, kept, *found, asked=access.asked, most=access.asked - before if access.ended else None)
        job.progress(rows.stop, len(images))
        if access.ended:
            break
        job.stop_if_asked()
    if not kept["items"]:
        raise OracleSilent(f"{access.ended}; no image was attacked.".capitalize(), remedy="Ask whoever runs it.")
    return Result(concluded(job, kept, len(images), access.ended))


def distant(job: RunningJob, oracle: Oracle, asked: int) -> RemoteOracle:
    """The oracle as attacks see it, with what earlier attempts spent."""
    total = min(job.spec.get("total_budget") or oracle.max_queries, oracle.max_queries)
    access = RemoteOracle(
        OracleClient(oracle, job.stop_if_asked), len(oracle.classes or ()) or None, oracle.answers, total
    )
    access.asked = asked
    return access


def open_images(job: RunningJob, oracle: Oracle) -> tuple[Tensor, Tensor]:
    """float32 (n, C, H, W) and labels int64 (n,), -1 where nobody says what is right."""
    spec = job.spec
    if "dataset" not in spec:
        try:
            files, *_ = unpack_inputs(blobs.get(spec["upload"]))
        except FileNotFoundError:
            raise InvalidRequest("The inputs of this job are gone.", remedy="Send the request again.") from None
        pixels = codecs.decode_alike(codecs.decode(files[0]).shape[0], files, MAX_PIXELS)
        truth = class_of(spec.get("label"), oracle, "label")
        return codecs.to_tensor(pixels), torch.full((len(pixels),), truth)
    source = open_source(job.bind, job.tenant, spec["dataset"], tick=job.stop_if_asked)
    rows, data = Columns(source.data.validation), DataSpec.from_facts(source.data.facts)
    index = torch.arange(spec.get("start", 0), min(spec.get("start", 0) + spec["count"], len(rows)))
    if not len(index):
        raise InputError(f"the dataset has {len(rows)} validation images", "start", "start earlier")
    found = rows.rows(index)
    labels = found.get("labels", torch.full((len(index),), -1))
    if oracle.classes and data.classes:  # names tell, where both sides have them
        places = [oracle.classes.index(name) if name in oracle.classes else -1 for name in data.classes]
        labels = torch.tensor([places[label] if label >= 0 else -1 for label in labels.tolist()])
    return found["images"], labels


def class_of(given: str | int | None, oracle: Oracle, field: str) -> int:
    """The index of a class of the oracle; -1 for none."""
    if given is None:
        return -1
    if oracle.classes is not None and given in oracle.classes:
        return oracle.classes.index(given)
    if str(given).isdecimal() and (oracle.classes is None or int(given) < len(oracle.classes)):
        return int(given)
    raise InputError("the oracle has no such class", field, "see GET /v1/oracles")


def attacked(
    attack: Attack, access: RemoteOracle, images: Tensor, labels: Tensor, spec: dict, start: int, oracle: Oracle
) -> tuple[AttackResult, Tensor, Tensor] | None:
    """The result of a group, its images and what counted as right; None when the oracle said nothing of them at all."""
    access.with_budget(attack.config.budget)
    try:
        clean = as_logits(access.outputs(images))
    except BudgetExhausted:
        known = access.known(images)
        images, labels = images[known], labels[known]
        if not len(images):
            return None
        clean = as_logits(access.exact(images))
    truth = torch.where(labels < 0, clean.argmax(1), labels)
    seeds = torch.tensor([derive(spec.get("seed") or 0, "oracle", start + row) for row in range(len(images))])
    criterion: Criterion = Misclassified(truth)
    if spec.get("target") is not None:
        criterion = Targeted(torch.full_like(truth, class_of(spec["target"], oracle, "target")))
    threat = attack.threat(LEVELS)
    return attack.run(access, images, criterion, threat, seeds), images, truth
