"""Golden rows: a few raw input rows with the answers the model gave them, kept to prove every load right."""

import json
import math
from typing import Any, NamedTuple

import numpy as np

from mmjax.artifact import tree
from mmjax.artifact.files import parse_object
from mmjax.errors import BundleError

Cell = str | bytes | np.ndarray | float | int | bool | None
"""A raw input: text of a table, bytes of an image file, `u8[H, W]` or `u8[H, W, 3]` pixels, a number, nothing."""


class Golden(NamedTuple):
    """Raw rows and what is expected of them."""

    columns: dict[str, list[Any]]
    """Column -> one Cell for each row, as read, before any encoding."""
    expected: dict[str, np.ndarray]
    """Answers in reference mode (f32, highest matmul precision): `probability f32[N, K]`, `prediction f32[N, T]`."""
    tolerance: dict[str, float]
    """`"backend/dtype"`, like `cpu/float32` -> the largest absolute difference that is accepted there."""


def golden_to_files(golden: Golden) -> tuple[bytes, bytes]:
    """Return `golden.json` and `golden.npz`; BundleError when the rows do not agree in number or cannot be kept."""
    counts = {f"column {name!r}": len(cells) for name, cells in golden.columns.items()}
    counts |= {f"expected {name!r}": len(values) for name, values in golden.expected.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise BundleError(f"golden rows: expected one number of rows, got {told}; give each row every value")
    arrays: tree.Arrays = {}
    columns = {
        name: [_to_json(cell, f"cells/{index}/{row}", arrays) for row, cell in enumerate(cells)]
        for index, (name, cells) in enumerate(golden.columns.items())
    }
    structure, expected = tree.flatten(dict(golden.expected), "expected")
    document = {"columns": columns, "expected": structure, "tolerance": golden.tolerance}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass") + b"\n", tree.save_arrays(arrays | expected)


def _to_json(cell: Any, name: str, arrays: tree.Arrays) -> Any:
    """Return a cell as JSON; bytes and pixels go to `arrays` under `name`."""
    match cell:
        case np.ndarray() if cell.dtype == np.uint8:
            arrays[name] = cell
            return {"pixels": name}
        case np.generic():
            return _to_json(cell.item(), name, arrays)
        case bytes():
            arrays[name] = np.frombuffer(cell, np.uint8)
            return {"file": name}
        case float() if not math.isfinite(cell):
            return {"number": str(cell)}
        case str() | bool() | int() | float() | None:
            return cell
        case _:
            raise BundleError(f"golden rows: expected text, numbers, bytes or u8 arrays, got {type(cell).__name__}")


def golden_from_files(document: bytes, archive: bytes, where: str) -> Golden:
    """Return the golden rows; BundleError naming `where` when the files hold something else."""
    found = parse_object(document, where)
    arrays = tree.load_arrays(archive, where)
    expected = {name: array for name, array in arrays.items() if not name.startswith("cells/")}
    try:
        columns = {name: [_from_json(cell, arrays) for cell in cells] for name, cells in found["columns"].items()}
        tolerance = {str(name): float(value) for name, value in found["tolerance"].items()}
        return Golden(columns, tree.unflatten(found["expected"], expected, where), tolerance)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{where}: no golden rows: {error!r}; restore it or retrain") from error


def _from_json(cell: Any, arrays: tree.Arrays) -> Cell:
    """Return a cell from its JSON."""
    match cell:
        case {"pixels": name}:
            return arrays[name]
        case {"file": name}:
            return arrays[name].tobytes()
        case {"number": text}:
            return float(text)
        case str() | bool() | int() | float() | None:
            return cell
        case _:
            raise ValueError(f"{str(cell)[:40]} is no cell")
