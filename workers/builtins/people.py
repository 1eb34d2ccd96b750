"""OpenMoji's people by age: heads with shoulders in six colours of skin, of three genders and four kinds of hair."""

import xml.etree.ElementTree as ET
from pathlib import Path

from workers.builtins.emoji import TONES
from workers.builtins.examples import TRAIN, VALIDATION, Example, Examples, Seen
from workers.builtins.openmoji import files, flat

# (age, gender) by code point: what Unicode's name says, in years that anyone would agree with
PEOPLE = {
    "1F476": (1, "person"),
    "1F9D2": (9, "person"),
    "1F466": (9, "man"),
    "1F467": (9, "woman"),
    "1F9D1": (35, "person"),
    "1F468": (35, "man"),
    "1F469": (35, "woman"),
    "1F9D3": (70, "person"),
    "1F474": (70, "man"),
    "1F475": (70, "woman"),
}
SKIN = dict(zip(TONES, ("light", "medium-light", "medium", "medium-dark", "dark"), strict=True))
HAIR = {"1F9B0": "red hair", "1F9B1": "curly hair", "1F9B2": "bald"}  # not 1F9B3: white hair says an age
UNSEEN = "1F3FD"
"""The skin of validation: in the middle, so that what was learned from the others can reach it."""
FRAME = "12 8 48 48"  # of the 72 units a side: the rest is empty


def people(size: int) -> Examples:
    """Ages in years; an identity is skin, gender and hair. All pictures of one skin are for validation."""
    found = [(file, about) for file in files() if (about := described(file))]
    seen = Seen()

    def example(file: Path, about: dict) -> Example | None:
        root = ET.fromstring(file.read_text())
        root.set("viewBox", FRAME)
        picture = flat(ET.tostring(root, encoding="unicode"), size)
        return None if seen.before(picture) else Example(file.stem, {"images": picture}, **about)

    return Examples(len(found), (example(file, about) for file, about in found))


def described(file: Path) -> dict | None:
    """Age, identity, split and group of a person alone; None for any other emoji."""
    who, *more = (point for point in file.stem.split("-") if point != "200D")
    if who not in PEOPLE or any(point not in SKIN and point not in HAIR for point in more):
        return None
    age, gender = PEOPLE[who]
    tone = next((point for point in more if point in SKIN), "")
    traits = [SKIN.get(tone, "yellow"), gender, *(HAIR[point] for point in more if point in HAIR)]
    values = {"ages": float(age), "identities": " ".join(traits)}
    split = VALIDATION if tone == UNSEEN else TRAIN
    return {"values": values, "split": split, "group": tone or "yellow"}
