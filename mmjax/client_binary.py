"""Large tables of numbers as the Open Inference Protocol's raw tensors: no number becomes a text on the way."""

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from mmjax.client_bodies import MOST_ROWS, Request, Rows, infinite
from mmjax.client_http import Reply, ServerError

WORTH_CELLS = 2048
"""Smaller tables are as fast as JSON."""
HEADER_LENGTH = "Inference-Header-Content-Length"
DTYPES = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8"}


def as_matrix(rows: Rows, description: Mapping[str, Any] | None) -> np.ndarray | None:
    """Return rows as f32[N, F] or f64[N, F], in the order of features; None where they have to go as JSON.

    That is when they are few, are no arrays of numbers, or the model has other columns than numeric ones.
    """
    if description is None or description["schema"]["image"] is not None:
        return None
    kinds = {column["name"]: column["kind"] for column in description["schema"]["columns"]}
    features = description["features"]
    if any(kinds[name] != "numeric" for name in features):
        return None
    if isinstance(rows, Mapping):
        if not (set(features) <= set(rows) <= {*kinds, description["target"]}):
            return None
        columns = [rows[name] for name in features]
    elif isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.shape[1] == len(features):
        columns = list(rows.T)
    else:
        return None
    numbers = [cells for cells in columns if isinstance(cells, np.ndarray) and cells.dtype.kind in "iuf"]
    if any(isinstance(cells, np.ma.MaskedArray) for cells in numbers):  # raw bytes have no mask
        return None
    if len(numbers) < len(columns) or len({cells.shape for cells in numbers}) > 1:
        return None
    if sum(map(len, numbers)) < WORTH_CELLS:
        return None
    for name, cells in zip(features, numbers, strict=True):
        if cells.dtype.kind == "f" and np.isinf(cells).any():
            raise infinite(f"column '{name}', cell {int(np.flatnonzero(np.isinf(cells))[0]) + 1}")
    short = all(cells.dtype == np.float32 for cells in numbers)
    return np.stack(numbers, axis=1).astype("<f4" if short else "<f8", copy=False)


def binary_requests(matrix: np.ndarray, description: Mapping[str, Any]) -> Iterator[Request]:
    """Yield the requests for the rows of a matrix."""
    version = description["version"]
    path = f"/v2/models/{quote(description['name'], safe='')}" + ("" if version is None else f"/versions/{version}")
    names = ("predictions",) if description["task"] == "regression" else ("probabilities", "predictions")
    names += ("uncertainty",) if description.get("uncertainty") else ()
    for start in range(0, len(matrix), MOST_ROWS):
        part = np.ascontiguousarray(matrix[start : start + MOST_ROWS])
        raw = part.tobytes()
        tensor = {"name": "features", "shape": part.shape, "datatype": "FP32" if part.itemsize == 4 else "FP64"}
        asked = {
            "inputs": [tensor | {"parameters": {"binary_data_size": len(raw)}}],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in names],
        }
        head = json.dumps(asked).encode()
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
        yield Request(f"{path}/infer", head + raw, headers, len(part))


def read_binary(reply: Reply) -> dict[str, Any]:
    """Return what `/predict/tabular` would tell, labels left out; ServerError where the reply is none."""
    try:
        length = int(reply.headers[HEADER_LENGTH.lower()])
        head, at, found = json.loads(reply.body[:length]), length, {}
        for output in head["outputs"]:
            size = output["parameters"]["binary_data_size"]
            raw = np.frombuffer(reply.body[at : at + size], DTYPES[output["datatype"]])
            found[output["name"]] = raw.reshape(output["shape"])
            at += size
        timing = dict(
            part.strip().split(";dur=") for part in reply.headers.get("server-timing", "infer;dur=0").split(",")
        )
        version = head.get("model_version")
        return {
            "predictions": found["predictions"],
            "probabilities": found.get("probabilities"),
            "uncertainty": found.get("uncertainty"),
            "inference_time_ms": float(timing["infer"]),
            "model": {"name": head["model_name"], "version": None if version is None else int(version)},
            "request_id": reply.headers.get("x-request-id", reply.request_id),
        }
    except (KeyError, ValueError, TypeError) as error:
        told = f"expected tensors of the Open Inference Protocol, got something else: {error}"
        raise ServerError(
            reply.where, told, status=reply.status, reason="not-mmjax", request_id=reply.request_id
        ) from error
