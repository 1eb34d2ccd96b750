"""Classes and groups of emoji from their code points alone: names in Python's Unicode tables vary by version."""

from app.core.catalog.builtins import EMOJI

TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")
"""Skin tones, from light to dark."""
IGNORED = {*TONES, "FE0F", "200D", "2640", "2642"}

# Code points that look like a sequence of others, or differ from it only in gender.
ALIKE = {
    "1F468": "1F9D1",
    "1F469": "1F9D1",
    "1F46A": "1F9D1 1F9D1 1F9D2",
    "1F46B": "1F9D1 1F91D 1F9D1",
    "1F46C": "1F9D1 1F91D 1F9D1",
    "1F46D": "1F9D1 1F91D 1F9D1",
    "1F46F": "1F9D1 1F430 1F9D1",
    "1F48F": "1F9D1 2764 1F48B 1F9D1",
    "1F491": "1F9D1 2764 1F9D1",
    "1F93C": "1F9D1 1FAEF 1F9D1",
}
HANDSHAKES = {"1FAF1-1FAF2": "1F91D"}
CHILDREN = {"1F466": "1F9D2", "1F467": "1F9D2"}

# Code points by class: Unicode's groups, merged where they look alike. The first class that matches counts.
CLASSES = {
    "flag": "1F1E6-1F1FF 1F38C 1F3C1 1F3F3-1F3F4 1F6A9",
    "baby": "1F476",
    "child": "1F466-1F467 1F9D2",
    "adult": "1F468-1F469 1F9D1",
    "older adult": "1F474-1F475 1F9D3",
    "person": "26F7 26F9 1F385 1F3C2-1F3C4 1F3C7 1F3CA-1F3CC 1F464-1F465 1F46A-1F473 1F477-1F478 1F47C 1F481-1F483"
    " 1F486-1F487 1F48F 1F491 1F574-1F575 1F57A 1F5E3 1F645-1F647 1F64B 1F64D-1F64E 1F6A3 1F6B4-1F6B6 1F6C0 1F6CC 1F926"
    " 1F930-1F931 1F933-1F93E 1F977 1F9B8-1F9B9 1F9CC-1F9CF 1F9D4-1F9DF 1FAC2-1FAC5 1FAC8",
    "body": "261D 270A-270D 1F440-1F450 1F463 1F485 1F4AA 1F590 1F595-1F596 1F64C 1F64F 1F90C 1F90F 1F918-1F91F 1F932"
    " 1F9B4-1F9B7 1F9BB 1F9BE-1F9BF 1F9E0 1FAC0-1FAC1 1FAC6 1FAE6 1FAF0-1FAF8",
    "face": "2620 2639-263A 1F479-1F47B 1F47D-1F480 1F4A9 1F600-1F644 1F910-1F917 1F920-1F92F 1F970-1F97A 1F9D0"
    " 1FAE0-1FAE5 1FAE8-1FAEA",
    "nature": "2618 1F330-1F335 1F337-1F33C 1F33E-1F344 1F400-1F43F 1F490 1F54A 1F577-1F578 1F648-1F64A 1F940"
    " 1F980-1F9AE 1FAB0-1FAB4 1FAB6-1FABF 1FACD-1FACF",
    "food": "2615 1F32D-1F32F 1F336 1F33D 1F345-1F37F 1F382 1F942-1F944 1F950-1F96F 1F9C0-1F9CB 1FAD0-1FADE",
    "place": "2600-2604 2614 2668 2693 26C4-26C8 26E9-26F2 26F4-26F5 26FA 26FD 2708 2744 2B50 1F300-1F301 1F303-1F320"
    " 1F324-1F32C 1F3A0-1F3A2 1F3AA 1F3CD-1F3CE 1F3D4-1F3DF 1F3E0-1F3E6 1F3E8-1F3ED 1F3EF-1F3F0 1F488 1F492 1F4A7 1F525"
    " 1F54B-1F54D 1F5FA-1F5FE 1F680-1F6A8 1F6B2 1F6D5-1F6D6 1F6DD-1F6DF 1F6E2-1F6FC 1FA90",
    "activity": "2660-2666 265F 26BD-26BE 26F3 26F8 2728 1F004 1F0CF 1F380-1F381 1F383-1F384 1F386-1F38B 1F38D-1F391"
    " 1F396-1F397 1F39E-1F39F 1F3A3 1F3A8 1F3AB 1F3AD-1F3B4 1F3BD-1F3C0 1F3C5-1F3C6 1F3C8-1F3C9 1F3CF-1F3D3 1F3F5 1F3F8"
    " 1F52B 1F52E 1F579 1F5BC 1F93F 1F941 1F945-1F94F 1F9E7-1F9E9 1F9F8 1FA80-1FA86 1FAA9",
    "symbol": "0023-218F 2190-2211 229C 23CF-23EF 23F8-23FE 24C2-25FE 2605 2611 2622-2638 2640-265E 267B-267F 269B"
    " 26A0-26AB 26CE 26D4 2705 2714-2721 2733-2734 2747-27BF 2934-2B4F 2B55-3299 1F10D-1F265 1F3A6 1F3E7 1F3FB-1F3FF"
    " 1F493-1F49F 1F4A0-1F4A2 1F4A4-1F4A6 1F4A8 1F4AB-1F4AF 1F4F3-1F4F6 1F500-1F506 1F515 1F517-1F524 1F52F-1F53D 1F549"
    " 1F54E 1F5A4 1F5E8 1F5EF 1F6AB 1F6AD-1F6B1 1F6B3 1F6B7-1F6BC 1F6BE 1F6C2-1F6C5 1F6D0-1F6D1 1F6DC 1F7E0-1F7F0"
    " 1F90D-1F90E 1F9E1 1FA75-1FA77 1FBC5-1FBC9",
    "extra": "E000-F8FF",
}
REST = "object"
ANIMALS = "1F400-1F43F 1F54A 1F577 1F648-1F64A 1F980-1F9AE 1FAB0-1FAB3 1FABC-1FABF 1FACD-1FACF"
"""Code points of animals, which are of the class nature."""
AGES = EMOJI[:4]


def _ranges(points: str) -> list[tuple[int, int]]:
    parts = [item.partition("-") for item in points.split()]
    return [(int(first, 16), int(last or first, 16)) for first, _, last in parts]


RANGES = [(*bounds, name) for name, points in CLASSES.items() for bounds in _ranges(points)]


def class_of(name: str) -> str:
    """The class of an emoji by its code points, such as "1F468-1F3FB". Several people have the class "person"."""
    first, *others = (_class_of_point(int(point, 16)) for point in name.split("-"))
    return "person" if first in AGES and set(others) & set(AGES) else first


def _class_of_point(point: int) -> str:
    return next((name for first, last, name in RANGES if first <= point <= last), REST)


def is_animal(name: str) -> bool:
    point = int(name.split("-")[0], 16)
    return any(first <= point <= last for first, last in _ranges(ANIMALS))


def has_tone(name: str) -> bool:
    """Whether the name says a skin tone; the others are yellow."""
    return not set(TONES).isdisjoint(name.split("-"))


def group_of(name: str) -> str:
    """The group of near copies: the code points without tone and gender, couples and families normalised."""
    base = [point for point in name.split("-") if point not in IGNORED] or [name]
    spelled = " ".join(ALIKE.get(point, point) for point in base).split()
    if len(spelled) == 1:
        return spelled[0]
    whole = "-".join(CHILDREN.get(point, point) for point in spelled)
    return HANDSHAKES.get(whole, whole)
