"""The job kind "oracle": black-box attacks on a model elsewhere. Results so far are kept if it stops answering."""

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
from models.capabilities import predicted_classes
from models.data import Columns
from models.registry import attacks
from models.seeds import derive
from models.types import DataSpec, InputError, class_index
from workers import codecs
from workers.jobs.job import Result, RunningJob
from workers.jobs.kinds.oracle_client import OracleClient
from workers.jobs.kinds.oracle_results import add_group, job_result
from workers.store.training_data import open_source

GROUP = 8
"""Images attacked together: their queries share requests."""
LEVELS = 256
MAX_PIXELS = 1 << 26


def run_oracle(job: RunningJob) -> Result:
    """Attacks the oracle of the spec {"oracle", "method", "params", "label", "target"} with images or dataset rows."""
    spec = job.spec
    oracle = settings().oracles.get(spec["oracle"])
    if oracle is None:
        raise NotFound(f"Oracle {spec['oracle']!r} not found.", field="oracle", remedy="GET /v1/oracles lists them.")
    attack = quantised(attacks()[spec["method"]](**spec["params"]))
    images, labels = open_images(job, oracle)
    results = (job.last_checkpoint or {}).get("kept") or {"items": [], "parts": [], "asked": 0}
    access = oracle_access(job, oracle, results["asked"])
    for start in range(len(results["items"]), len(images), GROUP):
        rows = slice(start, min(start + GROUP, len(images)))
        before = access.asked
        group = attack_group(attack, access, images[rows], labels[rows], spec, start, oracle)
        if group is None:
            break
        results = add_group(
            job, results, *group, asked=access.asked, most=access.asked - before if access.ended else None
        )
        job.progress(rows.stop, len(images))
        if access.ended:
            break
        job.stop_if_asked()
    if not results["items"]:
        raise OracleSilent(f"{access.ended}; no image was attacked.".capitalize(), remedy="Contact its operator.")
    return Result(job_result(job, results, len(images), access.ended))


def oracle_access(job: RunningJob, oracle: Oracle, asked: int) -> RemoteOracle:
    """The oracle as attacks query it; queries of earlier attempts count against the budget."""
    total = min(job.spec.get("total_budget") or oracle.max_queries, oracle.max_queries)
    access = RemoteOracle(
        OracleClient(oracle, job.stop_if_asked), len(oracle.classes or ()) or None, oracle.answers, total
    )
    access.asked = asked
    return access


def open_images(job: RunningJob, oracle: Oracle) -> tuple[Tensor, Tensor]:
    """Images float32 (n, C, H, W) and labels int64 (n,), -1 where the true class is unknown."""
    spec = job.spec
    if "dataset" not in spec:
        try:
            files, *_ = unpack_inputs(blobs.get(spec["upload"]))
        except FileNotFoundError:
            raise InvalidRequest("The inputs of this job are gone.", remedy="Send the request again.") from None
        pixels = codecs.decode_alike(None, files, MAX_PIXELS)
        truth = class_of(spec.get("label"), oracle, "label")
        return codecs.to_tensor(pixels), torch.full((len(pixels),), truth)
    source = open_source(job.bind, job.tenant, spec["dataset"], tick=job.stop_if_asked)
    rows, data = Columns(source.data.validation), DataSpec.from_facts(source.data.facts)
    index = torch.arange(spec.get("start", 0), min(spec.get("start", 0) + spec["count"], len(rows)))
    if not len(index):
        raise InputError(
            f"start must be less than {len(rows)}, the number of validation images", "start", "use a smaller start"
        )
    columns = rows.rows(index)
    labels = columns.get("labels", torch.full((len(index),), -1))
    if oracle.classes and data.classes:  # match classes by name
        places = [oracle.classes.index(name) if name in oracle.classes else -1 for name in data.classes]
        labels = torch.tensor([places[label] if label >= 0 else -1 for label in labels.tolist()])
    return columns["images"], labels


def class_of(label: str | int | None, oracle: Oracle, field: str) -> int:
    """The index of a class of the oracle; -1 for None."""
    if label is None:
        return -1
    if oracle.classes is None and str(label).isdecimal():
        return int(label)
    try:
        return class_index(oracle.classes or (), label)
    except InputError:
        remedy = "GET /v1/oracles lists its classes"
        raise InputError(f"the oracle has no class {label!r}", field, remedy) from None


def attack_group(
    attack: Attack, access: RemoteOracle, images: Tensor, labels: Tensor, spec: dict, start: int, oracle: Oracle
) -> tuple[AttackResult, Tensor, Tensor] | None:
    """The result of a group, its images and true classes; None if the oracle answered for none of them."""
    access.with_budget(attack.config.budget)
    try:
        clean = as_logits(access.outputs(images))
    except BudgetExhausted:
        answered = access.known(images)
        images, labels = images[answered], labels[answered]
        if not len(images):
            return None
        clean = as_logits(access.exact(images))
    # an image whose clean scores are not finite is not attacked: `nonfinite` in the result
    truth = torch.where(labels < 0, predicted_classes(clean).clamp_min(0), labels)
    seeds = torch.tensor([derive(spec.get("seed") or 0, "oracle", start + row) for row in range(len(images))])
    criterion: Criterion = Misclassified(truth)
    if spec.get("target") is not None:
        criterion = Targeted(torch.full_like(truth, class_of(spec["target"], oracle, "target")))
    threat = attack.threat(LEVELS)
    return attack.run(access, images, criterion, threat, seeds), images, truth
