"""Makes `tests/fixtures/bundle_v1`, the bundle of format 1 that every later mmjax must load.

    python tests/make_bundle_fixture.py FOLDER

Run it once for each new format, into a folder of its own, and commit what it makes; never remake an old one.
"""

import sys
from pathlib import Path

import ml_dtypes
import numpy as np

from mmjax.artifact.bundle import BundleContents, Golden, save_bundle
from mmjax.config import Architecture, Config, Data, Model, TabularData, Training
from mmjax.schema import Column, ImageSpec, Schema, Target


def example_contents() -> BundleContents:
    """Contents with every kind of leaf and cell that a bundle can hold."""
    return BundleContents(
        config=Config(
            name="flowers",
            data=Data(tabular=TabularData(path="flowers.csv", target_column="species")),
            model=Model(architecture=Architecture(hidden_layers=(8, 4))),
            training=Training(gradient_clip_norm=None, ema_decay=None),
            precision="float32",
        ),
        schema=Schema(
            target=Target(column="species", task="classification", classes=("10", "9", "Iris ü")),
            columns=(
                Column(name="width", kind="numeric", offset=1e9),
                Column(name="colour", kind="categorical", vocabulary=("blue", "001")),
            ),
            missing_markers=("?",),
            image=ImageSpec(height_px=32, width_px=48),
        ),
        states={
            "transform": ({"mean": np.array([1.5, -2.0]), "codes": np.array([3, 4], np.int32)}, None, ()),
            "model": {
                "params": {
                    "Dense_0": {
                        "kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
                        "bias": np.array([0.5, 1.5], ml_dtypes.bfloat16),
                    }
                },
                "batch_stats": {},
            },
            "output": [np.array(1.25, np.float32), np.array([True, False])],
        },
        metrics={"test": {"accuracy": 0.96, "roc_auc": float("nan"), "mape": float("inf")}, "train": {"accuracy": 1.0}},
        golden=Golden(
            columns={
                "width": ["1.0", "?"],
                "colour": ["blue", ""],
                "elapsed": [1.5, float("nan")],
                "photo": [b"\xff\xd8 no real jpeg", np.arange(12, dtype=np.uint8).reshape(2, 2, 3)],
                "note": [None, "naïve"],
            },
            expected={
                "probability": np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], np.float32),
                "prediction": np.array([2, 0], np.int32),
            },
            tolerance={"cpu/float32": 1e-6, "gpu/bfloat16": 0.02},
        ),
        report={"confusion": [[3, 0], [1, 2]], "loss": None},
        card="# flowers\n\nNaïve but honest.\n",
        provenance={"run_id": "20250101-120000", "host": "example", "seconds": {"train": 1.5}},
    )


if __name__ == "__main__":
    save_bundle(Path(sys.argv[1]), example_contents())
