"""Registered models that nobody trained: honest golden rows, made in a moment, for tests of the server."""

import atexit
import functools
import tempfile
from pathlib import Path

import jax
import numpy as np

from mmjax.artifact.bundle import BundleContents, save_bundle
from mmjax.artifact.predictor import make_golden, make_predictor
from mmjax.artifact.registry import register
from mmjax.config import Architecture, Config, Data, Fusion, ImageData, Model, TableImages, TabularData
from mmjax.data.decode import encode_png
from mmjax.data.encode import encode
from mmjax.parts import States, build_parts
from mmjax.recipe import resolve
from mmjax.schema import Column, Columns, ImageSpec, Label, Schema, Target

NUMBERS = Schema(
    target=Target(column="kind", task="classification", classes=("a:b", "ü", "10")),
    columns=tuple(Column(name=f"x{i}", kind="numeric") for i in range(5)),
    missing_markers=("?", "-999.0"),
)
"""Nothing but numbers; the marker `-999.0` is a number too."""
PRICE = Schema(
    target=Target(column="price", task="regression", offset=1e6 / 3),
    columns=(Column(name="seconds", kind="numeric", offset=1.7e9), Column(name="size", kind="numeric")),
)
"""A regression whose first column and target lose an offset in f64."""
KINDS = Schema(
    target=Target(column="kind", task="classification", classes=("a", "b")),
    columns=(
        Column(name="size", kind="numeric"),
        Column(name="id", kind="identifier"),
        Column(name="colour", kind="categorical", vocabulary=("red", "gr\u00fcn", "1")),
        Column(name="flag", kind="boolean", vocabulary=("no", "yes")),
        Column(name="when", kind="datetime", datetime_format="iso", offset=19_700.0),
    ),
    missing_markers=("NA",),
)
"""Columns of every kind."""
TAGS = Schema(
    target=Target(
        column="urgent, bill",
        task="multilabel",
        classes=("urgent", "bill"),
        labels=(
            Label(column="urgent", negative="no", positive="yes"),
            Label(column="bill", negative="0", positive="1"),
        ),
    ),
    columns=tuple(Column(name=f"x{i}", kind="numeric") for i in range(2)),
)
"""Several labels."""
SHADES = Schema(
    target=Target(column="label", task="classification", classes=("dark", "light")),
    image=ImageSpec(height_px=8, width_px=8),
)
"""Images."""


HOMES = Schema(
    target=Target(column="price", task="regression", offset=1e6 / 3),
    columns=(
        Column(name="size", kind="numeric"),
        Column(name="front", kind="ignored"),
        Column(name="colour", kind="categorical", vocabulary=("red", "blue")),
        Column(name="back", kind="ignored"),
        Column(name="price", kind="ignored"),
    ),
    missing_markers=("NA",),
    image=ImageSpec(columns=("front", "back"), height_px=8, width_px=8),
)
"""Two images beside columns."""


def matrix(schema: Schema, rows: int, *, seed: int = 0) -> np.ndarray:
    """Numbers f32[rows, F] for a schema of nothing but numbers."""
    return np.random.default_rng(seed).normal(size=(rows, len(schema.features))).astype(np.float32)


def kinds_columns(rows: int) -> dict[str, list[object]]:
    """Cells by column for KINDS, with gaps and unknown ones."""
    rng = np.random.default_rng(rows)
    return {
        "size": [None if rng.random() < 0.2 else float(np.float32(rng.normal())) for _ in range(rows)],
        "colour": [("red", "gr\u00fcn", "1", "mauve", "")[rng.integers(5)] for _ in range(rows)],
        "flag": [("yes", "No", "NA")[rng.integers(3)] for _ in range(rows)],
        "when": [f"2024-{rng.integers(1, 13):02d}-11" for _ in range(rows)],
    }


def picture(level: int, *, height: int = 20, width: int = 24) -> np.ndarray:
    """Pixels u8[height, width, 3] about as bright as `level`."""
    return np.random.default_rng(level).integers(level, level + 60, (height, width, 3), dtype=np.uint8)


def columns_for(schema: Schema) -> Columns:
    """A few rows of a schema of this file."""
    if schema.image is not None:
        cells = np.empty(4, dtype=object)
        cells[:] = [encode_png(picture(level)) for level in (5, 60, 120, 180)]
        if schema != HOMES:
            return {schema.image.columns[0]: cells}
        sizes, colours = np.array([1.5, None, 3, -2], object), np.array(["red", "blue", None, "mauve"], object)
        back = np.array([cells[2], None, cells[0], cells[1]], object)
        return {"size": sizes, "front": cells, "colour": colours, "back": back}
    if schema == KINDS:
        return {name: np.array(cells, dtype=object) for name, cells in kinds_columns(4).items()}
    values = matrix(schema, 4) + np.array([column.offset for column in schema.features])
    return {column.name: values[:, i] for i, column in enumerate(schema.features)}


@functools.cache
def scratch() -> Path:
    """A folder for what is made once for a process; gone when it ends."""
    folder = tempfile.TemporaryDirectory(prefix="mmjax-tests-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def add_model(root: Path, name: str, schema: Schema, *, seed: int = 0) -> None:
    """Register an untrained model of this schema in the registry `root` as the next version of `name`."""
    register(root, name, _bundle(name, schema, seed), run_id=f"{name}-{seed}")


@functools.cache
def _bundle(name: str, schema: Schema, seed: int) -> Path:
    """The folder of the model's bundle."""
    if schema == HOMES and schema.image is not None:
        images = TableImages(columns=schema.image.columns, image_size=(8, 8))
        data = Data(tabular=TabularData(path="table.csv", target_column="price", images=images))
        model = Model(architecture=Architecture(stages=(1,), width=4), fusion=Fusion(width=8, hidden_layers=(8,)))
    elif schema.image is None:
        target = schema.target.columns if schema.target.labels else schema.target.column
        data = Data(tabular=TabularData(path="table.csv", target_column=target))
        model = Model(name="mlp", architecture=Architecture(hidden_layers=(8,)))
    else:
        data, model = Data(image=ImageData(path="images")), Model(architecture=Architecture(stages=(1,), width=4))
    # Not in bfloat16: such programs are compiled anew at each start of a server
    config = Config(name=name, data=data, model=model, precision="float32")
    config, _ = resolve(config, schema, train_rows=4, validation_rows=0)
    columns = columns_for(schema)
    batch, parts = encode(schema, columns), build_parts(config, schema)
    transform = parts.transform.fit(batch)
    variables = jax.jit(lambda key, batch: parts.model.init(key, parts.transform.apply(transform, batch)))(
        jax.random.key(seed), batch
    )
    labels = np.linspace(0, 1, 4, dtype=np.float32)[:, None] if schema.target.task == "regression" else np.arange(4) % 2
    states = States(variables, transform, parts.output.fit(labels))
    golden = make_golden(make_predictor(config, schema, states), columns)
    kept = {"model": jax.tree.map(np.asarray, variables), "transform": states.transform, "output": states.output}
    folder = Path(tempfile.mkdtemp(dir=scratch())) / name
    save_bundle(folder, BundleContents(config, schema, kept, {"test": {"accuracy": 0.5}}, golden, {}, "", {}))
    return folder


def registry_of_all(base: Path) -> Path:
    """The registry below `base`, a folder of the test session, with a model of each schema, `price` in two versions."""
    root = base / "untrained" / "registry"
    if not root.exists():
        root.parent.mkdir()
        for name, schema in (("numbers", NUMBERS), ("kinds", KINDS), ("shades", SHADES), ("price", PRICE)):
            add_model(root, name, schema)
        add_model(root, "price", PRICE, seed=1)
    return root
