"""State dicts of torchvision and timm give the logits that PyTorch gives; anything else in the file is an error.

The logits in `fixtures/pretrained_logits.json` are of PyTorch twins, by `benchmarks/pretrained_parity.py --golden`; the
weights are made again here from their seed (`benchmarks/seeded_weights.py`).
"""

import hashlib
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import Architecture, ModelName
from mmjax.config import Model as ModelConfig
from mmjax.errors import DataError
from mmjax.models.build import build_model
from mmjax.models.pools import average_pool_2x2
from mmjax.models.pretrained import PREPROCESSING, preprocessing_of, source_shapes, with_state_dict
from mmjax.models.state_dict import load_state_dict
from mmjax.schema import Schema, Target
from tests.doors import REPOSITORY

GOLDEN = json.loads((REPOSITORY / "tests" / "fixtures" / "pretrained_logits.json").read_text())
CLASSES, SEED = GOLDEN["classes"], GOLDEN["seed"]
SCHEMA = Schema(target=Target(column="y", task="classification", classes=("a", "b")))


def seeded() -> Any:
    """The benchmark's module: benchmarks are scripts, not a package."""
    spec = importlib.util.spec_from_file_location("seeded_weights", REPOSITORY / "benchmarks" / "seeded_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SEEDED = seeded()


@cache
def network(name: ModelName, outputs: int = CLASSES) -> tuple[Any, Any]:
    """The Model and the shapes of its variables."""
    model = build_model(ModelConfig(name=name, architecture=Architecture(stem="large")), SCHEMA, outputs=outputs)
    image = jax.ShapeDtypeStruct((2, 1, 32, 32, 3), np.float32)
    return model, jax.eval_shape(model.init, jax.random.key(0), {"image": image})


def state_of(name: ModelName, *, timm: bool = False) -> dict[str, np.ndarray]:
    return SEEDED.seeded_state(source_shapes(name, network(name)[1], timm=timm), SEED, SEEDED.gain_of(name))


NAMED = ("resnet18", "resnet50", "resnet18d", "resnet50d", "efficientnet_b0", "tf_efficientnet_b0", "efficientnet_b4")
"""The rest are compared by the benchmark: tracing all of them would take half a minute."""


@pytest.mark.parametrize(
    "key", [key for key in GOLDEN["networks"] if key.endswith(tuple(f"/{name}" for name in NAMED))]
)
def test_names_and_shapes_are_those_of_the_source(key: str) -> None:
    source, _, name = key.partition("/")
    shapes = source_shapes(name, network(name)[1], timm=source == "timm")  # pyright: ignore[reportArgumentType]
    lines = sorted(f"{name} {list(shape)}" for name, shape in shapes.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == GOLDEN["networks"][key]["names"]


@pytest.mark.parametrize(
    ("key", "size"),
    [
        ("torchvision/resnet18", (97, 80)),
        ("timm/resnet18d", (97, 80)),
        ("torchvision/efficientnet_b0", (64, 64)),
        ("timm/tf_efficientnet_b0", (97, 80)),
    ],
)
def test_logits_are_pytorchs(key: str, size: tuple[int, int], tmp_path: Path) -> None:
    source, _, name = key.partition("/")
    model, variables = network(name)  # pyright: ignore[reportArgumentType]
    np.savez(tmp_path / "w.npz", **state_of(name, timm=source == "timm"))  # pyright: ignore[reportArgumentType]
    loaded = with_state_dict(name, load_state_dict(tmp_path / "w.npz"), variables, "w.npz")  # pyright: ignore[reportArgumentType]
    assert f"by the names of {'torchvision' if source == 'torchvision' else 'timm'}" in loaded.note
    image = SEEDED.seeded_images(*size, SEED)[:, None]
    logits = jax.jit(lambda v, x: model.apply(v, {"image": x}, train=False)[0])(loaded.variables, image)
    expected = np.array(GOLDEN["networks"][key][f"{size[0]}x{size[1]}"])
    assert np.abs(np.diff(expected, axis=0)).max() > 5e-3  # the images matter
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_timm_and_torchvision_efficientnets_differ_by_names_only() -> None:
    ours, theirs = state_of("efficientnet_b0"), state_of("efficientnet_b0", timm=True)
    assert sorted(v.shape for v in ours.values()) == sorted(v.shape for v in theirs.values())
    assert not set(ours) & set(theirs)


def load(state: dict[str, np.ndarray], outputs: int = CLASSES) -> Any:
    return with_state_dict("resnet18", state, network("resnet18", outputs)[1], "weights.npz")


def test_everything_wrong_is_one_error() -> None:
    state = state_of("resnet18")
    state.pop("layer2.0.bn1.running_var")
    state |= {"aux.weight": np.zeros(3, np.float32), "conv1.weight": np.zeros((64, 3, 3, 3), np.float32)}
    state["bn1.bias"] = np.zeros(64, np.int32)
    with pytest.raises(DataError) as refused:
        load(state)
    assert refused.value.problems == (
        "weights.npz: expected the weights of resnet18",
        "1 missing: layer2.0.bn1.running_var",
        "1 unknown: aux.weight",
        "1 of another shape: conv1.weight [64, 3, 3, 3] instead of [64, 3, 7, 7]",
        "1 not of real numbers: bn1.bias",
    )
    for prefix in ("module.", "net.model."):
        wrapped = {prefix + key: value for key, value in state_of("resnet18").items()}
        with pytest.raises(DataError, match=f"all names begin with '{prefix}': strip it from each"):
            load(wrapped)
        with pytest.raises(DataError) as other:
            load(wrapped | {"aux.weight": np.zeros(3, np.float32)})
        assert "begin with" not in str(other.value)
    with pytest.raises(DataError, match=r"80 unknown: layer1\.2\.bn1\.bias"):
        with_state_dict("resnet18", state_of("resnet34"), network("resnet18")[1], "w")


def test_negative_variances_are_refused() -> None:
    state = state_of("resnet18")
    state["layer1.0.bn1.running_var"][3] = -1e-3
    with pytest.raises(DataError, match=r"variances of 0 or more, got negative ones in layer1\.0\.bn1\.running_var"):
        with_state_dict("resnet18", state, network("resnet18")[1], "w")


def test_numbers_that_are_none_are_refused() -> None:
    state = state_of("resnet18")
    state["layer1.0.bn1.weight"][3] = np.nan
    with pytest.raises(DataError, match=r"got NaN or infinity in layer1\.0\.bn1\.weight"):
        load(state)


def test_counters_are_known_and_half_precision_is_taken() -> None:
    state = state_of("resnet18") | {"bn1.num_batches_tracked": np.array(7, np.int64)}
    state["conv1.weight"] = state["conv1.weight"].astype(jnp.bfloat16)
    kernel = load(state).variables["params"]["stem_conv"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel[2, 5, 1, 9], state["conv1.weight"][9, 1, 2, 5].astype(np.float32))
    with pytest.raises(DataError, match=r"1 unknown: bn9\.num_batches_tracked"):
        load(state | {"bn9.num_batches_tracked": np.array(7)})


def test_the_head_is_replaced_where_it_cannot_fit() -> None:
    state, (_, variables) = state_of("resnet18"), network("resnet18", 3)
    fresh = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), variables)
    loaded = with_state_dict("resnet18", state, fresh, "w")
    assert loaded.note.endswith(f"head replaced: {CLASSES} outputs in the file, 3 needed")
    assert (loaded.variables["params"]["head"]["kernel"] == 0.5).all()
    kept = load(state)
    assert kept.note.endswith("head kept: as many outputs")
    np.testing.assert_array_equal(kept.variables["params"]["head"]["kernel"], state["fc.weight"].T)
    headless = {name: values for name, values in state.items() if not name.startswith("fc.")}
    assert "new head with 3 outputs" in with_state_dict("resnet18", headless, fresh, "w").note
    with pytest.raises(DataError, match=r"1 missing: fc\.bias"):
        load({name: values for name, values in state.items() if name != "fc.bias"})


def test_average_pool_means_what_is_there() -> None:
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    found = average_pool_2x2(jnp.asarray(x))
    expected = [[x[:, i : i + 2, j : j + 2].mean((1, 2)) for j in (0, 2)] for i in (0, 2, 4)]
    np.testing.assert_allclose(found, np.array(expected).transpose(2, 0, 1, 3), rtol=1e-5, atol=1e-6)


def test_preprocessing_is_the_tables_or_that_of_the_file_beside(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    assert preprocessing_of("efficientnet_b3", weights)[0] == PREPROCESSING["efficientnet_b3"]
    assert PREPROCESSING["efficientnet_b3"][:3] == (300, 300 / 320, "bicubic")
    settings = {"input_size": [3, 288, 288], "crop_pct": 0.95, "interpolation": "bicubic"}
    settings |= {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": settings}))
    found, why = preprocessing_of("resnet18", weights)
    assert found == (288, 0.95, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert why.endswith("config.json says so")
    for key, value in (("crop_pct", 0), ("std", [0.0, 1, 1]), ("interpolation", "random"), ("input_size", [3, 2])):
        (tmp_path / "config.json").write_text(json.dumps(settings | {key: value}))
        with pytest.raises(DataError, match="expected timm's input_size"):
            preprocessing_of("resnet18", weights)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="expected timm's input_size"):
        preprocessing_of("resnet18", weights)
