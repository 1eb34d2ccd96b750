"""Claims about segmenters and detectors, and about the attacks on them."""

import torch

from models.attacks.access import WhiteBox
from models.attacks.criterion import FractionOfPixels
from models.attacks.curve import noise, shuffled
from models.registry import attacks
from models.reports.core import Subject as Reported
from models.reports.detection_attack import DetectionAttack
from models.reports.segmentation_attack import SegmentationAttack
from models.segmentation import confusion, ious
from models.types import DataSpec
from tests.benchmarks.claims import Found, Row, Subject, Target, above, at_least, at_most
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
    attack = attacks()[name](eps=eps, **config)
    threat, seeds = attack.threat(256), torch.arange(IMAGES)
    found = attack.run(WhiteBox(net), images, FractionOfPixels(masks), threat, seeds)
    size = threat.at(found.distance if eps is None else eps)
    shown = {"clean": images, "attacked": found.images, "noise": noise(images, size, seeds)}
    shown["shuffled"] = shuffled(images, found.images, threat, seeds)
    scores = {key: float(ious(confusion(net(part).argmax(1), masks, 3)).nanmean()) for key, part in shown.items()}
    left = (net(found.images).argmax(1) == masks).flatten(1).float().mean(1)
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
        found = toy("dag", eps, steps=200, gamma="0.5/255")
        lost = {name: 100 * (found["clean"] - found[name]) for name in ("attacked", "shuffled", "noise")}
        note = f"{found['reached']:.0%} of the images reach the stop rule, mean linf {found['linf_255']:.1f}/255"
        return Found(lost["shuffled"], {"DAG": lost["attacked"], "random signs": lost["noise"]}, note)

    return measure


TOY = Row(
    "dense-descents-toy", "SegPGD and CosPGD on drawn scenes, the weaker of the two at 16/255", "mIoU left",
    Target(
        "<= PGD and <= 0.25 x clean",
        lambda found: found.value <= min(found.baselines["PGD"], 0.25 * found.baselines["clean"]),
    ),
    toy_descents, "digits8", smallest,
)  # fmt: skip
TOY_DAG = Row("dag-shuffled-toy", "DAG's perturbation of drawn scenes, without eps, its pixels shuffled: harm",
              "points of mIoU", at_most(1.0), toy_dag(None), "digits8", smallest)  # fmt: skip
TOY_DAG_EPS = Row("dag-eps-shuffled-toy", "DAG's perturbation of drawn scenes within 8/255, its pixels shuffled: harm",
                  "points of mIoU", at_most(1.0), toy_dag(8 / 255), "digits8", smallest)  # fmt: skip


def reported(subject: Subject, family: str, report, **params) -> Found:
    """A trained model and what a report finds of it: the worst measure at the largest eps, beside the clean one."""
    run = subject.trained(family, {}, share=0.6)
    who = Reported(run.model, subject.spec, subject.train, subject.validation, None, subject.seed)
    steps = report().run(who, report.Params(images=32, **params))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found = end.value
            break
    measure, rows = report.measure, found.tables["attacks"]
    baselines = {"clean": found.facts[f"clean_{measure}"]}
    baselines |= {name.replace("_", " "): rows[-1][f"{measure}_{name}"] for name in ("random_signs", "shuffled")}
    note = ", ".join(f"{row['attack']} {row[measure]:.3f}" for row in rows)
    return Found(max(row[measure] for row in rows), baselines, f"at 8/255: {note}; {run.note}", run.short)


def fallen(share: float) -> Target:
    return Target(f"<= {share:g} x clean", lambda found: found.value <= share * found.baselines["clean"])


def segmenter_attacked(subject: Subject) -> Found:
    return reported(subject, "segmenter", SegmentationAttack, attacks=["segpgd", "cospgd", "dag"], eps=["8/255"])


def detector_attacked(subject: Subject) -> Found:
    return reported(subject, "detector", DetectionAttack, attacks=["pgd", "dag"], eps=["8/255"])


ATTACKED = Row("segmenter-attacked", "SegPGD, CosPGD and DAG at 8/255 against the segmenter: the weakest", "mIoU left",
               fallen(0.5), segmenter_attacked, "openmoji-seg", segmentation)  # fmt: skip
VANISHED = Row("detector-attacked", "PGD and DAG at 8/255 make objects vanish: the weaker", "mAP at .5 left",
               fallen(0.25), detector_attacked, "scattered-emoji", detection)  # fmt: skip
