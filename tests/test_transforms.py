"""Laws for every transform of tables, by one hypothesis battery; oracles from NumPy and scikit-learn."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from mmjax.config import Augmentation, Config, Data, ImageData, Preprocessing, TabularData
from mmjax.schema import Column, ImageSpec, Schema, Target
from mmjax.transforms.base import chain
from mmjax.transforms.build import build_transform, table_transform
from mmjax.transforms.tabular import cyclic_dates, impute, min_max, one_hot, ordinal, robust_scale, standardize

F, CARDINALITIES = 4, (3, 2, 6)
HUGE = np.finfo(np.float32).max
COLUMNS = (
    Column(name="age", kind="numeric", offset=40.0),
    Column(name="paid", kind="numeric"),
    Column(name="city", kind="categorical", vocabulary=("a", "b")),
    Column(name="is_new", kind="boolean", vocabulary=("no", "yes")),
    Column(name="when", kind="datetime", offset=20_000.0),
)
SCHEMA = Schema(target=Target(column="y", task="regression"), columns=COLUMNS)

TRANSFORMS = {
    "impute mean": impute("mean"),
    "impute median": impute("median"),
    "impute mode": impute("mode"),
    "impute constant": impute("constant", (1.0, -2.0, 0.0, 7.0)),
    "cyclic_dates": cyclic_dates((1, 3)),
    "cyclic_dates of all": cyclic_dates((0, 1, 2, 3)),
    "standardize": standardize(),
    "min_max": min_max(),
    "robust_scale": robust_scale(),
    "one_hot": one_hot(CARDINALITIES),
    "ordinal": ordinal(CARDINALITIES),
    "chain": chain(cyclic_dates((3,)), impute("median"), robust_scale(), one_hot(CARDINALITIES)),
    "chain standard": chain(impute("mean"), standardize(), ordinal(CARDINALITIES)),
    "chain min_max": chain(impute("mode"), min_max()),
}
KEEPS_MISSING = ("cyclic_dates", "standardize", "min_max", "robust_scale")
every_transform = pytest.mark.parametrize("name", TRANSFORMS)
JITTED = {name: jax.jit(transform.apply) for name, transform in TRANSFORMS.items()}

special = st.sampled_from([0.0, -0.0, 1.0, np.nan, np.inf, -np.inf, HUGE, -HUGE, 1e-30, 1e38])
number = st.one_of(special, st.floats(width=32, allow_subnormal=False))


@st.composite
def batches(draw, rows=6):
    """Any f32 as a number, any i32 as a code; a dense block is there or not; other keys ride along."""
    numeric = draw(st.lists(st.lists(number, min_size=F, max_size=F), min_size=rows, max_size=rows))
    codes = draw(st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(0, 5), min_size=rows * 3, max_size=rows * 3))
    batch = {
        "numeric": np.array(numeric, np.float32),
        "category": np.array(codes, np.int32).reshape(rows, 3),
        "label": np.arange(rows, dtype=np.int32),
        "weight": np.ones(rows, np.float32),
    }
    return batch | ({"dense": np.ones((rows, 2), np.float32)} if draw(st.booleans()) else {})


def assert_equal(one, other, **tolerance):
    assert set(one) == set(other)
    for key in one:
        assert np.asarray(one[key]).dtype == np.asarray(other[key]).dtype, key
        np.testing.assert_allclose(np.asarray(one[key]), np.asarray(other[key]), err_msg=key, **tolerance)


def copied(batch):
    return {key: values.copy() for key, values in batch.items()}


@every_transform
@settings(max_examples=25, deadline=None)
@given(batches(), batches(rows=3))
def test_laws(name, train, other):
    transform = TRANSFORMS[name]
    before, before_train = copied(other), copied(train)
    state = transform.fit(train)
    made = transform.apply(state, other)
    assert_equal(before, other)
    assert_equal(before_train, train)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state)), "fitted on the host"

    changed = {key for key in made if key not in other or made[key] is not other[key]}
    assert changed <= ({"dense"} if name in ("one_hot", "ordinal") else {"numeric", "dense"})
    for key in changed:
        values = np.asarray(made[key])
        assert values.dtype == np.float32
        assert not np.isinf(values).any()
        assert not np.isnan(values).any() or (key == "numeric" and name in KEEPS_MISSING)
    if "dense" in other:
        np.testing.assert_array_equal(made["dense"][:, :2], other["dense"])

    jitted = JITTED[name](jax.tree.map(jnp.asarray, state), other)
    assert_equal(made, jitted, rtol=2e-5, atol=2e-5)

    padded = {key: np.concatenate([values, values[:1], values[:1]]) for key, values in other.items()}
    alone = transform.apply(state, padded)
    assert_equal(made, {key: values[:3] for key, values in alone.items()}, rtol=1e-6, atol=1e-6)


@every_transform
def test_state_survives_save_and_load_as_arrays(name):
    random = np.random.default_rng(0)
    train = {"numeric": random.normal(size=(20, F)).astype(np.float32), "category": np.ones((20, 3), np.int32)}
    leaves, structure = jax.tree.flatten(TRANSFORMS[name].fit(train))
    file = io.BytesIO()
    np.savez(file, *leaves)
    file.seek(0)
    with np.load(file, allow_pickle=False) as loaded:
        state = jax.tree.unflatten(structure, [loaded[f"arr_{i}"] for i in range(len(leaves))])
    apply = TRANSFORMS[name].apply
    assert_equal(apply(TRANSFORMS[name].fit(train), train), apply(state, train))


@every_transform
def test_absent_fields_stay_absent(name):
    batch = {"label": np.zeros(3, np.int32)}
    transform = TRANSFORMS[name]
    if name.startswith("cyclic") or name == "chain":
        return  # dates that are named must be there
    assert set(transform.apply(transform.fit(batch), batch)) == {"label"}


@pytest.fixture
def gappy():
    random = np.random.default_rng(1)
    numeric = random.integers(0, 5, (60, 3)).astype(np.float32)
    numeric[random.random((60, 3)) < 0.3] = np.nan
    return {"numeric": numeric}


@pytest.mark.parametrize(
    ("strategy", "name"), [("mean", "mean"), ("median", "median"), ("mode", "most_frequent"), ("constant", "constant")]
)
def test_impute_equals_scikit_learn(gappy, strategy, name):
    transform = impute(strategy, 3.5)
    made = transform.apply(transform.fit(gappy), gappy)
    expected = SimpleImputer(strategy=name, fill_value=3.5).fit_transform(gappy["numeric"].astype(np.float64))
    np.testing.assert_allclose(made["numeric"], expected, rtol=1e-6)
    np.testing.assert_array_equal(made["dense"], np.isnan(gappy["numeric"]))


def test_a_column_without_numbers_is_filled_with_0():
    batch = {"numeric": np.full((4, 1), np.nan, np.float32)}
    for strategy in ("mean", "median", "mode"):
        transform = impute(strategy)
        made = transform.apply(transform.fit(batch), batch)
        assert not made["numeric"].any()
        assert made["dense"].all()


@pytest.mark.parametrize(("transform", "oracle"), [(standardize(), StandardScaler()), (min_max(), MinMaxScaler())])
def test_scalers_equal_scikit_learn_and_keep_nan(gappy, transform, oracle):
    made = transform.apply(transform.fit(gappy), gappy)["numeric"]
    np.testing.assert_allclose(made, oracle.fit_transform(gappy["numeric"].astype(np.float64)), rtol=1e-5, atol=1e-6)


def test_robust_scale_is_realmlps():
    random = np.random.default_rng(0)
    spread, spike = random.normal(5, 3, 200), np.zeros(200)
    spike[:10] = random.normal(0, 1, 10)
    x = np.stack([spread, spike, np.full(200, 0.1)], axis=1).astype(np.float32).astype(np.float64)
    transform = robust_scale()
    batch = {"numeric": x.astype(np.float32)}
    made = transform.apply(transform.fit(batch), batch)["numeric"]
    low, high = np.quantile(x, 0.25, axis=0), np.quantile(x, 0.75, axis=0)
    factor = np.array([1 / (high[0] - low[0]), 2 / np.ptp(x[:, 1]), 0.0])
    scaled = factor * (x - np.median(x, axis=0))
    np.testing.assert_allclose(made, scaled / np.sqrt(1 + (scaled / 3) ** 2), rtol=1e-5, atol=1e-6)
    assert np.abs(made).max() < 3


@pytest.mark.parametrize("transform", [standardize(), min_max(), robust_scale()])
def test_extremes_do_not_overflow_and_stay_apart(transform):
    batch = {"numeric": np.array([[-HUGE], [0.0], [HUGE]], np.float32)}
    made = transform.apply(transform.fit(batch), batch)["numeric"][:, 0]
    assert np.isfinite(made).all()
    assert (np.diff(made) > 0.3).all()


def test_cyclic_dates():
    batch = {"numeric": np.array([[7.0, 0.25, 0.5], [8.0, 0.0, np.nan]], np.float32)}
    made = cyclic_dates((1, 2)).apply((), batch)
    np.testing.assert_array_equal(made["numeric"], [[7.0], [8.0]])
    np.testing.assert_allclose(made["dense"], [[1, 0, 0, -1], [0, 0, 1, 0]], atol=1e-6)


def test_one_hot_and_ordinal():
    batch = {"category": np.array([[0, 1], [2, 0], [1, 99]], np.int32)}
    hot = one_hot((3, 2)).apply((), batch)
    np.testing.assert_array_equal(hot["dense"], [[1, 0, 0, 0, 1], [0, 0, 1, 1, 0], [0, 1, 0, 1, 0]])
    codes = ordinal((3, 2)).apply((), batch)
    np.testing.assert_array_equal(codes["dense"], [[0, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 1]])
    assert set(hot) == set(codes) == {"dense"}


@pytest.fixture
def table():
    random = np.random.default_rng(0)
    numeric = random.uniform(0, 1, (50, 6)).astype(np.float32)
    numeric[::7, 0] = np.nan
    numeric[::5, 2:] = np.nan
    return {"numeric": numeric, "category": random.integers(0, 3, (50, 2)).astype(np.int32)}


@pytest.mark.parametrize(("encoding", "width"), [("embedding", 0), ("onehot", 6), ("ordinal", 4)])
@pytest.mark.parametrize("scaler", ["standard", "minmax", "robust"])
@pytest.mark.parametrize("normalize", [True, False])
def test_build_table(table, encoding, width, scaler, normalize):
    preprocessing = Preprocessing(
        numeric_bins=0, scaler=scaler, handle_missing="median", categorical_encoding=encoding, normalize=normalize
    )
    transform = table_transform(preprocessing, SCHEMA)
    made = transform.apply(transform.fit(table), table)
    assert made["numeric"].shape == (50, 3)  # age, paid, when.elapsed_days
    assert made["dense"].shape == (50, 6 + 3 + width)  # three cycles, three indicators
    assert ("category" in made) == (encoding == "embedding")
    if not normalize:
        np.testing.assert_array_equal(made["numeric"][:, 1], table["numeric"][:, 1])


def test_a_constant_fill_is_in_the_units_of_the_file():
    preprocessing = Preprocessing(
        numeric_bins=0,
        scaler="robust",
        handle_missing="constant",
        fill_value=18.0,
        categorical_encoding="embedding",
        normalize=False,
    )
    transform = table_transform(preprocessing, SCHEMA)
    batch = {"numeric": np.full((2, 6), np.nan, np.float32), "category": np.zeros((2, 2), np.int32)}
    made = transform.apply(transform.fit(batch), batch)
    np.testing.assert_array_equal(made["numeric"][0], [18.0 - 40.0, 18.0, 0.0])


def test_build_images():
    target = Target(column="label", task="classification", classes=("a", "b"))
    schema = Schema(target=target, image=ImageSpec(height_px=8, width_px=8))
    image = ImageData(path="x", augmentation=Augmentation(normalize=False))
    transform = build_transform(Config(name="x", data=Data(image=image)), schema)
    batch = {"image": np.full((2, 1, 8, 8, 3), 255, np.uint8), "image_present": np.ones((2, 1), np.float32)}
    made = transform.apply(transform.fit(batch), batch)
    np.testing.assert_allclose(made["image"], 1.0, rtol=1e-6)


def test_build_of_a_config_without_tables_or_images_of_numbers_only():
    columns = (Column(name="x", kind="numeric"),)
    schema = Schema(target=Target(column="y", task="regression"), columns=columns)
    preprocessing = Preprocessing(
        numeric_bins=0, scaler="standard", handle_missing="mean", categorical_encoding="onehot"
    )
    table = TabularData(path="x.csv", target_column="y", preprocessing=preprocessing)
    transform = build_transform(Config(name="x", data=Data(tabular=table)), schema)
    batch = {"numeric": np.array([[1.0], [3.0]], np.float32)}
    made = transform.apply(transform.fit(batch), batch)
    np.testing.assert_allclose(made["numeric"], [[-1.0], [1.0]])
    assert set(made) == {"numeric", "dense"}
