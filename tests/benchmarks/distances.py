"""Minimum-norm attacks compared with libraries: median size of the perturbation, and that of the best library.

    python -m tests.benchmarks.distances [--images 64] [--only deepfool,ddn,cw,fab,ead] [--wide]

The victim is that of `attacks.py`, the images those it classifies correctly. An image without success counts as
infinitely far. Libraries get the same number of steps. A library that is not installed is left out.
"""

import argparse
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor, nn

from models.attacks.core.access import WhiteBox
from models.attacks.criteria.classification import Misclassified
from models.registry import attacks
from tests.benchmarks.attacks import digits, network, train

Maker = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Network, images, labels -> adversarial images."""
MAX_RATIO = 1.02
SEARCHES, STEPS, WEIGHT = 5, 300, 1.0
"""Settings of C&W and EAD; the libraries' defaults of 9 times 10,000 steps would take hours."""


def foolbox(make: Callable[[ModuleType], object]) -> Maker:
    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import foolbox

        model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        return make(foolbox.attacks)(model, x, y, epsilons=None)[1]

    return run


def adv_lib(module: str, function: str, **config) -> Maker:
    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return getattr(of_adv_lib(module), function)(net, x, y, **config)

    return run


def of_adv_lib(module: str) -> ModuleType:
    """A module of adversarial-library, imported without its plots and pretrained networks."""
    names = "visdom", "torchvision", "torchvision.models", "torchvision.transforms"
    absent = {name: mock.MagicMock() for name in names if importlib.util.find_spec(name.split(".")[0]) is None}
    sys.modules.update(absent)
    try:
        return importlib.import_module(f"adv_lib.attacks.{module}")
    finally:
        for name in absent:
            del sys.modules[name]


def art(name: str, **config) -> Maker:
    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        model = PyTorchClassifier(net, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1),
                                  device_type="cpu")  # fmt: skip
        made = getattr(evasion, name)(model, verbose=False, batch_size=len(x), **config)
        return torch.from_numpy(made.generate(x.numpy(), y.numpy()))

    return run


def fab_of_reference(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    from pyautoattack.fab_pt import FABAttack_PT

    walker = FABAttack_PT(net, norm="L2", n_iter=100, eps=1e3, device="cpu", seed=0, n_target_classes=9, targeted=True)
    return walker.perturb(x, y)


TABLE: dict[str, tuple[int, dict, dict[str, Maker]]] = {
    "deepfool": (2, {}, {
        "foolbox": foolbox(lambda a: a.L2DeepFoolAttack()),
        "adv_lib": adv_lib("deepfool", "df", steps=50),
        "art": art("DeepFool", max_iter=50, epsilon=0.02),
    }),
    "ddn": (2, {}, {
        "foolbox": foolbox(lambda a: a.DDNAttack()),
        "adv_lib": adv_lib("decoupled_direction_norm", "ddn", levels=None),
    }),
    "cw": (2, {"steps": STEPS, "searches": SEARCHES, "weight": WEIGHT}, {
        "foolbox": foolbox(lambda a: a.L2CarliniWagnerAttack(SEARCHES, STEPS, initial_const=WEIGHT)),
        "adv_lib": adv_lib("carlini_wagner.l2", "carlini_wagner_l2", initial_const=WEIGHT,
                           binary_search_steps=SEARCHES, max_iterations=STEPS),
    }),
    "fab": (2, {"norm": "l2"}, {
        "pyautoattack": fab_of_reference,
        "adv_lib": adv_lib("fast_adaptive_boundary", "fab", norm=2, targeted_restarts=True),
    }),
    "ead": (1, {"steps": STEPS, "searches": SEARCHES, "weight": WEIGHT}, {
        "foolbox": foolbox(lambda a: a.EADAttack(SEARCHES, STEPS, initial_const=WEIGHT, decision_rule="L1")),
        "art": art("ElasticNet", max_iter=STEPS, binary_search_steps=SEARCHES, initial_const=WEIGHT, beta=0.01,
                   decision_rule="L1"),
    }),
}  # fmt: skip
"""Attack -> the p of its norm, our settings, and the libraries' calls."""
NEEDS = {"foolbox": "foolbox", "adv_lib": "adv_lib", "art": "art", "pyautoattack": "pyautoattack"}


def measured(net: nn.Module, x: Tensor, y: Tensor, images: Tensor, p: int) -> tuple[float, float]:
    """The median size, and the fraction of successes."""
    with torch.no_grad():
        turned = net(images).argmax(1) != y
    size = (images - x).flatten(1).norm(p=p, dim=1)
    return float(size.where(turned, torch.inf).median()), float(turned.float().mean())


def lines(net: nn.Module, x: Tensor, y: Tensor, chosen: list[str]) -> Iterator[str]:
    for name in chosen:
        p, config, peers = TABLE[name]
        result = attacks()[name](**config).run(WhiteBox(net, shape=tuple(x.shape[1:])), x, Misclassified(y))
        mine, share = measured(net, x, y, result.floats, p)
        theirs = {}
        for peer, make in peers.items():
            if importlib.util.find_spec(NEEDS[peer]):
                theirs[peer] = measured(net, x, y, make(net, x, y).detach(), p)
        text = ", ".join(f"{peer} {size:.4f} ({rate:.0%})" for peer, (size, rate) in theirs.items())
        ratio = mine / min((size for size, _ in theirs.values()), default=float("nan"))
        verdict = "reached" if ratio <= MAX_RATIO else "MISSED"
        yield (
            f"{name:9} l{p}  ours {mine:.4f} ({share:.0%})   {text}   ours / best {ratio:.3f}, "
            f"target <= {MAX_RATIO}: {verdict}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--only", default=",".join(TABLE))
    parser.add_argument("--wide", action="store_true", help="attack the batch-normed network")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    images, labels = digits()
    torch.manual_seed(0)
    net = train(network(options.wide), images[:4000], labels[:4000], 1 if options.wide else 6)
    x, y = images[4000:], labels[4000:]
    right = net(x).argmax(1) == y
    x, y = x[right][: options.images], y[right][: options.images]
    print(f"{len(x)} digits, median size of what turns an image (share turned)")
    for line in lines(net, x, y, options.only.split(",")):
        print(line, flush=True)


if __name__ == "__main__":
    main()
