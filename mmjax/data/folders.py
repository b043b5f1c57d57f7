"""Folders of images: what lies where, in byte order, with everything odd about it said."""

import os
import unicodedata
from collections import Counter
from pathlib import PurePath
from typing import NamedTuple

from mmjax.errors import DataError

DECODED_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif"))
IMAGE_SUFFIXES = DECODED_SUFFIXES | {".tif", ".tiff", ".heic", ".avif", ".jp2", ".jxl", ".ico", ".tga", ".ppm", ".pgm"}
JUNK = frozenset(("thumbs.db", "desktop.ini", "__macosx", "icon\r"))
"""System files, in lower case; names that begin with a dot are hidden and skipped too."""

SPLIT_NAMES = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
SHOWN = 20


class Listing(NamedTuple):
    """All files under a folder."""

    names: tuple[str, ...]
    """Relative to the folder, parts joined by `/`, in byte order."""
    skipped: tuple[str, ...]
    """Hidden and system files and folders."""
    links: tuple[str, ...]
    """Links to folders that are read anyway, or that hold the folder itself."""
    problems: tuple[str, ...]


class ClassFolders(NamedTuple):
    """The files of class folders, one label a file."""

    names: tuple[str, ...]
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def split_folders(path: str) -> dict[str, str] | None:
    """Return {`train`, `validation`, `test`: folder name}, train first, when that is how `path` is laid out; else None.

    It is when every folder has one of the names train, val, valid, validation, test (in any case) and train holds
    folders. DataError when folders beside it do not fit, when train is missing, or when two name the same set.
    """
    folders = _entries(path).folders
    sets = [(SPLIT_NAMES[name.lower()], name) for name in folders if name.lower() in SPLIT_NAMES]
    others = [name for name in folders if name.lower() not in SPLIT_NAMES]
    train = [name for kind, name in sets if kind == "train"]
    nested = any(_entries(os.path.join(path, name)).folders for name in train)
    if not sets or (train and not nested):
        return None
    if others:
        if not nested:
            return None
        raise DataError(
            f"{path}: {train[0]}/ holds class folders, but beside it stand {_join(others)}; move them, or name the set"
        )
    if not train:
        raise DataError(f"{path}: expected a folder train beside {_join([name for _, name in sets])}, got none")
    for kind, count in Counter(kind for kind, _ in sets).items():
        if count > 1:
            raise DataError(f"{path}: expected one folder for {kind}, got {_join([n for k, n in sets if k == kind])}")
    return {kind: name for wanted in ("train", "validation", "test") for kind, name in sets if kind == wanted}


def read_class_folders(base: str, prefix: str, minimum_classes: int) -> ClassFolders:
    """Return the files of `base/prefix/<class>/`, named relative to `base`; what is wrong is in `problems`.

    Folders inside a class folder count for the class.
    """
    path = os.path.join(base, prefix) if prefix else base
    entries = _entries(path)
    listings = {name: list_folder(os.path.join(path, name), within=base) for name in entries.folders}
    problems = _layout_problems(path, entries, minimum_classes)
    problems += [problem for listing in listings.values() for problem in listing.problems]
    problems += [
        f"{os.path.join(path, name)}: expected images, got none" for name, found in listings.items() if not found.names
    ]
    pairs = [(os.path.join(name, file), name) for name, listing in listings.items() for file in listing.names]
    whole = Listing(
        tuple(name for name, _ in pairs),
        entries.skipped + tuple(os.path.join(n, s) for n, listing in listings.items() for s in listing.skipped),
        tuple(os.path.join(n, s) for n, listing in listings.items() for s in listing.links),
        (),
    )
    notes = note_listing(path, whole)
    deep = [name for name in whole.names if name.count("/") > 1]
    if deep:
        notes.append(
            f"{path}: {len(deep)} files lie in folders inside a class folder and count for that class, as {deep[0]}"
        )
    beside = [name for name in entries.files if not _looks_like_image(name)]
    if beside:
        notes.append(f"{path}: files beside the class folders are not read: {_join(beside)}")
    names = tuple(os.path.join(prefix, name) for name in whole.names)
    return ClassFolders(names, tuple(label for _, label in pairs), tuple(notes), tuple(problems))


def list_folder(folder: str, *, within: str = "") -> Listing:
    """Return all files under `folder`. Links are followed; each folder is read once, and none that holds `within`."""
    home = os.path.realpath(within or folder)
    names, skipped, links, problems = [], [], [], []
    seen = {_identity(folder)}
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        entries = _entries(os.path.join(folder, prefix))
        skipped += [os.path.join(prefix, name) for name in entries.skipped]
        names += [os.path.join(prefix, name) for name in entries.files]
        for name in reversed(entries.folders):
            inner = os.path.join(prefix, name)
            target, identity = os.path.realpath(os.path.join(folder, inner)), _identity(os.path.join(folder, inner))
            if identity in seen or os.path.join(home, "").startswith(os.path.join(target, "")):
                links.append(inner)
            else:
                seen.add(identity)
                waiting.append(inner)
    strange = [name for name in names if not _is_text(name)]
    if strange:
        listed = _join([ascii(name) for name in strange])
        problems.append(f"{folder}: expected file names in UTF-8, got {listed}; rename them")
    return Listing(tuple(sorted(names, key=os.fsencode)), tuple(skipped), tuple(sorted(links)), tuple(problems))


def note_listing(folder: str, listing: Listing) -> list[str]:
    """Return a line each for files skipped, links not followed, and suffixes that no image has."""
    notes = []
    if listing.skipped:
        names = sorted({os.path.basename(name) for name in listing.skipped})
        notes.append(f"{folder}: {len(listing.skipped)} hidden or system files skipped ({_join(names, 3)})")
    if listing.links:
        notes.append(f"{folder}: links to folders that are read already are not followed: {_join(list(listing.links))}")
    suffixes = Counter(PurePath(name).suffix.lower() or "none" for name in listing.names)
    odd = [f"{suffix} {count}" for suffix, count in sorted(suffixes.items()) if suffix not in DECODED_SUFFIXES]
    if odd:
        notes.append(f"{folder}: files with suffixes of no known image ({_join(odd)}); their content decides")
    return notes


class _Entries(NamedTuple):
    folders: tuple[str, ...]
    files: tuple[str, ...]
    skipped: tuple[str, ...]


def _entries(path: str) -> _Entries:
    """Return what lies in a folder, in byte order; DataError when it cannot be read."""
    try:
        with os.scandir(path) as found:
            entries = sorted(found, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    junk = {entry.name for entry in entries if entry.name.startswith(".") or entry.name.lower() in JUNK}
    folders = tuple(e.name for e in entries if e.name not in junk and os.path.isdir(e.path))
    files = tuple(e.name for e in entries if e.name not in junk and e.name not in folders)
    return _Entries(folders, files, tuple(sorted(junk)))


def _layout_problems(path: str, entries: _Entries, minimum_classes: int) -> list[str]:
    """Return what is wrong with the class folders and what stands beside them."""
    loose = [name for name in entries.files if _looks_like_image(name)]
    problems = []
    if not entries.folders:
        found = f"{len(loose)} images without a class" if loose else "no folders"
        advice = "or let data.image.path name a CSV of paths and labels"
        return [f"{path}: expected a folder for each class, got {found}; {advice}"]
    if len(entries.folders) < minimum_classes:
        inside = _entries(os.path.join(path, entries.folders[0])).folders
        hint = f"; did you mean {os.path.join(path, entries.folders[0])}?" if len(inside) > 1 else ""
        problems.append(
            f"{path}: expected at least {minimum_classes} class folders, got only {entries.folders[0]}{hint}"
        )
    if loose:
        problems.append(f"{path}: expected every image inside a class folder, got beside them: {_join(loose)}")
    same: dict[str, list[str]] = {}
    for name in entries.folders:
        same.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(name)
    problems += [
        f"{path}: expected classes that differ in more than upper and lower case, got {_join(names)}; merge them"
        for names in same.values()
        if len(names) > 1
    ]
    return problems


def _looks_like_image(name: str) -> bool:
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_text(name: str) -> bool:
    """Return whether the name can be written as UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _join(names: list[str], shown: int = SHOWN) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
