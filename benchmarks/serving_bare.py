"""How long a model's compiled program takes without a server around it: what the server's figures are held against.

JSON on standard input: {"registry", "model", "rows", "seconds"}. It prints the median milliseconds of a call, host to
host, as the server makes it. A process of its own, so that XLA has the same threads as in a server.
"""

import json
import sys
import time
from typing import Any

import numpy as np
from serving_models import image_cells, matrix

from mmjax.backend import configure
from mmjax.data.encode import encode
from mmjax.schema import Batch, Schema
from mmjax.serving.engine import load_models, make_engine, stop, warm


def bare(asked: dict[str, Any]) -> dict[str, float]:
    """Return the milliseconds of a call, and how often it was timed."""
    configure(overlap=False)
    engine = make_engine(load_models([asked["model"]], asked["registry"], max_batch=asked["rows"]), queue=1)
    warm(engine)
    (served,) = engine.models
    assert served.batcher is not None
    program, batch = served.batcher.programs[asked["rows"]], rows_of(served.predictor.schema, asked["rows"])
    times: list[float] = []
    warmed = time.perf_counter() + asked["seconds"] / 4
    ends = warmed + asked["seconds"]
    while (began := time.perf_counter()) < ends:
        program(batch)
        if began >= warmed:
            times.append(1e3 * (time.perf_counter() - began))
    stop(engine)
    return {"ms": float(np.median(times)), "n": len(times)}


def rows_of(schema: Schema, rows: int) -> Batch:
    """Return a host Batch of different rows or images."""
    if schema.image is not None:
        return encode(schema, image_cells(rows))
    values = matrix(rows, len(schema.features)).astype(float)
    return encode(schema, {column.name: values[:, i] for i, column in enumerate(schema.features)})


if __name__ == "__main__":
    print(json.dumps(bare(json.load(sys.stdin))))
