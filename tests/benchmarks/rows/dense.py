"""Claims about segmenters and detectors, and about the attacks on them."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.attacks.core.access import WhiteBox
from models.attacks.core.base import Attack
from models.attacks.core.sweep import noise, shuffled
from models.attacks.criteria.segmentation import FractionOfPixels
from models.evaluation.segmentation import confusion, ious
from models.family import Family
from models.registry import attacks
from models.reports.core.base import ReportResult
from models.reports.core.base import Subject as Reported
from models.reports.core.dense_attack import everywhere
from models.reports.detection_attack import DetectionAttack
from models.reports.segmentation_attack import SegmentationAttack
from models.types import DataSpec
from tests.benchmarks.claims import Found, Row, Subject, Target, Trained, above, at_least, at_most, at_most_times
from tests.models.attacks.fields import fcn, scenes

SIZES = 4 / 255, 8 / 255, 16 / 255
IMAGES, STEPS = 64, 20


def segmentation(spec: DataSpec) -> bool:
    return spec.layout == "segmentation"


def detection(spec: DataSpec) -> bool:
    return spec.layout == "detection"


def smallest(spec: DataSpec) -> bool:
    """The scenes are drawn by the row itself; the dataset it is filed under is the smallest there is."""
    return spec.shape == (1, 8, 8)


def miou(subject: Subject) -> Found:
    run = subject.trained("segmenter", {})
    accuracy = run.measured["pixel_accuracy"], run.measured["pixel_accuracy_majority"]
    note = f"pixel accuracy {accuracy[0]:.3f} beside {accuracy[1]:.3f}; {run.note}"
    return Found(run.measured["miou"], {"most frequent class": run.measured["miou_majority"]}, note, run.short)


def map50(subject: Subject) -> Found:
    run = subject.trained("detector", {})
    note = f"mAP .5 to .95 {run.measured['map']:.3f}; {run.note}"
    return Found(run.measured["map50"], {"usual boxes": run.measured["map50_usual_boxes"]}, note, run.short)


MIOU = Row("segmenter-miou", "Segmenter with an empty config: mean IoU of unseen images", "mIoU",
           above("most frequent class", 0.4), miou, "openmoji-seg", segmentation)  # fmt: skip
MAP50 = Row("detector-map50", "Detector with an empty config: average precision on unseen images", "mAP at .5",
            at_least(0.9), map50, "scattered-emoji", detection)  # fmt: skip


def toy(name: str, eps: float | None, **config) -> dict[str, float]:
    """Mean IoU over drawn scenes before an attack, after it, and under its controls."""
    images, masks = scenes(IMAGES, 32, seed=7, tint=0.1)
    net = torch.nn.Sequential(Shift(), fcn(32, 300, 0.1)).eval()
    return tried(WhiteBox(net), images, masks, 3, attacks()[name](eps=eps, **config))


def tried(box: WhiteBox, images: Tensor, masks: Tensor, classes: int, attack: Attack) -> dict[str, float]:
    """Mean IoU of images as they are, attacked, and under controls; what the attack's perturbation is like."""
    threat, seeds = attack.threat(256), torch.arange(len(images))
    found = attack.run(box, images, FractionOfPixels(masks), threat, seeds)
    size = found.distance if threat.eps is None else threat.eps
    colour = (found.images - images).mean((2, 3), keepdim=True)
    shown = {
        "clean": images,
        "attacked": found.images,
        "noise": noise(images, threat.at(size), seeds),
        "shuffled": shuffled(images, found.images, threat, seeds),
        "colour": (images + colour).clamp(0, 1),
    }
    answers = {key: box.exact(part).argmax(1) for key, part in shown.items()}
    scores = {key: float(ious(confusion(answer, masks, classes)).nanmean()) for key, answer in answers.items()}
    left = (answers["attacked"] == masks).flatten(1).float().mean(1)
    return scores | {"linf_255": float(found.distance.mean()) * 255, "reached": float((left <= 0.01).float().mean())}


class Shift(torch.nn.Module):
    def forward(self, images):
        return images - 0.45


def toy_descents(subject: Subject) -> Found:
    names = "pgd", "segpgd", "cospgd"
    table = {name: [toy(name, eps, steps=STEPS) for eps in SIZES] for name in names}
    last = {name: cells[-1] for name, cells in table.items()}
    left = {name: "/".join(f"{cell['attacked']:.3f}" for cell in cells) for name, cells in table.items()}
    baselines = {"PGD": last["pgd"]["attacked"], "clean": last["pgd"]["clean"], "random signs": last["pgd"]["noise"]}
    note = "at 4/8/16 of 255: " + ", ".join(f"{name} {values}" for name, values in left.items())
    return Found(max(last[name]["attacked"] for name in names[1:]), baselines, note)


def toy_dag(eps: float | None):
    def measure(subject: Subject) -> Found:
        return harm(toy("dag", eps, steps=200, gamma="0.5/255"))

    return measure


def harm(found: dict[str, float], note: str = "", short: bool = False) -> Found:
    """Points of mean IoU that a shuffled perturbation costs, beside the attack, random signs, and its mean colour."""
    lost = {name: 100 * (found["clean"] - found[name]) for name in ("attacked", "shuffled", "noise", "colour")}
    beside = {"DAG": lost["attacked"], "random signs": lost["noise"], "its mean colour alone": lost["colour"]}
    said = f"{found['reached']:.0%} of the images reach the stop rule, mean linf {found['linf_255']:.1f}/255"
    return Found(lost["shuffled"], beside, f"{said}; {note}" if note else said, short)


TOY = Row(
    "dense-descents-toy", "SegPGD and CosPGD on drawn scenes, the weaker of the two at 16/255", "mIoU left",
    Target(
        "<= PGD and <= 0.25 x clean",
        lambda found: found.value <= min(found.baselines["PGD"], 0.25 * found.baselines["clean"]),
    ),
    toy_descents, "digits8", smallest,
)  # fmt: skip
EXPLAINED = Target(
    "<= random signs + its mean colour + 1",
    lambda found: found.value <= found.baselines["random signs"] + found.baselines["its mean colour alone"] + 1,
)
"""Drawn scenes are told by faint tints in noise: noise of that size and a tint alone spoil them."""
TOY_DAG = Row("dag-shuffled-toy", "DAG's perturbation of drawn scenes, without eps, its pixels shuffled: harm",
              "points of mIoU", EXPLAINED, toy_dag(None), "digits8", smallest)  # fmt: skip
TOY_DAG_EPS = Row("dag-eps-shuffled-toy", "DAG's perturbation of drawn scenes within 8/255, its pixels shuffled: harm",
                  "points of mIoU", EXPLAINED, toy_dag(8 / 255), "digits8", smallest)  # fmt: skip


KEPT: dict[tuple, Trained] = {}
"""Models trained in this process: several rows look at one."""


def trained(subject: Subject, family: str, share: float = 0.6) -> Trained:
    key = family, subject.name, subject.seed, subject.minutes, subject.images
    if key not in KEPT:
        KEPT[key] = subject.trained(family, {}, share=share)
    return KEPT[key]


def reported(subject: Subject, run: Trained, report, **params) -> ReportResult:
    """What a report finds of a trained model."""
    who = Reported(run.model, subject.spec, subject.train, subject.validation, None, subject.seed)
    steps = report().run(who, report.Params(images=32, **params))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def left(result: ReportResult, measure: str) -> Found:
    """What the weakest attack of a report leaves, beside the clean measure, the strongest attack and two controls."""
    rows = result.tables["attacks"]
    baselines = {"clean": result.facts[f"clean_{measure}"], "strongest": min(row[measure] for row in rows)}
    baselines |= {name.replace("_", " "): rows[-1][f"{measure}_{name}"] for name in ("random_signs", "shuffled")}
    note = ", ".join(f"{row['attack']} {row[measure]:.3f}" for row in rows)
    return Found(max(row[measure] for row in rows), baselines, f"at {rows[0]['eps_255']:g}/255: {note}")


def fallen(share: float) -> Target:
    return Target(f"<= {share:g} x clean", lambda found: found.value <= share * found.baselines["clean"])


def by_strongest(measure: Callable[[Subject], Found]) -> Callable[[Subject], Found]:
    """The same, with what the strongest attack leaves in the place of the weakest."""

    def measured(subject: Subject) -> Found:
        weakest = measure(subject)
        beside = {"weakest": weakest.value, **weakest.baselines}
        return Found(beside.pop("strongest"), beside, weakest.note, weakest.short)

    return measured


def segmenter_attacked(eps: str):
    def measure(subject: Subject) -> Found:
        run = trained(subject, "segmenter")
        names = ["segpgd", "cospgd", "dag"]
        found = left(reported(subject, run, SegmentationAttack, attacks=names, eps=[eps]), "miou")
        beside = dict(found.baselines) | {"search": searched(subject, run, eps)}
        return Found(found.value, beside, f"{found.note}; {run.note}", run.short)

    return measure


def searched(subject: Subject, run: Trained, eps: str) -> float:
    """Mean IoU under the best of 300 steps for each image: APGD on two losses and CosPGD, 100 steps each."""
    rows = subject.validation.rows(everywhere(subject, 32), ["images", "masks"])
    images, masks, box = rows["images"], rows["masks"], boxed(run.model)
    tries = [("apgd", {"steps": 100}), ("apgd", {"steps": 100, "loss": "dlr"}), ("cospgd", {"steps": 100})]
    made = []
    for name, config in tries:
        attack = attacks()[name](eps=eps, **config)
        seeds = torch.arange(len(images))
        made.append(attack.run(box, images, FractionOfPixels(masks), attack.threat(256), seeds))
    best = torch.stack([found.margin for found in made]).argmin(0)
    worst = torch.stack([made[int(choice)].images[row] for row, choice in enumerate(best)])
    return float(ious(confusion(box.exact(worst).argmax(1), masks, len(run.model.data.classes))).nanmean())


def boxed(model: Family) -> WhiteBox:
    return WhiteBox(model, lambda net, x: net.pixel_logits(x), shape=model.data.shape)


def dag_shuffled(eps: float | None):
    def measure(subject: Subject) -> Found:
        run = trained(subject, "segmenter")
        rows = subject.validation.rows(everywhere(subject, 32), ["images", "masks"])
        attack = attacks()["dag"](eps=eps, steps=200, gamma="0.5/255")
        classes = len(run.model.data.classes)
        return harm(tried(boxed(run.model), rows["images"], rows["masks"], classes, attack), run.note, run.short)

    return measure


def detector_attacked(subject: Subject) -> Found:
    run = trained(subject, "detector", 0.8)
    found = left(reported(subject, run, DetectionAttack, attacks=["pgd", "apgd", "dag"], eps=["8/255"]), "map50")
    return Found(found.value, found.baselines, f"{found.note}; {run.note}", run.short)


ATTACKED = Row("segmenter-attacked", "SegPGD, CosPGD and DAG at 8/255 against the segmenter: the weakest", "mIoU left",
               fallen(0.5), segmenter_attacked("8/255"), "openmoji-seg", segmentation)  # fmt: skip
FOUND = Row("segmenter-search", "What a search of 300 steps finds at 16/255 the strongest of them finds in fewer",
            "mIoU left", at_most_times(1.1, "search"), by_strongest(segmenter_attacked("16/255")), "openmoji-seg",
            segmentation)  # fmt: skip
BROKEN = Row("segmenter-broken", "At 32/255 the strongest of them leaves little: no gradient is hidden",
             "mIoU left", fallen(0.25), by_strongest(segmenter_attacked("32/255")), "openmoji-seg",
             segmentation)  # fmt: skip
DAG_SHUFFLED = Row("dag-shuffled", "DAG's perturbation of unseen emoji, without eps, its pixels shuffled: harm",
                   "points of mIoU", at_most(1.0), dag_shuffled(None), "openmoji-seg", segmentation)  # fmt: skip
DAG_EPS_SHUFFLED = Row("dag-eps-shuffled", "The same within 8/255: harm", "points of mIoU", at_most(1.0),
                       dag_shuffled(8 / 255), "openmoji-seg", segmentation)  # fmt: skip
VANISHED = Row("detector-attacked", "PGD, APGD and DAG at 8/255 make objects vanish: the weakest", "mAP at .5 left",
               fallen(0.25), detector_attacked, "scattered-emoji", detection)  # fmt: skip
VANISHED_MOST = Row("detector-attacked-most", "PGD, APGD and DAG at 8/255 make objects vanish: the strongest",
                    "mAP at .5 left", fallen(0.25), by_strongest(detector_attacked), "scattered-emoji",
                    detection)  # fmt: skip
