"""The built-in datasets, drawn from or read from files of installed packages. One file per source.

A loader takes the side of the images in pixels if app/core/catalog/builtins.py lists `sizes`, else nothing.
"""

from collections.abc import Callable

from workers.builtins import digits, fontdigits, glyphs, icons, openmoji, people, photos, scattered
from workers.builtins.examples import TRAIN, VALIDATION, Example, Examples

LOADERS: dict[str, Callable[..., Examples]] = {
    "mnist5k": digits.mnist5k,
    "digits8": digits.digits8,
    "openmoji": openmoji.openmoji,
    "openmoji-line2color": openmoji.line2color,
    "openmoji-faces": openmoji.faces,
    "openmoji-animals": openmoji.animals,
    "openmoji-flat": openmoji.flat_style,
    "openmoji-seg": openmoji.seg,
    "openmoji-tone": openmoji.tone,
    "openmoji-people": people.people,
    "icons-outline2fill": icons.outline2fill,
    "glyphs": glyphs.glyphs,
    "glyphs-italic": glyphs.italic,
    "fontdigits": fontdigits.fontdigits,
    "fontdigits-mnist": fontdigits.fontdigits_mnist,
    "photo-patches": photos.patches,
    "scattered-digits": scattered.digits,
    "scattered-emoji": scattered.emoji,
    "faces-lfw100": photos.faces,
}

__all__ = ["LOADERS", "TRAIN", "VALIDATION", "Example", "Examples"]
