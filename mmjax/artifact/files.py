"""Small files written whole or not at all, and values as JSON that every parser reads."""

import json
import math
import os
import re
import secrets
from collections.abc import Mapping
from datetime import date
from pathlib import Path, PurePath
from typing import Any

import msgspec

from mmjax.errors import BundleError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Names of models, aliases and runs: safe as the name of a folder, `.` and `..` excluded."""


def plain(value: object) -> Any:
    """Return `value` as JSON-ready builtins: NaN and infinities become None, arrays lists, paths and dates texts.

    NamedTuples and structs become dicts. Characters that are no text (undecodable file names) become escapes.
    TypeError for anything else.

    >>> plain({"loss": float("nan"), "shape": (2, 3)})
    {'loss': None, 'shape': [2, 3]}
    """
    match value:
        case None | bool() | int():
            return value
        case str():
            return value.encode("utf-8", "backslashreplace").decode("utf-8")
        case float():
            return float(value) if math.isfinite(value) else None
        case msgspec.Struct():
            return plain(msgspec.to_builtins(value))
        case Mapping():
            return {plain(str(key)): plain(item) for key, item in value.items()}
        case tuple() if hasattr(value, "_asdict"):
            return plain(value._asdict())  # pyright: ignore[reportAttributeAccessIssue]
        case list() | tuple():
            return [plain(item) for item in value]
        case PurePath():
            return plain(str(value))
        case date():
            return value.isoformat()
        case _:
            return _plain_array(value)


def _plain_array(value: object) -> Any:
    """Return NumPy and JAX arrays and scalars as (nested lists of) numbers."""
    to_list = getattr(value, "tolist", None)
    if to_list is None:
        raise TypeError(f"{type(value).__name__} has no JSON form; turn it into numbers, texts, lists and dicts")
    return plain(to_list())


def to_json(value: object, *, indent: int | None = None) -> bytes:
    """Return `plain(value)` as UTF-8 JSON, on one line unless `indent` says otherwise."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent).encode()


def write_synced(path: Path, data: bytes) -> None:
    """Write `data` to a new file and wait until it is on the disk; FileExistsError when there is one."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the folder's entries (names made, renamed, removed) are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_sibling(path: Path) -> Path:
    """Return an unused hidden path next to `path`; it ends in `.tmp`, so that leftovers of a crash are known."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the file by `data`: a reader sees the old or the new bytes, also after a crash."""
    temporary = temporary_sibling(path)
    try:
        write_synced(temporary, data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json_atomic(path: Path, value: object) -> None:
    """Replace the file by indented JSON of `value`, atomically; NaN and infinities become null."""
    write_atomic(path, to_json(value, indent=2) + b"\n")


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in `data`; BundleError naming `where` when it is none."""
    try:
        found = json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not readable as JSON: {error}; restore it or retrain") from error
    if not isinstance(found, dict):
        raise BundleError(f"{where}: expected a JSON object, got {type(found).__name__}; restore it or retrain")
    return found


def valid_name(name: str, what: str) -> str:
    """Return the name; BundleError when it could lead out of its folder."""
    if not NAME.fullmatch(name):
        raise BundleError(
            f"{name!r}: no name for {what}; expected at most 100 letters, digits, '.', '_' and '-', "
            "the first a letter or digit"
        )
    return name
