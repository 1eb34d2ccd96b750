"""OpenMoji's people with ages: heads and shoulders with six skin colours, three genders and four kinds of hair."""

import xml.etree.ElementTree as ET
from pathlib import Path

from workers.builtins.emoji import TONES
from workers.builtins.examples import TRAIN, VALIDATION, Duplicates, Example, Examples
from workers.builtins.openmoji import files, flat

# (age in years, gender) by code point, from the name in Unicode
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
HAIR = {"1F9B0": "red hair", "1F9B1": "curly hair", "1F9B2": "bald"}  # not 1F9B3: white hair implies an age
UNSEEN = "1F3FD"
"""The skin tone of the validation images: the middle one, between the tones in training."""
FRAME = "12 8 48 48"  # left, top, width, height in the 72 x 72 units of the SVG; the rest is empty


def people(size: int) -> Examples:
    """Ages in years; an identity is skin, gender and hair. All images of one skin tone are for validation."""
    persons = [(file, about) for file in files() if (about := described(file))]
    duplicates = Duplicates()

    def example(file: Path, about: dict) -> Example | None:
        root = ET.fromstring(file.read_text())
        root.set("viewBox", FRAME)
        picture = flat(ET.tostring(root, encoding="unicode"), size)
        return None if duplicates.seen_before(picture) else Example(file.stem, {"images": picture}, **about)

    return Examples(len(persons), (example(file, about) for file, about in persons))


def described(file: Path) -> dict | None:
    """Age, identity, split and group of a single person; None for any other emoji."""
    who, *more = (point for point in file.stem.split("-") if point != "200D")
    if who not in PEOPLE or any(point not in SKIN and point not in HAIR for point in more):
        return None
    age, gender = PEOPLE[who]
    tone = next((point for point in more if point in SKIN), "")
    traits = [SKIN.get(tone, "yellow"), gender, *(HAIR[point] for point in more if point in HAIR)]
    values = {"ages": float(age), "identities": " ".join(traits)}
    split = VALIDATION if tone == UNSEEN else TRAIN
    return {"values": values, "split": split, "group": tone or "yellow"}
