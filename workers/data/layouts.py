"""Finds the layout of an archive, and each file's role, class and split, from the paths alone."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from posixpath import splitext
from typing import NamedTuple

from app.core.errors import InvalidDataset
from workers.data.archive import Member
from workers.data.rows import MAX_CLASSES, Report, printable

Path = tuple[str, ...]
MAX_LISTED = 10
SIDECARS = ("labels.csv", "classes.json", "boxes.csv", "groups.csv")
TABLES = {"labels.csv": "attributes", "boxes.csv": "detection"}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
SPLITS = {"train": "train", "training": "train"} | dict.fromkeys(
    ("val", "valid", "validation", "test", "testing"), "validation"
)
# the folders of pytorch-CycleGAN-and-pix2pix: trainA, trainB, testA, testB
JOINED = {split + domain: (split, domain) for split in ("train", "val", "test") for domain in "ab"}
ROLES = {"paired": ("input", "target"), "unpaired": ("a", "b"), "segmentation": ("images", "masks")}
REMEDY = "Set layout to plain, labelled, paired, unpaired, segmentation, attributes or detection."


class Place(NamedTuple):
    """`role`: the image column or "masks". `key`: the path below the role's folder without suffix, equal for a pair."""

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
    """Gives every member its place, in the members' order; members without one are refused in the report.

    Raises InvalidDataset if the archive does not fit `layout`, or none fits the archive.
    """
    if not members:
        raise report.no_usable_image()
    paths = _without_wrapper({member: member.path for member in members})
    sidecars = {
        path[0].lower(): member for member, path in paths.items() if len(path) == 1 and path[0].lower() in SIDECARS
    }
    paths = _split_joined({member: path for member, path in paths.items() if path[0].lower() not in sidecars})
    if not layout:
        layout = next((name for table, name in TABLES.items() if table in sidecars), None)
    for table in TABLES.keys() & sidecars.keys():
        if TABLES[table] != layout:
            report.warn(f"{table} was not read: it belongs to layout={TABLES[table]}; the layout is {layout}.")
    # a table names files by their full paths and has a column for the split
    paths, splits = (paths, {}) if layout in TABLES.values() else _without_splits(paths)
    layout = layout or _detect(list(_pictures(paths)), report)
    place = _by_role if layout in ROLES else _by_folder
    return Arrangement(layout, place(layout, paths, splits, report), sidecars)


def _pictures(paths: dict[Member, Path]) -> Iterable[Path]:
    """The paths of images, or all if no file has the suffix of one: a README must not change the layout."""
    return [path for path in paths.values() if path[-1].lower().endswith(IMAGE_SUFFIXES)] or paths.values()


def _without_wrapper(paths: dict[Member, Path]) -> dict[Member, Path]:
    """Removes the folders that hold the whole archive."""
    while True:
        data_paths = [path for path in paths.values() if path[-1].lower().endswith((*IMAGE_SUFFIXES, *SIDECARS))]
        tops = {path[0] if len(path) > 1 else None for path in data_paths or paths.values()}
        if len(tops) != 1 or None in tops:
            return paths
        paths = _stripped(paths, tops.__contains__)


def _stripped(paths: dict[Member, Path], unwanted: Callable[[str], bool]) -> dict[Member, Path]:
    return {member: path[1:] if len(path) > 1 and unwanted(path[0]) else path for member, path in paths.items()}


def _split_joined(paths: dict[Member, Path]) -> dict[Member, Path]:
    """trainA/1.png -> train/a/1.png, if all images lie in such folders."""
    if not all(len(path) > 1 and path[0].lower() in JOINED for path in _pictures(paths)):
        return paths
    joined = {member: JOINED.get(path[0].lower(), path[:1]) for member, path in paths.items()}
    return {member: (*joined[member], *path[1:]) for member, path in paths.items()}


def _without_splits(paths: dict[Member, Path]) -> tuple[dict[Member, Path], dict[Member, str]]:
    """Removes `train/`, `val/` ... if all images lie in such folders, and returns the splits; a single one is none."""
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
                report.warn("The folders A and B were read as two domains. If they are classes, set layout=labelled.")
            return layout
        if names > set(roles) and layout != "unpaired":
            raise InvalidDataset(
                f"The archive has the folders {roles[0]}/ and {roles[1]}/ of layout={layout}, and also "
                f"{_folders(names - set(roles))}.",
                field="layout",
                remedy=REMEDY,
            )
    if len(folders) < 2 and not (folders and at_top):
        return "plain"
    if at_top:
        raise InvalidDataset(
            f"The archive has {at_top} images at the top level and {len(paths) - at_top} in folders.",
            field="layout",
            remedy="Import with layout=plain to ignore the folders, or layout=labelled to read only the folders, as "
            "classes.",
        )
    return "labelled"


def _by_folder(layout: str, paths: dict[Member, Path], splits: dict[Member, str], report: Report) -> list[Place]:
    places = []
    if layout == "labelled" and not any(len(path) > 1 for path in paths.values()):
        raise _no_class_folders(list(paths), report)
    for member, path in paths.items():
        if layout == "labelled" and len(path) < 2:
            report.refuse(member.name, "The file is not in a class folder.")
            continue
        label = printable(path[0]) if layout == "labelled" else None
        places.append(Place(member, "images", "/".join(path), label, splits.get(member)))
    return places


def _no_class_folders(members: list[Member], report: Report) -> InvalidDataset:
    suffixes = {splitext(member.name)[1].lower() for member in members}
    if not suffixes & set(IMAGE_SUFFIXES):
        endings = [printable(suffix) for suffix in sorted(suffixes) if suffix][:MAX_LISTED]
        return report.invalid(
            f"The archive has no image; its files end in {', '.join(endings) or 'no suffix'}.",
            remedy="Send PNG, JPEG or WebP images.",
        )
    folders = {member.path[-2] for member in members if len(member.path) > 1}
    which = f"only {_folders(folders)}" if folders else "none"
    return report.invalid(
        f"layout=labelled needs one folder per class (at least two); found {which}.",
        field="layout",
        remedy="Put the images of each class into a folder of its own, or import with layout=plain.",
    )


def _folders(names: set[str]) -> str:
    """Folder names for an error, such as "cat/, dog/"; at most ten."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(f"{printable(name)}/" for name in sorted(names)[:MAX_LISTED]) + more


def _by_role(layout: str, paths: dict[Member, Path], splits: dict[Member, str], report: Report) -> list[Place]:
    roles = ROLES[layout]
    tops = {path[0].lower() for path in paths.values() if len(path) > 1}
    if set(roles) - tops:
        # a single folder was removed as a wrapper
        folders = tops | {part.lower() for member in paths for part in member.path[:-1]}
        missing = " and ".join(f"{role}/" for role in roles if role not in folders) or "one of them"
        raise InvalidDataset(
            f"layout={layout} needs the folders {roles[0]}/ and {roles[1]}/; missing or empty: {missing}.",
            field="layout",
            remedy=f"Put the images into {roles[0]}/ and {roles[1]}/, or set another layout.",
        )
    outside = [member for member, path in paths.items() if len(path) < 2 or path[0].lower() not in roles]
    for member in outside:
        report.refuse(member.name, f"The file is outside {roles[0]}/ and {roles[1]}/.")
    inside = {member: path for member, path in paths.items() if member not in set(outside)}
    below = {member: path[1:] for member, path in inside.items()}
    if not splits:  # images/train/1.png is as common as train/images/1.png
        below, splits = _without_splits(below)
    classes = _labelled_domains({member: (path[0].lower(), below[member]) for member, path in inside.items()})
    if layout == "unpaired" and len(classes) == 1:
        report.warn(f"The folders in {max(classes).upper()} were read as classes; the other domain has no labels.")
    return [
        Place(
            member,
            path[0].lower(),
            splitext("/".join(below[member]))[0],
            printable(below[member][0]) if layout == "unpaired" and path[0].lower() in classes else None,
            splits.get(member),
        )
        for member, path in inside.items()
    ]


def _labelled_domains(places: dict[Member, tuple[str, Path]]) -> set[str]:
    """The domains whose folders are classes: two or more that hold all files, the same in both domains if both have."""
    folders: dict[str, set[str]] = {}
    for role, path in places.values():
        folders.setdefault(role, set()).add(path[0] if len(path) > 1 else "")
    labelled = {role: names for role, names in folders.items() if 1 < len(names) <= MAX_CLASSES and "" not in names}
    others = [names for role, names in folders.items() if role not in labelled]
    same = len(set(map(frozenset, labelled.values()))) == 1
    return set(labelled) if same and all(names == {""} for names in others) else set()
