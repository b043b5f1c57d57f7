"""Tensors of the Open Inference Protocol: JSON data or raw bytes become arrays of the stated shape, or are refused.

Binary layout as in Triton's `extension_binary_data.md`: little-endian, row-major, no padding; an element of BYTES is
its length as a little-endian u32, then the bytes.
"""

import math
import re
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import numpy as np

from mmjax.serving.open_inference_model import TensorSpec
from mmjax.serving.table_bodies import json_words, placed
from mmjax.serving.wire import Refused

MOST_DIMENSIONS = 4
"""Of a tensor: a batch of images."""


class Tensor(NamedTuple):
    """An input: `values` has the stated shape; of BYTES it is an object array of `bytes`, or of `str` from JSON."""

    name: str
    datatype: str
    values: np.ndarray


DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Datatypes of a fixed size. Besides them there is BYTES; BF16 is not taken: NumPy does not know it."""


def check_shape(shape: Sequence[int], where: str) -> str | None:
    """Return what is wrong with a shape, else None: dimensions are 0 or more, and their product is below 2**40."""
    if not 1 <= len(shape) <= MOST_DIMENSIONS:
        return f"{where}: expected 1 to {MOST_DIMENSIONS} dimensions, got {len(shape)}"
    if wrong := [size for size in shape if not 0 <= size < 1 << 40]:
        return f"{where}: expected dimensions of 0 or more, got {_short(wrong[0])}"
    if math.prod(max(size, 1) for size in shape) >= 1 << 40:
        return f"{where}: expected a tensor that fits into memory, got {'x'.join(map(str, shape))}"
    return None


# ---- raw bytes


def from_binary(datatype: str, shape: Sequence[int], data: memoryview, where: str) -> np.ndarray:
    """Return the array in `data`, without a copy unless of BYTES; Refused where size and shape do not agree."""
    if datatype == "BYTES":
        return _elements(data, shape, where)
    dtype, count = DTYPES[datatype], math.prod(shape)
    if count * dtype.itemsize != len(data):
        raise Refused(
            400,
            "bad-tensor",
            f"{where}: expected {count * dtype.itemsize:,} bytes for {datatype} of shape {list(shape)}, "
            f"got {len(data):,}",
        )
    if datatype == "BOOL" and (np.frombuffer(data, np.uint8) > 1).any():
        raise Refused(400, "bad-tensor", f"{where}: expected bytes 0 and 1 for BOOL, got another")
    return np.frombuffer(data, dtype).reshape(shape)


def _elements(data: memoryview, shape: Sequence[int], where: str) -> np.ndarray:
    count = math.prod(shape)
    if 4 * count > len(data):
        raise Refused(400, "bad-tensor", f"{where}: expected {count:,} elements of BYTES, got {len(data):,} bytes")
    found, at = np.empty(count, dtype=object), 0
    for i in range(count):
        size = struct.unpack_from("<I", data, at)[0] if at + 4 <= len(data) else len(data)
        at += 4 + size
        if at > len(data):
            raise Refused(400, "bad-tensor", f"{where}, element {i + 1}: expected {size:,} bytes, got the end of data")
        found[i] = bytes(data[at - size : at])
    if at != len(data):
        raise Refused(
            400, "bad-tensor", f"{where}: expected {at:,} bytes in {count:,} elements, got {len(data) - at:,} more"
        )
    return found.reshape(shape)


def raw_tensor(specs: Sequence[TensorSpec], body: bytes) -> Tensor:
    """Return the one input of a model whose tensor is the whole body: rows of numbers, or one element of BYTES."""
    if len(specs) != 1:
        told = f"expected a request with JSON for a model of {len(specs)} inputs, got 0"
        raise Refused(400, "bad-header-length", f"Inference-Header-Content-Length: {told}")
    (spec,) = specs
    if spec.datatype == "BYTES":
        values = np.empty(1, dtype=object)
        values[0] = body
        return Tensor(spec.name, spec.datatype, values)
    shape = (len(body) // (DTYPES[spec.datatype].itemsize * math.prod(spec.shape[1:])), *spec.shape[1:])
    return Tensor(spec.name, spec.datatype, from_binary(spec.datatype, shape, memoryview(body), "body"))


def pack_texts(values: Sequence[str]) -> bytes:
    """Return texts as the raw bytes of a BYTES tensor.

    >>> pack_texts(["a", "bc"])
    b'\\x01\\x00\\x00\\x00a\\x02\\x00\\x00\\x00bc'
    """
    encoded = {value: value.encode() for value in set(values)}
    packed = {value: struct.pack("<I", len(text)) + text for value, text in encoded.items()}
    return b"".join(map(packed.__getitem__, values))


# ---- JSON


def _decoders(element: Any) -> tuple[msgspec.json.Decoder[Any], ...]:
    """Return decoders of lists, lists of lists ... of an element."""
    made, kind = [], element
    for _ in range(MOST_DIMENSIONS):
        kind = list[kind]
        made.append(msgspec.json.Decoder(kind))
    return tuple(made)


_INTEGERS = _decoders(int)
_JSON = {name: _INTEGERS for name, dtype in DTYPES.items() if dtype.kind in "iu"} | {
    "BOOL": _decoders(bool),
    "FP32": _decoders(float | None),
    "FP64": _decoders(float | None),
    "BYTES": _decoders(str | None),
}


def from_json(datatype: str, shape: Sequence[int], data: bytes | memoryview, where: str) -> np.ndarray:
    """Return the array in JSON data, flat or nested as the shape; floats as f64, and null is NaN, or None in BYTES.

    Numbers of FP32 keep the digits they were written with: what reads them rounds once. Refused naming `where`.
    """
    if datatype not in _JSON:
        raise Refused(400, "bad-tensor", f"{where}: expected {datatype} as binary data, got JSON")
    depth = len(shape) if bytes(data[:64]).lstrip()[1:].lstrip()[:1] == b"[" else 1
    try:
        values = _JSON[datatype][depth - 1].decode(data)
    except msgspec.ValidationError as error:
        raise Refused(400, "bad-tensor", f"{where}, data{_told(str(error))}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, "bad-json", f"{where}, data: expected JSON, got something else: {error}") from error
    values = _flat(values, shape if depth > 1 or len(shape) == 1 else (math.prod(shape),), where)
    return _array(datatype, values, where).reshape(shape)


def _flat(values: list[Any], shape: Sequence[int], where: str) -> list[Any]:
    """Return nested lists of this shape as one list; Refused where lengths differ from the shape."""
    lists = [values]
    for axis, size in enumerate(shape):
        for i, row in enumerate(lists, 1):
            if len(row) != size:
                at = f", row {i}" if axis else ""
                raise Refused(
                    400, "bad-tensor", f"{where}, data{at}: expected {_counted(size)} as in shape, got {len(row):,}"
                )
        if axis + 1 < len(shape):
            lists = list(chain.from_iterable(lists))
    return lists[0] if len(shape) == 1 else list(chain.from_iterable(lists))


def _array(datatype: str, values: list[Any], where: str) -> np.ndarray:
    if datatype == "BYTES":
        found = np.empty(len(values), dtype=object)
        found[:] = values
        return found
    if datatype in ("FP32", "FP64"):
        return np.array(values, dtype=np.float64)
    try:
        return np.array(values, dtype=DTYPES[datatype])
    except OverflowError as error:
        limits = np.iinfo(DTYPES[datatype])
        row = next(i for i, value in enumerate(values) if not limits.min <= value <= limits.max)
        told = f"expected {limits.min} to {limits.max} for {datatype}, got {_short(values[row])}"
        raise Refused(400, "bad-tensor", f"{where}, element {row + 1}: {told}") from error


def _counted(size: int) -> str:
    return f"{size:,} element{'' if size == 1 else 's'}"


def _told(message: str) -> str:
    """Return msgspec's message in the words of JSON, with the element in front, counted from 1 in each dimension.

    >>> _told("Expected `float | null`, got `str` - at `$[0][3]`")
    ', element 1, 4: expected a number or null, got a text'
    """
    path, told = placed(message)
    element = ", ".join(str(int(index) + 1) for index in re.findall(r"\d+", path or ""))
    return f"{f', element {element}' if element else ''}: {json_words(told)}"


def _short(number: int) -> str:
    """Return a number; of one with thousands of digits, which Python refuses to write, only its size."""
    return str(number) if number.bit_length() <= 128 else f"a number of {number.bit_length():,} bits"
