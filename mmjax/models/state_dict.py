"""A state dict from disk: named arrays of a `.safetensors` or `.npz` file. Neither format can run code.

safetensors is a length, a JSON header and raw little-endian arrays (https://huggingface.co/docs/safetensors): read here
because that is less than a dependency, and so that every lie of a header is told with the file's name.
"""

import hashlib
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.errors import DataError

StateDict = Mapping[str, np.ndarray]

LARGEST_HEADER = 100_000_000
"""Bytes; the limit of the format's own library."""
_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}

_NO_NPZ = (
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,  # encrypted, or packed in a way that is not known
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
"""What NumPy and zipfile raise for a file that is no `.npz` file, or no whole one."""


def load_state_dict(path: str | Path) -> StateDict:
    """Return the arrays of a `.safetensors` (mapped from disk) or `.npz` file by name.

    DataError for a file that is not there, of another kind, or not whole.
    """
    path = Path(path)
    try:
        match path.suffix.lower():
            case ".safetensors":
                return _read_safetensors(path)
            case ".npz":
                return _read_npz(path)
            case _:
                raise DataError(f"expected a .safetensors or .npz file, got {path.name}")
    except DataError as error:
        raise DataError([f"{path}: {problem}" for problem in error.problems]) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def sha256_of(path: str | Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_npz(path: Path) -> StateDict:
    try:
        # The file is opened here: np.load leaves a damaged one open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except _NO_NPZ as error:
        raise DataError(f"expected an .npz file of plain arrays, got a damaged or other one: {error}") from error
    if other := [name for name, values in arrays.items() if not isinstance(values, np.ndarray)]:
        raise DataError(f"expected an .npz file of plain arrays, got a member that is none: {other[0][:200]}")
    return arrays


def _read_safetensors(path: Path) -> StateDict:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, LARGEST_HEADER):
            raise DataError(f"expected a safetensors file, got a header of {length} bytes in a file of {size}")
        header = _header(file.read(length))
    data = np.memmap(path, np.uint8, "r", 8 + length) if size > 8 + length else np.zeros(0, np.uint8)
    arrays, end = {}, 0
    for name, (dtype, shape, first, last) in sorted(header.items(), key=lambda item: item[1][2:]):
        wanted = math.prod(shape) * np.dtype(dtype).itemsize
        if first != end or last - first != wanted or last > len(data):
            raise DataError(
                f"{name[:200]}: expected {wanted} bytes from {end} on, of {len(data)}, got offsets {first} to {last}"
            )
        arrays[name] = _shaped(name, data[first:last].view(dtype), shape)
        end = last
    if end != len(data):
        raise DataError(f"expected arrays to fill {len(data)} bytes, got {end}; the file is damaged")
    return arrays


def _shaped(name: str, values: np.ndarray, shape: list[int]) -> np.ndarray:
    try:
        return values.reshape(shape)
    except ValueError as error:  # more sides than NumPy has, or one too long beside a 0
        raise DataError(f"{name[:200]}: expected a shape of an array, got {shape[:8]}: {error}") from error


def _header(text: bytes) -> dict[str, tuple[Any, list[int], int, int]]:
    """Return dtype, shape, first and last byte by name; DataError for anything else."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("a name is there twice")
        return dict(pairs)

    try:
        entries = json.loads(text, object_pairs_hook=once)
        return {name: _entry(entry) for name, entry in entries.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"expected a safetensors header of dtypes, shapes and offsets, got {error!r}") from error


def _entry(entry: Any) -> tuple[Any, list[int], int, int]:
    shape, (first, last) = entry["shape"], entry["data_offsets"]
    if not all(type(number) is int and 0 <= number < 2**48 for number in (*shape, first, last)):
        raise ValueError(f"shape {shape} and offsets {first}, {last}")
    return _DTYPES[entry["dtype"]], shape, first, last
