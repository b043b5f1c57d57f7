"""bfloat16 programs as `backend.compiled` makes them: near their float32 twins, in training mode and out of it."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from mmjax.artifact.bundle import BundleContents, save_bundle
from mmjax.artifact.predictor import ELSEWHERE, golden_tolerance, load_predictor, make_golden, make_predictor
from mmjax.backend import compiled, platform
from mmjax.config import Architecture, Config, Data, ImageData, ModelName
from mmjax.config import Model as ModelConfig
from mmjax.data.encode import encode
from mmjax.models.architecture import ARCHITECTURE_DEFAULTS
from mmjax.models.build import build_model, served_variables
from mmjax.models.convolution import convolution
from mmjax.models.norms import folded_norm
from mmjax.parts import States, build_parts
from mmjax.recipe import resolve
from mmjax.schema import Column, Columns, ImageSpec, Schema, Target

TARGET = Target(column="y", task="classification", classes=("a", "b", "c"))
IMAGES = Schema(target=TARGET, image=ImageSpec(height_px=32, width_px=32))
TABLE = Schema(target=TARGET, columns=tuple(Column(name=name, kind="numeric") for name in "pqr"))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("mlp", Architecture(hidden_layers=(16,), dropout=0.0, normalization="batch")),
        ("resnet", Architecture(stages=(1, 1), width=16)),
    ],
)
def test_bfloat16_stays_near_float32(getkey, name: ModelName, architecture: Architecture, train: bool) -> None:
    schema = TABLE if name == "mlp" else IMAGES
    shape = (8, 3) if name == "mlp" else (8, 1, 32, 32, 3)
    batch = {"numeric" if name == "mlp" else "image": jax.random.normal(getkey(), shape)}
    outputs = []
    for precision in ("float32", "bfloat16"):
        config = ModelConfig(name=name, architecture=architecture)
        model = build_model(config, schema, outputs=3, precision=precision)
        variables = compiled(model.init)(jax.random.key(0), batch)

        def forward(variables, batch, model=model):
            return model.apply(variables, batch, train=train, key=jax.random.key(0))[0]

        outputs.append(np.asarray(compiled(forward)(variables, batch)))
    np.testing.assert_allclose(outputs[1], outputs[0], atol=0.05)


def worn(variables: Any) -> Any:
    """Norms as after training: no scale is 1, and variances are near a norm's epsilon."""
    rng = np.random.default_rng(0)

    def moved(path: Any, leaf: np.ndarray) -> np.ndarray:
        if path[-1].key == "var":
            return rng.uniform(1e-3, 2e-3, leaf.shape).astype(np.float32)
        drawn = {"scale": (0.02, 0.05), "bias": (-0.2, 0.2), "mean": (-0.01, 0.01)}.get(path[-1].key)
        return rng.uniform(*drawn, leaf.shape).astype(np.float32) if drawn else leaf

    return jax.tree.map_with_path(moved, variables)


@pytest.mark.parametrize("name", ["resnet", "airbench_s"])
def test_a_served_network_answers_as_the_trained_one(getkey, name: ModelName) -> None:
    small = Architecture(stages=(1,), width=8) if name == "resnet" else ARCHITECTURE_DEFAULTS[name]
    config = ModelConfig(name=name, type="vision", architecture=small)
    batch = {"image": jax.random.normal(getkey(), (3, 1, 16, 16, 3))}
    trained, served = (build_model(config, IMAGES, outputs=3, precision="bfloat16", served=s) for s in (False, True))
    variables = worn(jax.tree.map(np.asarray, compiled(trained.init)(jax.random.key(0), batch)))
    ready = served_variables(config, variables, "bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(ready)} == {"bfloat16", "float32"}
    assert served_variables(config, ready, "bfloat16") is ready
    answers = [
        np.asarray(compiled(lambda v, model=model: model.apply(v, batch, train=False)[0], precision="bfloat16")(given))
        for model, given in ((trained, variables), (served, ready))
    ]
    np.testing.assert_allclose(answers[1], answers[0], atol=0.03 * np.abs(answers[0]).max())


def test_a_folded_norm_is_the_norm() -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 5, 5, 3)).astype(np.float32), rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
    scale, bias, mean, var = rng.uniform(0.5, 2, (4, 4)).astype(np.float32)
    y = np.asarray(convolution(jnp.asarray(x), jnp.asarray(kernel), padding=1))
    expected = (y - mean) / np.sqrt(var + 1e-3) * scale + bias
    folded, shift = folded_norm(kernel, {"scale": scale, "bias": bias}, {"mean": mean, "var": var}, 1e-3)
    got = convolution(jnp.asarray(x), jnp.asarray(folded), padding=1) + shift.reshape(1, 1, 1, 4)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    norm, stats = (
        {"scale": np.stack([scale] * 2), "bias": np.stack([bias] * 2)},
        {"mean": mean[None], "var": var[None]},
    )
    kernels, shifts = folded_norm(np.stack([kernel] * 2), norm, stats, 1e-3)  # of members
    np.testing.assert_array_equal(kernels[1], folded)
    np.testing.assert_array_equal(shifts[1], shift)


@pytest.mark.parametrize(("name", "epsilon"), [("tf_efficientnet_b0", 1e-3), ("efficientnet_b0", 1e-5)])
def test_norms_are_folded_with_their_own_epsilon(name: ModelName, epsilon: float) -> None:
    kernel, norm = np.ones((1, 1, 1, 2), np.float32), {"scale": np.ones(2, np.float32), "bias": np.zeros(2, np.float32)}
    stats = {"stem_norm": {"mean": np.ones(2, np.float32), "var": np.full(2, 1e-3, np.float32)}}
    variables = {"params": {"stem_conv": {"kernel": kernel}, "stem_norm": norm}, "batch_stats": stats}
    params = served_variables(ModelConfig(type="vision", name=name), variables, "bfloat16")["params"]
    factor = (1e-3 + epsilon) ** -0.5
    np.testing.assert_allclose(params["stem_conv"]["kernel"].astype(np.float32), factor * kernel, rtol=2**-8)
    np.testing.assert_allclose(params["stem_norm"]["bias"], -factor * np.ones(2), rtol=1e-5)
    np.testing.assert_array_equal(kernel, 1.0)  # what was trained stays


def test_only_images_in_bfloat16_are_changed() -> None:
    kernel = {"head": {"kernel": np.ones(2, np.float32)}}
    params = {"images": kernel, "columns": kernel, "join": kernel}
    variables = {"params": params, "batch_stats": {"images": {}, "columns": {}}}
    fused = served_variables(ModelConfig(type="multimodal", name="resnet"), variables, "bfloat16")["params"]
    dtypes = [str(fused[part]["head"]["kernel"].dtype) for part in params]
    assert dtypes == ["bfloat16", "float32", "float32"]
    assert served_variables(ModelConfig(type="vision", name="resnet"), variables, "float32") is variables
    assert served_variables(ModelConfig(type="tabular", name="mlp"), variables, "bfloat16") is variables


def test_a_bundle_of_images_in_bfloat16_answers_as_it_was_trained(tmp_path: Path) -> None:
    config = Config(name="x", data=Data(image=ImageData(path="images")), precision="bfloat16")
    config = msgspec.structs.replace(config, model=ModelConfig(architecture=Architecture(stages=(1,), width=8)))
    schema = Schema(target=TARGET, image=ImageSpec(height_px=8, width_px=8))
    config, _ = resolve(config, schema, train_rows=4, validation_rows=0)
    images = np.empty(6, dtype=object)
    images[:] = list(np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8))
    columns: Columns = {schema.image.columns[0]: images} if schema.image else {}
    batch, parts = encode(schema, columns), build_parts(config, schema)
    fitted = parts.transform.fit(batch)
    variables = worn(
        jax.tree.map(np.asarray, jax.jit(parts.model.init)(jax.random.key(0), parts.transform.apply(fitted, batch)))
    )
    states = States(variables, fitted, parts.output.fit(np.arange(3)))
    trained = make_predictor(config, schema, states)
    golden = make_golden(trained, columns)
    kept = {"model": variables, "transform": states.transform, "output": states.output}
    save_bundle(tmp_path / "b", BundleContents(config, schema, kept, {"test": {"accuracy": 0.5}}, golden, {}, "", {}))
    loaded = load_predictor(tmp_path / "b")
    before, after = (np.asarray(each.score(columns).probabilities) for each in (trained, loaded))
    assert np.ptp(before) > 0.1
    np.testing.assert_allclose(after, before, atol=0.02)
    with pytest.raises(Exception, match="scale"):  # what was folded is taken for nothing else
        make_predictor(config, schema, loaded.states).score(columns)
    old = golden._replace(tolerance={**ELSEWHERE, "cpu/bfloat16": 1e-9})  # of a bundle that did not fold
    assert golden_tolerance(old, config, "cpu") == ELSEWHERE["bfloat16"]
    assert golden_tolerance(golden, config, platform()) == golden.tolerance[f"{platform()}/bfloat16/served"]
