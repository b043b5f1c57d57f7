"""A pytree of arrays as a JSON structure and named NumPy arrays, and back, bit for bit; no pickle.

Containers are dicts with text keys (in their order), lists and plain tuples, nested and empty ones too; leaves are
arrays of booleans or numbers (0-d and bfloat16 included) and None. NamedTuples are refused, for a reader without the
class could only make something else of them; so are Python numbers, whose precision is nobody's decision.
"""

import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from mmjax.errors import BundleError

Arrays = dict[str, np.ndarray]
"""Host arrays by their path in the tree, `model/params/Dense_0/kernel`."""

EXTENDED_TYPES = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
"""Types that the .npy format does not know; stored as unsigned integers of the same bits."""


def flatten(tree: Any, name: str) -> tuple[Any, Arrays]:
    """Return the structure (JSON values) and the arrays of a pytree, named by paths that begin with `name`.

    NumPy scalars become 0-d arrays; device arrays come to the host. BundleError lists every leaf that cannot be kept.
    """
    problems: list[str] = []
    arrays: Arrays = {}
    structure = _flatten(tree, quote(name, safe=""), arrays, problems)
    if problems:
        raise BundleError(problems)
    return structure, arrays


def _flatten(tree: Any, path: str, arrays: Arrays, problems: list[str]) -> Any:
    """Return the structure of a subtree; its arrays and problems are added to the arguments."""
    if tree is None:
        return None
    if type(tree) is dict:
        for key in (key for key in tree if not isinstance(key, str)):
            problems.append(f"{path}: expected text keys, got {key!r}; name the entry")
        return {"dict": {key: _flatten(item, f"{path}/{_step(key)}", arrays, problems) for key, item in tree.items()}}
    if type(tree) in (list, tuple):
        kind = type(tree).__name__
        return {kind: [_flatten(item, f"{path}/{index}", arrays, problems) for index, item in enumerate(tree)]}
    if not hasattr(tree, "__array__"):
        problems.append(f"{path}: expected arrays in dicts, lists and tuples, got {type(tree).__name__}; convert it")
        return None
    return _flatten_leaf(np.asarray(tree), path, arrays, problems)


def _step(key: Any) -> str:
    """Return a dict key as one step of a path, so that no two keys share a path."""
    return quote(key, safe="", errors="surrogatepass") if isinstance(key, str) else repr(key)


def _flatten_leaf(array: np.ndarray, path: str, arrays: Arrays, problems: list[str]) -> Any:
    """Return the structure of an array and keep it under its path."""
    if array.dtype.name in EXTENDED_TYPES:
        arrays[path] = array.view(np.dtype(f"u{array.dtype.itemsize}"))
        return {"array": path, "type": array.dtype.name}
    if array.dtype.kind not in "biufc":
        problems.append(f"{path}: expected numbers or booleans, got an array of {array.dtype}; convert it")
    arrays[path] = array
    return {"array": path}


def unflatten(structure: Any, arrays: Mapping[str, np.ndarray], where: str) -> Any:
    """Return the pytree that `flatten` took apart; BundleError naming `where` when the two do not belong together."""
    used = set(_names(structure, where))
    if missing := sorted(used - arrays.keys()):
        raise BundleError(f"{where}: no array for {', '.join(missing)}; restore the bundle or retrain")
    if extra := sorted(arrays.keys() - used):
        raise BundleError(f"{where}: arrays that belong nowhere: {', '.join(extra)}; restore the bundle or retrain")
    return _unflatten(structure, arrays)


def _names(structure: Any, where: str) -> Iterator[str]:
    """Yield the array names of a structure; BundleError where it is none."""
    match structure:
        case None:
            return
        case {"dict": dict(children)} if len(structure) == 1:
            yield from (name for child in children.values() for name in _names(child, where))
        case {"list": list(children)} | {"tuple": list(children)} if len(structure) == 1:
            yield from (name for child in children for name in _names(child, where))
        case {"array": str(name), **rest} if rest in ({}, *({"type": kind} for kind in EXTENDED_TYPES)):
            yield name
        case _:
            raise BundleError(f"{where}: no structure of arrays: {str(structure)[:80]}; restore the bundle or retrain")


def _unflatten(structure: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Return the pytree of a structure that `_names` has checked."""
    match structure:
        case {"dict": children}:
            return {key: _unflatten(child, arrays) for key, child in children.items()}
        case {"list": children}:
            return [_unflatten(child, arrays) for child in children]
        case {"tuple": children}:
            return tuple(_unflatten(child, arrays) for child in children)
        case {"array": name, "type": kind}:
            import ml_dtypes

            return arrays[name].view(getattr(ml_dtypes, kind))
        case {"array": name}:
            return arrays[name]
        case _:
            return None


def save_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the arrays as the bytes of an .npz file; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            # A ZipInfo of its own carries the date 1980-01-01; large members need the 64-bit header asked for.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return buffer.getvalue()


def load_arrays(data: bytes, where: str) -> Arrays:
    """Return the arrays in the bytes of an .npz file; BundleError naming `where` when they cannot be read."""
    try:
        if not data.startswith(b"PK"):
            raise ValueError("no .npz archive")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] for name in _unique(archive.files)}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError) as error:
        raise BundleError(f"{where}: not readable as arrays: {error}; restore it or retrain") from error


def _unique(names: Iterable[str]) -> list[str]:
    """Return the names; ValueError when one comes twice."""
    listed = list(names)
    if len(set(listed)) < len(listed):
        raise ValueError("a name comes twice")
    return listed
