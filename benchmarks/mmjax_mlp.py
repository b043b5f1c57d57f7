"""mmjax's side of `tabular_speed.py`: trains each case through the functions that `mmjax.fit` calls, and times it.

JSON on standard input: {"table", "target", "threads", "batch_size", "learning_rate", "weight_decay", "cases":
[{"hidden_layers", "dropout", "epochs"}], "export": path}. JSON on standard output, one object a case. What
its network sees (imputed, scaled, coded) is written to `export` as `.npz`, for the peer.
"""

import json
import sys
import time
from typing import Any

import jax
import numpy as np

from mmjax.backend import configure, versions
from mmjax.config import Architecture, Config, Data, Model, TabularData, Training
from mmjax.data.pipeline import take
from mmjax.data.prepare import Prepared, prepare
from mmjax.parts import Parts, build_parts
from mmjax.recipe import resolve
from mmjax.training.event_types import EpochEnded, Event
from mmjax.training.events import train_events, watch
from mmjax.training.scoring import inputs_of
from mmjax.training.setup import Setup, set_up


def make_config(request: dict[str, Any], case: dict[str, Any]) -> Config:
    """Return the config of one case: all rows to train on, a constant learning rate, no early stopping."""
    return Config(
        name="tabular-speed",
        threads=request["threads"],
        device="cpu",
        data=Data(
            tabular=TabularData(
                path=request["table"],
                target_column=request["target"],
                train_split=1.0,
                validation_split=0.0,
                test_split=0.0,
            )
        ),
        model=Model(
            name="mlp",
            architecture=Architecture(
                hidden_layers=tuple(case["hidden_layers"]),
                dropout=case["dropout"],
                activation="silu",
                normalization="none",
                residual=False,
            ),
        ),
        training=Training(
            epochs=case["epochs"],
            batch_size=request["batch_size"],
            optimizer="adamw",
            learning_rate=request["learning_rate"],
            weight_decay=request["weight_decay"],
            schedule="constant",
        ),
    )


def timed(setup: Setup, batch_size: int) -> dict[str, Any]:
    """Return samples/s from the end of the first epoch (compiling, warming up) to the end of the last."""
    ends: list[float] = []
    losses: list[float] = []

    def watcher(event: Event) -> None:
        if isinstance(event, EpochEnded):  # its metrics are numbers on the host: the epoch's work is done
            ends.append(time.perf_counter())
            losses.append(event.metrics["train_loss"])

    started = time.perf_counter()
    result = watch(train_events(setup.state, setup.task, setup.plan), (watcher,), lambda snapshot: ())
    jax.block_until_ready(result.variables)
    rows = len(setup.task.data["label"]) // batch_size * batch_size * (len(ends) - 1)
    return {
        "samples_per_second": rows / (ends[-1] - ends[0]),
        "first_epoch_seconds": ends[0] - started,
        "losses": losses,
        "parameters": setup.task.parameters,
    }


def export(setup: Setup, prepared: Prepared, parts: Parts, path: str) -> None:
    """Write the training rows as the network sees them, the embedding table's shape and the number of outputs."""
    train = take(prepared.batch, prepared.split.train)
    batch = parts.transform.apply(jax.tree.map(np.asarray, setup.fitted[0]), inputs_of(train))
    first_rows = np.cumsum((0, *prepared.schema.cardinalities[:-1]))
    np.savez(
        path,
        dense=np.concatenate([batch["numeric"], batch["dense"]], axis=1),
        category=batch["category"] + first_rows[None, :],
        label=train["label"].astype(np.int64),
        embedding_shape=setup.state.params["embedding"].shape,
        outputs=parts.output.size,
    )


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    configs = [make_config(request, case) for case in request["cases"]]
    configure(device="cpu", threads=request["threads"])
    prepared = prepare(configs[0])
    runs = []
    for config, case in zip(configs, request["cases"], strict=True):
        config, _ = resolve(config, prepared.schema, train_rows=len(prepared.split.train), validation_rows=0)
        parts = build_parts(config, prepared.schema)
        setup = set_up(config, prepared, parts)
        if not runs:
            export(setup, prepared, parts, request["export"])
        runs.append({"hidden_layers": case["hidden_layers"], **timed(setup, request["batch_size"])})
    print(json.dumps({"runs": runs, "versions": versions()}))


if __name__ == "__main__":
    main()
