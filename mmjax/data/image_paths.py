"""Cells that name image files: each a path within one folder, or empty."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmjax.config import Config, TableImages, table_images
from mmjax.data.cells import missing_mask, texts
from mmjax.data.encode import left_out
from mmjax.data.table import Table
from mmjax.data.validate import Fault, cell_faults, faults_by_row, judge, refuse_cells
from mmjax.errors import ConfigError, DataError
from mmjax.schema import Columns, Schema

IMAGES_HELP = "Where paths of images in a table start from  [default: as trained, else the folder of the CSV]"
OUTSIDE = "the path of an image in {folder} (this one leads out of it)"
READABLE = "a readable image ({reason})"
ABSENT = "an image file in {folder} (there is none of that name)"


class Paths(NamedTuple):
    """Where the images of N rows are, and which cells name none that may be read."""

    paths: np.ndarray
    """object[N, I]: paths (str); None where the cell is empty."""
    faults: list[Fault]


def expect_folder(config: Config, folder: Path) -> None:
    """Raise ConfigError where a folder of images is given for a model of other data, or is none."""
    if table_images(config) is None:
        raise ConfigError("--images: expected with a model of a table with columns of images only; leave it out")
    if not folder.is_dir():
        raise ConfigError(f"--images {folder}: expected a folder, got {'a file' if folder.exists() else 'nothing'}")


def image_folder(settings: TableImages, csv: str | Path, given: str | Path | None = None) -> str:
    """Return where paths in a CSV file start from: the folder `given`, else the config's, else the file's own.

    DataError where a folder is in the place of the CSV file.
    """
    if Path(csv).is_dir():
        raise DataError(
            f"{csv}: expected a CSV file whose columns ({', '.join(settings.columns)}) name images, got a folder; the "
            "model answers rows of a table, not images alone; --images names the folder that paths start from"
        )
    return os.fspath(given or settings.folder or Path(csv).parent)


def image_paths(columns: Columns, names: Sequence[str], folder: str, markers: Sequence[str]) -> Paths:
    """Return the Paths that the cells of these columns name.

    A path that is given from the root must lie in the folder too; links are followed, wherever they lead.
    """
    rows = len(columns[names[0]])
    paths, faults = np.full((rows, len(names)), None, object), []
    for i, name in enumerate(names):
        cells = texts(columns[name])
        open_rows = ~missing_mask(cells, markers)
        found = [path_within(folder, cell) if there else None for cell, there in zip(cells, open_rows, strict=True)]
        outside = np.array([path is None for path in found], bool) & open_rows
        absent = np.array([path is not None and not _is_there(path) for path in found], bool)
        paths[:, i] = found
        for wrong, rule in ((outside, OUTSIDE), (absent, ABSENT)):
            if (at := np.flatnonzero(wrong)).size:
                faults.append(Fault(at, name, [cells[row] for row in at], rule.format(folder=folder), readable=False))
    return Paths(paths, faults)


def path_within(folder: str, cell: str) -> str | None:
    """Return the path of a cell below a folder; None where it leads out of it.

    >>> path_within("a/b", "c/../d.png"), path_within("a/b", "../d.png"), path_within("a/b", "/etc/passwd")
    ('a/b/d.png', None, None)
    """
    path, root = os.path.normpath(os.path.join(folder, cell)), os.path.normpath(folder)
    inside = os.path.commonpath([os.path.abspath(path), os.path.abspath(root)]) == os.path.abspath(root)
    return path if inside else None


def with_paths(schema: Schema, table: Table, folder: str) -> Table:
    """Return the rows of a CSV file with the paths of their images in the place of the cells.

    DataError with file and line of every cell that names no file in the folder. A column that is absent stays so.
    """
    found, faults = located_images(schema, table, folder)
    refuse_paths(schema, table, faults)
    return found


def located_images(schema: Schema, table: Table, folder: str) -> tuple[Table, list[Fault]]:
    """Return what `with_paths` does, and the cells that it would refuse."""
    names = _image_columns(schema, table)
    if not names:
        return table, []
    found = image_paths(table.columns, names, folder, schema.missing_markers)
    return table._replace(
        columns=table.columns | {name: found.paths[:, i] for i, name in enumerate(names)}
    ), found.faults


def refuse_paths(schema: Schema, table: Table, faults: list[Fault]) -> None:
    """Raise DataError with file and line of these cells, if any."""
    try:
        judge(faults, None, schema, table.lines, table.path, "fail")
    except DataError as error:
        advice = "mend these cells, or leave them empty; --images names another folder"
        raise DataError([*error.problems, advice]) from error


def refuse_images(schema: Schema, table: Table) -> None:
    """Raise DataError with file, line and column of every image that cannot be read; `with_paths` has been there."""
    judge(image_faults(schema, table), None, schema, table.lines, table.path, "fail")


def image_faults(schema: Schema, table: Table) -> list[Fault]:
    """Return what `refuse_images` refuses."""
    from mmjax.data.decode import scan_images  # here: tables need no Pillow

    faults = []
    for name in _image_columns(schema, table):
        cells = table.columns[name]
        given = np.array([row for row, cell in enumerate(cells) if cell is not None], np.int64)
        for index, reason in scan_images(cells[given].tolist()):
            row = given[index]
            faults.append(Fault(row[None], name, [str(cells[row])], READABLE.format(reason=reason), readable=False))
    return faults


def refuse_rows(schema: Schema, table: Table, faults: list[Fault]) -> None:
    """Raise DataError for the cells that name no file (`faults`), else for other cells, else for images."""
    refuse_paths(schema, table, faults)
    refuse_cells(schema, table)
    refuse_images(schema, table)


def row_problems(schema: Schema, table: Table, faults: list[Fault]) -> dict[int, str]:
    """Return row -> all that `refuse_rows` would refuse of it; a file that is not there is told once."""
    no_file = {(fault.column, row) for fault in faults for row in fault.rows.tolist()}
    unreadable = (one for one in image_faults(schema, table) if (one.column, int(one.rows[0])) not in no_file)
    return faults_by_row([*faults, *cell_faults(schema, table), *unreadable])


def count_gaps(schema: Schema, columns: Columns) -> Counter[str]:
    """Return how many images and cells of features are missing, by column; `located_images` has been there."""
    images = schema.image.columns if schema.image else ()
    found = {name: sum(cell is None for cell in columns[name]) for name in images if name in columns}
    for name in (column.name for column in schema.features if column.name in columns):
        found[name] = int(missing_mask(texts(columns[name]), schema.missing_markers).sum())
    return Counter(found)


def gap_notes(schema: Schema, names: Iterable[str], gaps: Counter[str], path: str) -> tuple[str, ...]:
    """Return lines that count what is missing in a file with columns of these names, images before cells."""
    images = schema.image.columns if schema.image else ()
    absent = left_out(schema, names)
    of_images = {name: gaps[name] for name in images if gaps[name]}
    of_cells = {column.name: gaps[column.name] for column in schema.features if gaps[column.name]}
    found = (
        *missing_note("images", of_images),
        *missing_note("cells", of_cells),
        *((f"left out, missing in every row: {', '.join(absent)}",) if absent else ()),
    )
    return tuple(f"{path}: {line}" for line in found)


def missing_note(what: str, counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return the line that counts, by column, what is missing and the model knows to be; none where nothing is."""
    told = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return (f"missing {what}, known to the model as such: {told}",) if told else ()


def _image_columns(schema: Schema, table: Table) -> list[str]:
    return [name for name in (schema.image.columns if schema.image else ()) if name in table.columns]


def _is_there(path: str) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:  # a name with a NUL
        return False
