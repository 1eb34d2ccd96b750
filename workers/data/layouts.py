"""Where a file lies says what it is: folder names to layout, role, class and split. Names only, no bytes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from posixpath import splitext
from typing import NamedTuple

from app.core.errors import InvalidDataset
from workers.data.archive import Member
from workers.data.rows import Report, printable

Path = tuple[str, ...]
SIDECARS = ("labels.csv", "classes.json", "boxes.csv")
TABLES = {"labels.csv": "attributes", "boxes.csv": "detection"}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
SPLITS = {"train": "train", "training": "train"} | dict.fromkeys(
    ("val", "valid", "validation", "test", "testing"), "validation"
)
# the folders of pytorch-CycleGAN-and-pix2pix: trainA, trainB, testA, testB
JOINED = {split + domain: (split, domain) for split in ("train", "val", "test") for domain in "ab"}
ROLES = {"paired": ("input", "target"), "unpaired": ("a", "b"), "segmentation": ("images", "masks")}
REMEDY = "Say which it is: layout=plain, labelled, paired, unpaired, segmentation, attributes or detection."


class Place(NamedTuple):
    """`key` is the path below the role's folder without suffix: what pairs agree in."""

    member: Member
    role: str
    key: str
    label: str | None = None
    split: str | None = None


@dataclass
class Arrangement:
    layout: str
    places: list[Place] = field(default_factory=list)
    sidecars: dict[str, Member] = field(default_factory=dict)


def arrange(members: list[Member], layout: str | None, report: Report) -> Arrangement:
    """Gives every member its place, in the members' order; those without one are refused in the report."""
    paths = _without_wrapper({member: member.path for member in members})
    sidecars = {
        path[0].lower(): member for member, path in paths.items() if len(path) == 1 and path[0].lower() in SIDECARS
    }
    paths = _parted({member: path for member, path in paths.items() if path[0].lower() not in sidecars})
    if not layout:
        layout = next((meant for table, meant in TABLES.items() if table in sidecars), None)
    for table in TABLES.keys() & sidecars.keys():
        if TABLES[table] != layout:
            report.warn(f"{table} was not read: it belongs to layout={TABLES[table]}; leave layout out, or say so.")
    # a table names files by their whole path and has a column for the split
    paths, splits = (paths, {}) if layout in TABLES.values() else _without_splits(paths)
    layout = layout or _detect(list(_pictures(paths)), report)
    place = _by_role if layout in ROLES else _by_folder
    return Arrangement(layout, place(layout, paths, splits, report), sidecars)


def _pictures(paths: dict[Member, Path]) -> Iterable[Path]:
    """The paths that speak for the layout: a README beside the folders does not."""
    return [path for path in paths.values() if path[-1].lower().endswith(IMAGE_SUFFIXES)] or paths.values()


def _without_wrapper(paths: dict[Member, Path]) -> dict[Member, Path]:
    while True:
        speaking = [path for path in paths.values() if path[-1].lower().endswith((*IMAGE_SUFFIXES, *SIDECARS))]
        tops = {path[0] if len(path) > 1 else None for path in speaking or paths.values()}
        if len(tops) != 1 or None in tops:
            return paths
        paths = _stripped(paths, tops.__contains__)


def _stripped(paths: dict[Member, Path], unwanted: Callable[[str], bool]) -> dict[Member, Path]:
    return {member: path[1:] if len(path) > 1 and unwanted(path[0]) else path for member, path in paths.items()}


def _parted(paths: dict[Member, Path]) -> dict[Member, Path]:
    if not all(len(path) > 1 and path[0].lower() in JOINED for path in _pictures(paths)):
        return paths
    joined = {member: JOINED.get(path[0].lower(), path[:1]) for member, path in paths.items()}
    return {member: (*joined[member], *path[1:]) for member, path in paths.items()}


def _without_splits(paths: dict[Member, Path]) -> tuple[dict[Member, Path], dict[Member, str]]:
    """Takes `train/`, `val/` ... away when all pictures lie in such folders; one of them alone is a mere wrapper."""
    tops = {path[0].lower() if len(path) > 1 else "" for path in _pictures(paths)}
    if not tops or not tops <= SPLITS.keys():
        return paths, {}
    splits = {member: SPLITS[path[0].lower()] for member, path in paths.items() if path[0].lower() in SPLITS}
    if len(set(splits.values())) < 2:
        splits = {}
    return _stripped(paths, lambda top: top.lower() in SPLITS), splits


def _detect(paths: list[Path], report: Report) -> str:
    folders = {path[0] for path in paths if len(path) > 1}
    names = {folder.lower() for folder in folders}
    at_top = sum(len(path) == 1 for path in paths)
    for layout, roles in ROLES.items():
        if names == set(roles) and not at_top:
            if layout == "unpaired":
                report.warn("The folders A and B were read as two domains; if they are classes, say layout=labelled.")
            return layout
        if names > set(roles) and layout != "unpaired":
            raise InvalidDataset(
                f"There are the folders {roles[0]} and {roles[1]} of the layout {layout}, and others beside them.",
                field="layout",
                remedy=REMEDY,
            )
    if len(folders) < 2 and not (folders and at_top):
        return "plain"
    if at_top:
        raise InvalidDataset(
            f"{at_top} images lie at the top of the archive and {len(paths) - at_top} in folders.",
            field="layout",
            remedy="Import with layout=plain for all images, or layout=labelled to take the folders as classes.",
        )
    return "labelled"


def _by_folder(layout: str, paths: dict[Member, Path], splits: dict[Member, str], report: Report) -> list[Place]:
    places = []
    if layout == "labelled" and not any(len(path) > 1 for path in paths.values()):
        raise InvalidDataset(
            "The layout labelled has a folder for each of at least two classes; all files lie in one folder.",
            field="layout",
            remedy="Import with layout=plain.",
        )
    for member, path in paths.items():
        if layout == "labelled" and len(path) < 2:
            report.refuse(member.name, "The file lies outside the class folders.")
            continue
        label = printable(path[0]) if layout == "labelled" else None
        places.append(Place(member, "images", "/".join(path), label, splits.get(member)))
    return places


def _by_role(layout: str, paths: dict[Member, Path], splits: dict[Member, str], report: Report) -> list[Place]:
    roles = ROLES[layout]
    found = {path[0].lower() for path in paths.values() if len(path) > 1}
    if set(roles) - found:
        # a folder that is alone was taken for a wrapper
        met = found | {part.lower() for member in paths for part in member.path[:-1]}
        missing = " and ".join(f"{role}/" for role in roles if role not in met) or "one of them"
        raise InvalidDataset(
            f"The layout {layout} has the folders {roles[0]}/ and {roles[1]}/; missing or empty: {missing}.",
            field="layout",
            remedy="Put the images of each kind into the folder of its name.",
        )
    outside = [member for member, path in paths.items() if len(path) < 2 or path[0].lower() not in roles]
    for member in outside:
        report.refuse(member.name, f"The file lies outside {roles[0]}/ and {roles[1]}/.")
    inside = {member: path for member, path in paths.items() if member not in set(outside)}
    below = {member: path[1:] for member, path in inside.items()}
    if not splits:  # images/train/1.png is as common as train/images/1.png
        below, splits = _without_splits(below)
    classes = _classes_of_domains({member: (path[0].lower(), below[member]) for member, path in inside.items()})
    return [
        Place(
            member,
            path[0].lower(),
            splitext("/".join(below[member]))[0],
            printable(below[member][0]) if layout == "unpaired" and classes else None,
            splits.get(member),
        )
        for member, path in inside.items()
    ]


def _classes_of_domains(places: dict[Member, tuple[str, Path]]) -> set[str]:
    """Folders that both domains have, where all files lie in them and there are two or more: they are classes."""
    found: dict[str, set[str]] = {}
    for role, path in places.values():
        found.setdefault(role, set()).add(path[0] if len(path) > 1 else "")
    first, *others = found.values() or [set()]
    alike = len(first) > 1 and "" not in first and all(other == first for other in others)
    return first if alike else set()
