"""Claims about adversarial training: what is left under PGD with 40 steps, beside FGSM, noise and the clean images."""

from typing import Any

from tests.benchmarks.claims import Found, Row, Subject, Target, at_least, labelled

SIDES = {
    "clean": "accuracy_before_attack",
    "random signs": "accuracy_random_signs",
    "FGSM": "accuracy_fgsm",
    "always the commonest class": "accuracy_majority",
}


def withstands(**config: Any):
    """Accuracy under PGD-40 after adversarial training, at the size that the images suggest."""

    def measure(subject: Subject) -> Found:
        run = subject.trained("classifier", config)
        found, family = run.measured, run.training.family
        note = f"eps {family.config.adversarial_eps:.3g}, {found['attacked_images']:.0f} images, {run.note}"
        if found.get("guard_switched"):
            note += ", the guard took weights back and switched to several steps"
        return Found(found["accuracy_pgd"], {name: found[key] for name, key in SIDES.items()}, note, run.short)

    return measure


LEAKY = {"adversarial": "goodfellow", "body": "conv", "adversarial_eps": 0.3, "epochs": 12}
"""Plain convolutions, as in the experiments of the literature; residual blocks hide their gradient less."""


def leaks(subject: Subject) -> Found:
    """How much more accuracy FGSM leaves than PGD after training on FGSM alone, if the result warns of it."""
    run = subject.trained("classifier", LEAKY)
    found = run.measured
    said = any("FGSM" in remark for remark in run.training.family.warnings(found))
    gap = found["accuracy_fgsm"] - found["accuracy_pgd"]
    note = f"clean {found['accuracy_before_attack']:.3f}, {'' if said else 'not '}said in the result; {run.note}"
    beside = {"FGSM": found["accuracy_fgsm"], "PGD": found["accuracy_pgd"]}
    return Found(gap if said else 0.0, beside, note, run.short)


# 8 000 digits, 15 epochs and a smaller network reach 0.776 (clean 0.9725)
FAST = Row(
    "hardened-fgsm-rs",
    "FGSM from random starts, guarded, makes a classifier of digits withstand PGD",
    "accuracy under PGD-40",
    at_least(0.776),
    withstands(adversarial="fgsm_rs", epochs=16),
    suits=labelled,
)
PGD = Row(
    "hardened-pgd",
    "PGD in training does so too, in half the epochs",
    "accuracy under PGD-40",
    at_least(0.776),
    withstands(adversarial="pgd", epochs=8),
    suits=labelled,
)
TRADES = Row(
    "hardened-trades",
    "TRADES does so too",
    "accuracy under PGD-40",
    at_least(0.776),
    withstands(adversarial="trades", epochs=6),
    suits=labelled,
)
FREE = Row(
    "hardened-free",
    "Free training does so at the cost of a plain one",
    "accuracy under PGD-40",
    at_least(0.776),
    withstands(adversarial="free", epochs=5),
    suits=labelled,
)
LEAKING = Row(
    "fgsm-alone-leaks",
    "Training on FGSM alone is exposed: PGD finds what FGSM misses",
    "accuracy under FGSM less that under PGD",
    Target(">= 0.3, and said in the result", lambda found: found.value >= 0.3),
    leaks,
    suits=labelled,
)
