"""The models that `serving.py` serves, registered untrained: their weights decide nothing about their speed.

`python serving_models.py REGISTRY` makes three: `twenty` and `fifty` (so many numeric columns; hidden layers [64, 64]
with SiLU, 2 classes) and `pictures` (ResNet-18 for images of 64 x 64 pixels, 10 classes; in bfloat16 where the CPU has
it, as training decides).
"""

import sys
from pathlib import Path

import jax
import numpy as np

from mmjax.artifact.bundle import BundleContents, save_bundle
from mmjax.artifact.predictor import make_golden, make_predictor
from mmjax.artifact.registry import register
from mmjax.backend import fast_bfloat16
from mmjax.config import Architecture, Config, Data, ImageData, Model, Preprocessing, TabularData
from mmjax.data.decode import encode_png
from mmjax.data.encode import encode
from mmjax.parts import States, build_parts
from mmjax.recipe import resolve
from mmjax.schema import Column, Columns, ImageSpec, Schema, Target

HIDDEN = (64, 64)
SIZE_PX = 64
GOLDEN_ROWS = 16


def register_all(registry: Path) -> None:
    """Register the three models."""
    for name, columns in (("twenty", 20), ("fifty", 50)):
        schema = Schema(
            target=Target(column="y", task="classification", classes=("a", "b")),
            columns=tuple(Column(name=f"c{i}", kind="numeric") for i in range(columns)),
        )
        architecture = Architecture(
            hidden_layers=HIDDEN, activation="silu", dropout=0.0, normalization="none", residual=False
        )
        plain = Preprocessing(numeric_bins=0)  # the network of the peers, with nothing before it but standardising
        data = Data(tabular=TabularData(path="table.csv", target_column="y", preprocessing=plain))
        rows = matrix(GOLDEN_ROWS, columns)
        cells = {f"c{i}": rows[:, i].astype(float) for i in range(columns)}
        model = Model(name="mlp", architecture=architecture)
        add_untrained(registry, Config(name=name, data=data, model=model), schema, cells)
    schema = Schema(
        target=Target(column="label", task="classification", classes=tuple(f"kind {i}" for i in range(10))),
        image=ImageSpec(height_px=SIZE_PX, width_px=SIZE_PX),
    )
    config = Config(name="pictures", data=Data(image=ImageData(path="images")), model=Model(name="resnet18"))
    add_untrained(registry, config, schema, image_cells(GOLDEN_ROWS))


def add_untrained(registry: Path, config: Config, schema: Schema, columns: Columns) -> None:
    """Register an untrained model of this schema, with `columns` as its golden rows."""
    fast = bool(schema.image) and fast_bfloat16()  # as training decides
    config, _ = resolve(config, schema, train_rows=300, validation_rows=0, fast_bfloat16=fast)
    batch, parts = encode(schema, columns), build_parts(config, schema)
    transform = parts.transform.fit(batch)
    variables = jax.jit(lambda key, batch: parts.model.init(key, parts.transform.apply(transform, batch)))(
        jax.random.key(0), batch
    )
    states = States(variables, transform, parts.output.fit(np.arange(GOLDEN_ROWS) % len(schema.target.classes)))
    golden = make_golden(make_predictor(config, schema, states), columns)
    kept = {"model": jax.tree.map(np.asarray, variables), "transform": states.transform, "output": states.output}
    folder = registry.parent / f"bundle-{config.name}"
    save_bundle(folder, BundleContents(config, schema, kept, {"test": {"accuracy": 0.5}}, golden, {}, "", {}))
    register(registry, config.name, folder, run_id=f"untrained-{config.name}")


def matrix(rows: int, columns: int) -> np.ndarray:
    """Return numbers f32[rows, columns] of four decimals."""
    return np.random.default_rng(rows).normal(size=(rows, columns)).round(4).astype(np.float32)


def image_cells(count: int) -> Columns:
    """Return a column of PNG files."""
    cells = np.empty(count, dtype=object)
    cells[:] = [png(number) for number in range(count)]
    return {"image": cells}


def png(number: int) -> bytes:
    """Return a picture as a PNG file: waves of many lengths and a little noise, as in photographs."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:SIZE_PX, 0:SIZE_PX] / SIZE_PX
    pixels = rng.normal(0, 3, (SIZE_PX, SIZE_PX, 3)) + rng.uniform(60, 190, 3)
    for _ in range(6):
        across, down, phase = rng.uniform(-4, 4), rng.uniform(-4, 4), rng.uniform(0, 2 * np.pi)
        pixels += np.sin(2 * np.pi * (across * x + down * y) + phase)[..., None] * rng.uniform(-25, 25, 3)
    return encode_png(pixels.clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    register_all(Path(sys.argv[1]))
    print("{}")
