"""Columns as a caller has them: cells in order, or a pandas DataFrame, without importing pandas; answers in a line."""

import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmjax.errors import DataError


class Frame(Protocol):
    """A pandas DataFrame, as far as it is asked for."""

    @property
    def columns(self) -> Any:
        """The names of the columns."""
        ...

    def items(self) -> Iterable[tuple[Any, Any]]:
        """Return name and Series of each column."""
        ...

    def to_numpy(self) -> np.ndarray:
        """Return all cells."""
        ...


MOST_CLASSES = 5
"""So many are told in a line."""
ImageFile = str | Path | bytes
"""A path of an image, or the bytes of its file."""
ONE_ROW = "; to ask for one row, put the row in a list: [row]"


def sized_cells(where: str, cells: Any) -> Any:
    """Return the cells of a column; DataError where they are a single one, or in no order."""
    if isinstance(cells, str | bytes | Mapping | Set) or not hasattr(cells, "__len__"):
        raise DataError(f"{where}: expected a list or an array of cells, got {type(cells).__name__}{ONE_ROW}")
    return cells


def image_rows(rows: Any, column: str) -> Any:
    """Return paths and bytes of images, one or a list of them, as cells of `column`; other rows as they are.

    >>> image_rows(["a.png", b"..."], "image"), image_rows([{"image": "a.png"}], "image")
    ({'image': ['a.png', b'...']}, [{'image': 'a.png'}])
    """
    files = [rows] if isinstance(rows, ImageFile) else rows
    given = isinstance(files, Sequence) and files and all(isinstance(file, ImageFile) for file in files)
    return {column: list(files)} if given else rows


def is_frame(value: Any) -> bool:
    """Return whether `value` is a pandas DataFrame."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def frame_columns(frame: Frame) -> dict[str, np.ndarray]:
    """Return the columns of a data frame by name, without its index: plain numbers as they are, the rest as object[N].

    What pandas takes for missing is None, of plain floats NaN. DataError for names that are no texts, or that are there
    twice.
    """
    names = list(frame.columns)
    problems = [
        f"data frame: expected names of columns that are texts, got {name!r}; rename it"
        for name in names
        if not isinstance(name, str)
    ]
    texts = [name for name in names if isinstance(name, str)]
    twice = [name for name in dict.fromkeys(texts) if texts.count(name) > 1]
    problems += [f"data frame: expected each column once, got '{name}' again; rename or remove one" for name in twice]
    if problems:
        raise DataError(problems)
    return {name: _cells(series) for name, series in frame.items()}


def answers_in_a_line(answers: Any) -> str:
    """Return what there is in a NamedTuple of answers (`prediction`, `classes` ...): arrays would fill a notebook."""
    classes, fields = answers.classes, answers._asdict()
    listed = ", ".join(map(repr, classes[:MOST_CLASSES])) + (", ..." if len(classes) > MOST_CLASSES else "")
    told = [f"{len(answers.prediction):,} row(s)"]
    told += [f"of {fields['model']}, version {fields['version']}"] if "model" in fields else []
    told += [f"{'labels' if answers.prediction.ndim == 2 else 'classes'} {listed}"] if classes else []
    told += [f"{len(answers.warnings)} warning(s)"] if answers.warnings else []
    there = [name for name, value in fields.items() if isinstance(value, np.ndarray)]
    return f"{type(answers).__name__}({', '.join(told)}; {', '.join(there)})"


def _cells(series: Any) -> np.ndarray:
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "iufb":
        return series.to_numpy()
    return series.to_numpy(dtype=object, na_value=None)
