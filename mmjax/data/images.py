"""Image data sets as Columns: class folders, train/val/test folders of those, a CSV of paths and labels, or idx pairs.

Nothing is decoded here but by `scan_images`, which tells the files that are no whole image; `apply_policy` then stops,
or leaves them out and says so. A listing is in byte order of the paths, the same on every machine.
"""

import os
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmjax.config import ImageData, Policy, is_csv, target_columns
from mmjax.data.decode import scan_images as scan_images
from mmjax.data.folders import ClassFolders, list_folder, note_listing, read_class_folders, split_folders
from mmjax.data.idx import find_idx, read_idx
from mmjax.data.table import Table, read_table
from mmjax.errors import DataError, did_you_mean
from mmjax.schema import Columns

SHOWN = 20
"""Problems of one kind listed before the rest are only counted."""


class ImageSource(NamedTuple):
    """Images and what is known of each, row by row; nothing is decoded."""

    columns: Columns
    """`image_column`: object array of paths (str) or pixels (u8[H, W]); `target_column`: object array of str; and the
    id, weight and kept columns of a CSV."""
    image_column: str
    target_column: str | tuple[str, ...]
    """Or that of each label; empty for images without any."""
    assigned: np.ndarray | None
    """Object array of `train`, `validation`, `test` where the folders say so."""
    notes: tuple[str, ...]
    """What was skipped or taken in a way worth saying, one line each."""
    names: np.ndarray
    """Object array of str that identify the rows: path within the folder or as in the CSV, id, or `train/17`."""
    lines: np.ndarray | None = None
    """i64[N] of a CSV: where each row starts."""


def read_images(data: ImageData, *, keep: Sequence[str] = (), minimum_classes: int = 2) -> ImageSource:
    """Return the labelled images at `data.path`; DataError with everything that is wrong about the folder or CSV.

    `keep` names further columns of a CSV to hand on, such as that of the split. Fewer than `minimum_classes` class
    folders are an error.
    """
    path = data.path
    if os.path.isdir(path):
        if find_idx(path):
            return _from_idx(data)
        return _from_folders(data, minimum_classes)
    _expect_file(path, "data.image.path")
    if is_csv(path):
        return _from_csv(data, keep)
    raise DataError(f"data.image.path: expected a folder of class folders or a .csv file, got {path}")


def list_images(folder: str | os.PathLike[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (object array of the paths of all files under a folder, relative to it and in byte order, notes).

    Hidden and system files are skipped. DataError when it is no folder or holds no file.
    """
    path = os.fspath(folder)
    if not os.path.isdir(path):
        raise DataError(f"{path}: expected a folder of images, got {'a file' if os.path.exists(path) else 'nothing'}")
    listing = list_folder(path)
    if listing.problems or not listing.names:
        raise DataError(listing.problems or f"{path}: expected images, got none")
    return objects(listing.names), tuple(note_listing(path, listing))


def read_unlabelled_table(path: str, *, image_column: str = "image") -> ImageSource:
    """Return the images that a CSV lists, without labels, and all its columns; DataError without that column."""
    table = read_table(path)
    _expect_columns(table, [("data.image.image_column", image_column)])
    names = table.columns[image_column]
    columns = table.columns | {image_column: objects([_beside(path, name) for name in names])}
    return ImageSource(columns, image_column, "", None, (), names, table.lines)


def apply_policy(
    source: ImageSource, bad: Sequence[tuple[int, str]], policy: Policy
) -> tuple[ImageSource, np.ndarray, tuple[str, ...]]:
    """Return (the source without its bad images, bool[N] of the rows kept, notes); `bad` is what `scan_images` found.

    `fail`: DataError listing them. `drop`: they are left out, the notes say how many and why. `report`: they are
    left out too, for an image that cannot be decoded cannot be learnt from, and the notes list every one.
    """
    keep = np.ones(len(source.names), bool)
    keep[[index for index, _ in bad]] = False
    if not bad:
        return source, keep, ()
    count = f"{len(bad)} of {len(keep)} images cannot be read"
    lines = [f"{source.names[index]}: {reason}" for index, reason in bad]
    if policy == "fail":
        advice = "mend or remove them, or set data.image.on_invalid to drop"
        raise DataError([f"{count}; {advice}", *_shown(lines)])
    if not keep.any():
        raise DataError([f"{count}: none is left", *_shown(lines)])
    reasons = Counter(reason for _, reason in bad).most_common()
    kinds = ", ".join(f"{n} {reason}" for reason, n in reasons[:5]) + (", ..." if len(reasons) > 5 else "")
    notes = [f"{count} and are left out (on_invalid: {policy}): {kinds}"]
    notes += lines if policy == "report" else []
    return take(source, keep), keep, (*notes, *_lost_labels(source, keep))


def take(source: ImageSource, keep: np.ndarray) -> ImageSource:
    """Return the rows of the source where `keep` bool[N] is true (or those that it indexes)."""
    return source._replace(
        columns={name: values[keep] for name, values in source.columns.items()},
        assigned=None if source.assigned is None else source.assigned[keep],
        names=source.names[keep],
        lines=None if source.lines is None else source.lines[keep],
    )


def one_target(data: ImageData) -> str:
    """Return the target column of images that have one label each; DataError where the config names several."""
    if isinstance(data.target_column, tuple):
        raise DataError(
            f"data.image.target_column: expected one column with {data.path}, whose folders or files hold one label an "
            "image, got a list; list the images in a .csv file with a column for each label"
        )
    return data.target_column


def objects(values: Sequence[object] | np.ndarray) -> np.ndarray:
    """Return the values as a 1-D object array, arrays among them as they are."""
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        array[index] = value
    return array


def _from_folders(data: ImageData, minimum_classes: int) -> ImageSource:
    """Return the images of class folders, or of class folders within train, val and test folders."""
    path = data.path
    sets = split_folders(path)
    if sets is None:
        found = read_class_folders(path, "", minimum_classes)
        assigned = None
        parts = [found]
    else:
        parts = [
            read_class_folders(path, folder, minimum_classes if name == "train" else 1) for name, folder in sets.items()
        ]
        assigned = objects([name for name, part in zip(sets, parts, strict=True) for _ in part.names])
    problems = [problem for part in parts for problem in part.problems]
    if sets is not None:
        problems += _strange_classes(path, list(sets.values()), parts)
    if problems:
        raise DataError(problems)
    names = [name for part in parts for name in part.names]
    labels = [label for part in parts for label in part.labels]
    columns = {
        data.image_column: objects([os.path.join(path, name) for name in names]),
        one_target(data): objects(labels),
    }
    notes = tuple(note for part in parts for note in part.notes)
    return ImageSource(columns, data.image_column, data.target_column, assigned, notes, objects(names))


def _strange_classes(path: str, folders: list[str], parts: list[ClassFolders]) -> list[str]:
    """Return a problem for each class that stands only in a folder other than the first, which is train."""
    known = sorted(set(parts[0].labels))
    return [
        f"{os.path.join(path, folder)}: expected the classes of {folders[0]}, got '{name}'{did_you_mean(name, known)}"
        for folder, part in zip(folders[1:], parts[1:], strict=True)
        for name in sorted(set(part.labels) - set(known))
    ]


def _from_idx(data: ImageData) -> ImageSource:
    """Return the images of idx files; labels are the numbers as text."""
    pairs = read_idx(data.path)
    images = objects([image for pair in pairs for image in pair.images])
    labels = objects([str(label) for pair in pairs for label in pair.labels.tolist()])
    assigned = objects([pair.assigned for pair in pairs for _ in range(len(pair.labels))])
    names = objects([f"{pair.assigned}/{index}" for pair in pairs for index in range(len(pair.labels))])
    columns = {data.image_column: images, one_target(data): labels}
    return ImageSource(columns, data.image_column, data.target_column, assigned, (), names)


def _from_csv(data: ImageData, keep: Sequence[str]) -> ImageSource:
    """Return the rows of a CSV; DataError naming missing columns, and by its line each path that is no file."""
    table = read_table(data.path)
    wanted = [("data.image.image_column", data.image_column)]
    wanted += [("data.image.target_column", name) for name in target_columns(data)]
    wanted += [("data.image.id_column", data.id_column)] if data.id_column else []
    wanted += [("data.image.weight_column", data.weight_column)] if data.weight_column else []
    wanted += [("split.column", name) for name in keep]
    _expect_columns(table, wanted + [("data.image.ignore_columns", name) for name in data.ignore_columns])
    if data.image_column in target_columns(data):
        raise DataError(
            f"data.image.target_column: expected another column than image_column, got '{data.image_column}'"
        )
    cells = table.columns[data.image_column]
    paths = objects([_beside(data.path, cell) for cell in cells])
    if data.on_invalid == "fail":
        _expect_images(table, cells, paths)
    used = {name for _, name in wanted}
    others = [name for name in table.columns if name not in used and name not in data.ignore_columns]
    unused = f"{data.path}: columns not used, only images are learnt from: {', '.join(others)}"
    notes = (f"{unused}; `data.tabular.images` learns from both",) if others else ()
    columns = {name: table.columns[name] for name in table.columns if name in used} | {data.image_column: paths}
    names = columns[data.id_column] if data.id_column else cells
    return ImageSource(columns, data.image_column, data.target_column, None, notes, names, table.lines)


def _expect_images(table: Table, cells: np.ndarray, paths: np.ndarray) -> None:
    """Raise DataError with the line of every path that is no file."""
    lines = [
        f"{table.path}:{line}: " + (f"no such file: {cell}" if cell.strip() else "no path of an image")
        for line, cell, path in zip(table.lines, cells, paths, strict=True)
        if not os.path.isfile(path)
    ]
    if lines:
        count = f"{table.path}: {len(lines)} of {len(cells)} images are missing"
        advice = "paths are relative to the CSV file; mend these cells, or set data.image.on_invalid to drop"
        raise DataError([f"{count}; {advice}", *_shown(lines)])


def _expect_columns(table: Table, wanted: Sequence[tuple[str, str]]) -> None:
    """Raise DataError for every wanted (key of the config, column) that the table does not have."""
    header = ", ".join(table.columns)
    problems = [
        f"{key}: expected a column of {table.path} ({header}), got '{name}'{did_you_mean(name, table.columns)}"
        for key, name in wanted
        if name not in table.columns
    ]
    if problems:
        raise DataError(problems)


def _expect_file(path: str, where: str) -> None:
    """Raise DataError when there is nothing at `path`."""
    if not os.path.exists(path):
        raise DataError(
            f"{where}: expected a folder or a file, got nothing at {path}; paths are relative to {os.getcwd()}"
        )


def _beside(csv_path: str, cell: str) -> str:
    """Return a path that is given relative to the CSV file."""
    return os.path.join(os.path.dirname(csv_path), cell)


def _lost_labels(source: ImageSource, keep: np.ndarray) -> list[str]:
    """Return a note when labels that repeat, as classes do, have no image left."""
    target = source.target_column
    labels = source.columns[target] if target and isinstance(target, str) else np.empty(0, object)
    before = set(labels)
    lost = sorted(before - set(labels[keep])) if 2 * len(before) <= len(labels) else []
    return [f"no image is left of: {', '.join(lost)}"] if lost else []


def _shown(lines: list[str]) -> list[str]:
    """Return the first lines, and how many more there are."""
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"and {len(lines) - SHOWN} more"]
