"""Images to be answered that are the whole of their rows: which of them cannot be read, and why."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmjax.data.decode import scan_images
from mmjax.errors import DataError

SHOWN = 20
"""How many bad files are listed; the others are counted."""


class AskedImages(NamedTuple):
    """The images of a folder, of idx files or of a CSV."""

    source: Path
    names: np.ndarray
    """object[N]: what each is called in the folder or in the CSV."""
    files: np.ndarray
    """object[N]: paths or pixels."""
    lines: np.ndarray | None = None
    """i64[N]: where each row of a CSV starts."""
    identifiers: np.ndarray | None = None
    """object[N]: what names the rows of the answer, if not the names."""


def image_problems(images: AskedImages, rows: slice = slice(None)) -> dict[int, str]:
    """Return what is wrong with each image among these rows that cannot be read, counted from the first of them."""
    names = images.names[rows]
    found = scan_images(images.files[rows].tolist())
    return {row: why if str(names[row]).strip() else "no path of an image" for row, why in found}


def refuse_asked(images: AskedImages) -> None:
    """Raise DataError with the file, and in a CSV the line, of every image that cannot be read."""
    bad = image_problems(images)
    if not bad:
        return
    lines = [_in_words(images, row, why) for row, why in list(bad.items())[:SHOWN]]
    more = [f"and {len(bad) - SHOWN:,} more"] if len(bad) > SHOWN else []
    count = f"{images.source}: {len(bad):,} of {len(images.names):,} images cannot be read; mend or remove them"
    raise DataError([count, *lines, *more])


def _in_words(images: AskedImages, row: int, why: str) -> str:
    line = [] if images.lines is None else [f"{images.source}:{images.lines[row]}"]
    name = [str(images.names[row])] if str(images.names[row]).strip() else []
    return ": ".join([*line, *name, why])
