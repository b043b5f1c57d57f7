"""idx files, the format of MNIST and its kin: pairs of an image file and a label file, gzipped or not."""

import gzip
import os
import zlib
from typing import NamedTuple

import numpy as np

from mmjax.errors import DataError

IMAGES_MAGIC, LABELS_MAGIC = 0x00000803, 0x00000801

STEMS = {"train": "train", "test": "t10k"}
"""How the files of each set begin."""


class IdxPair(NamedTuple):
    """One set of labelled images."""

    assigned: str
    """`train` or `test`."""
    images: np.ndarray
    """u8[N, H, W], grey."""
    labels: np.ndarray
    """u8[N]."""


def find_idx(folder: str) -> dict[str, tuple[str | None, str | None]]:
    """Return the (image file, label file) of each set that has at least one of them; empty when there is none.

    Names are `train-images-idx3-ubyte` or `train-images.idx3-ubyte`, `t10k-...` for the test set, with or without
    `.gz`; where both are there, the file without `.gz`.
    """
    present = set(os.listdir(folder))
    found = {}
    for assigned, stem in STEMS.items():
        pair = tuple(
            next(
                (
                    name
                    for dot in "-."
                    for end in ("", ".gz")
                    if (name := f"{stem}-{kind}{dot}{idx}-ubyte{end}") in present
                ),
                None,
            )
            for kind, idx in (("images", "idx3"), ("labels", "idx1"))
        )
        if any(pair):
            found[assigned] = pair
    return found


def read_idx(folder: str) -> list[IdxPair]:
    """Return the sets in a folder of idx files; DataError naming everything that is missing or damaged."""
    pairs, problems = [], []
    found = find_idx(folder)
    if "train" not in found:
        problems.append(f"{folder}: expected train-images-idx3-ubyte(.gz), got idx files of the test set only")
    for assigned, (images, labels) in found.items():
        try:
            pairs.append(_read_pair(folder, assigned, images, labels))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return pairs


def _read_pair(folder: str, assigned: str, images: str | None, labels: str | None) -> IdxPair:
    """Return the pair; DataError when a file is missing, damaged, or of another length than the other."""
    if images is None or labels is None:
        lone, kind = (images, "label") if labels is None else (labels, "image")
        raise DataError(f"{folder}: expected a {kind} file beside {lone}, got none")
    pixels = read_idx_file(os.path.join(folder, images), IMAGES_MAGIC)
    answers = read_idx_file(os.path.join(folder, labels), LABELS_MAGIC)
    if len(pixels) != len(answers):
        raise DataError(
            f"{folder}: expected as many labels as images, got {len(answers)} in {labels}, {len(pixels)} in {images}"
        )
    return IdxPair(assigned, pixels, answers)


def read_idx_file(path: str, magic: int) -> np.ndarray:
    """Return the u8 array of a file whose first four bytes are `magic`; DataError when it is anything else.

    The low byte of the magic number is the number of dimensions; their sizes follow, big-endian.
    """
    dimensions = magic & 0xFF
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            head = file.read(4 * (1 + dimensions))
            found = int.from_bytes(head[:4], "big")
            if found != magic or len(head) < 4 * (1 + dimensions):
                raise DataError(
                    f"{path}: expected an idx file that begins with {magic:08x}, got {head[:4].hex() or 'nothing'}"
                )
            shape = tuple(int(size) for size in np.frombuffer(head, ">u4")[1:])
            size = int(np.prod(shape, dtype=object))
            body = file.read(size + 1) if 0 < size < 2**40 else b""
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is damaged or truncated: {error}") from error
    if size == 0 or len(body) != size:
        listed = " x ".join(map(str, shape))
        got = "more" if len(body) > size else str(len(body))
        raise DataError(f"{path}: expected {listed} = {size} bytes as its header says, got {got}; fetch the file again")
    return np.frombuffer(body, np.uint8).reshape(shape)
