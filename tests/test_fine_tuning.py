"""Frozen parts stay to the bit, early stages learn slower, and a run from pretrained weights says what it took."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mmjax.check import check
from mmjax.config import Architecture, Training
from mmjax.config import Model as ModelConfig
from mmjax.config_load import config_from_dict
from mmjax.errors import ConfigError, DataError
from mmjax.models.build import build_model
from mmjax.models.pretrained import source_shapes, with_state_dict
from mmjax.models.state_dict import load_state_dict
from mmjax.recipe import before_data
from mmjax.schema import ImageSpec, Schema, Target, schema_from_json, schema_to_json
from mmjax.train import fit
from mmjax.training.fine_tuning import depths_of, fine_tuning_rates
from tests.doors import write_images
from tests.test_pretrained import SEEDED, network

SCHEMA = Schema(target=Target(column="y", task="classification", classes=("a", "b")))


def write_weights(path: Path) -> Path:
    """A ResNet-18's state dict with 10 outputs."""
    shapes = source_shapes("resnet18", network("resnet18")[1], timm=False)
    np.savez(path, **SEEDED.seeded_state(shapes, 3, SEEDED.gain_of("resnet18")))
    return path


def content(home: Path, **sections: Any) -> dict[str, Any]:
    return {
        "name": "shades",
        "data": {"image": {"path": str(home / "images"), **sections.pop("image", {})}},
        "model": {"name": "resnet18", "pretrained": str(home / "w.npz")},
        **sections,
    }


def test_a_frozen_trunk_stays_and_the_head_learns(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    weights = write_weights(tmp_path / "w.npz")
    training = {"epochs": 1, "batch_size": 8, "freeze": "trunk", "optimizer": "adamw", "weight_decay": 0.1}
    told: list[str] = []
    settings = content(tmp_path, image={"image_size": [16, 16]}, training=training, precision="float32")
    config = config_from_dict(settings, "test")
    result = fit(config, runs_dir=tmp_path / "runs", registry=None, tell=told.append)
    variables = jax.tree.map(np.asarray, result.predictor.states.variables)
    start = with_state_dict("resnet18", load_state_dict(weights), variables, "w").variables
    assert variables["params"].pop("head")["kernel"].shape == (512, 2)
    start["params"].pop("head")
    jax.tree.map(np.testing.assert_array_equal, variables, start)
    told_of = next(line for line in told if line.startswith("pretrained: "))
    assert "100 arrays by the names of torchvision and timm, head replaced: 10 outputs in the file, 2 needed" in told_of
    kept = json.loads((result.run_dir / "decisions.json").read_text())
    decided = {decision["key"]: decision for decision in kept}
    assert "sha256" in decided["model.pretrained"]["why"]
    assert decided["data.image.channel_mean"]["value"] == [0.485, 0.456, 0.406]
    assert decided["model.architecture.stem"]["value"] == "large"
    np.testing.assert_allclose(result.predictor.states.transform[0]["std"], [0.229, 0.224, 0.225], rtol=1e-6)


@pytest.mark.parametrize("images", ["images", "nowhere"])
def test_weights_of_another_network_are_refused_before_any_data_are_read(tmp_path: Path, images: str) -> None:
    write_images(tmp_path / "images", each=2)
    write_weights(tmp_path / "w.npz")
    settings = content(tmp_path, image={"path": str(tmp_path / images)})
    settings["model"]["name"] = "resnet34"
    for run in (lambda config: fit(config, runs_dir=tmp_path / "runs", registry=None), check):
        with pytest.raises(DataError, match=r"w\.npz: expected the weights of resnet34\n.*80 missing: layer1\.2\.bn1"):
            run(config_from_dict(settings, "test"))
    settings["model"]["name"] = "resnet18"
    broken = dict(np.load(tmp_path / "w.npz"))
    broken["bn1.weight"][3] = np.nan
    np.savez(tmp_path / "w.npz", **broken)
    with pytest.raises(DataError, match=r"expected finite numbers, got NaN or infinity in bn1\.weight"):
        fit(config_from_dict(settings, "test"), runs_dir=tmp_path / "runs", registry=None)
    assert not (tmp_path / "runs").exists()


def test_preprocessing_of_the_weights_is_decided_before_images_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", x=np.zeros(1))
    asked, decisions = before_data(config_from_dict(content(tmp_path), "test"))
    image = asked.data.image
    assert image is not None
    assert (image.image_size, image.filter, image.crop_share) == ((224, 224), "bilinear", 0.875)
    assert (image.channel_mean, image.channel_std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert all("of the pretrained weights" in decision.why for decision in decisions)
    given = {"image_size": [96, 96], "filter": "box", "channel_mean": [0.5, 0.5, 0.5], "channel_std": [0.2, 0.2, 0.2]}
    kept, none = before_data(config_from_dict(content(tmp_path, image=given), "test"))
    assert none == ()
    assert kept == config_from_dict(content(tmp_path, image=given), "test")
    (tmp_path / "w.npz").unlink()
    with pytest.raises(DataError, match=r"w\.npz: cannot be read"):
        before_data(asked)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": {"pretrained": "w.pth"}}, "a pickle can run any code; convert it once: python -c"),
        ({"model": {"name": "resnet", "pretrained": "w.npz"}}, "expected the network whose weights these are"),
        ({"model": {"name": "airbench", "pretrained": "w.npz"}}, "expected the network whose weights these are"),
        ({"model": {"pretrained": "w.npz"}, "training": {"freeze": "trunk"}}, "got no `model.name`"),
        ({"model": {"name": "resnet18"}, "training": {"freeze": 2}}, "expected `model.pretrained` with it"),
        ({"data": {"image": {"path": "p", "channel_std": [0.2, 0.2, 0.2]}}}, "expected both or neither"),
        (
            {"model": {"name": "resnet18", "pretrained": "w.npz"}, "training": {"freeze": 5}},
            "test: training.freeze: expected at most 4, the stages of resnet18, got 5; or trunk",
        ),
        (
            {"model": {"name": "tf_efficientnet_b0", "pretrained": "w.npz"}, "training": {"freeze": 8}},
            "test: training.freeze: expected at most 7, the stages of tf_efficientnet_b0, got 8; or trunk",
        ),
        (
            {"training": {"loss": "mse"}},
            "expected one of cross_entropy, focal, bce for classification (`data.image.path`)",
        ),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config_from_dict({"name": "n", "data": {"image": {"path": "p"}}, **change}, "test")
    assert told in str(refused.value)


def params_of(name: Any, architecture: Architecture = Architecture(stem="large"), **how: Any) -> Any:
    model = build_model(ModelConfig(name=name, architecture=architecture), SCHEMA, outputs=2, **how)
    batch = {"image": jax.ShapeDtypeStruct((2, 1, 32, 32, 3), np.float32)}
    return jax.eval_shape(model.init, jax.random.key(0), batch)["params"]


@pytest.mark.parametrize(("name", "last"), [("resnet18d", 5), ("efficientnet_b0", 9)])
def test_rates_follow_the_stages(name: str, last: int) -> None:
    params = params_of(name)
    depths = depths_of(params)
    assert depths["head"] == last
    assert {depths[module] for module in params if module.startswith("stem_")} == {0}
    rates = fine_tuning_rates(Training(layer_decay=0.5, freeze=1), params)
    assert rates is not None
    assert rates.learning_rate["head"]["kernel"] == 1.0
    for module, depth in depths.items():
        expected = 0.0 if depth <= 1 else 0.5 ** (last - depth)
        assert set(jax.tree.leaves(rates.learning_rate[module])) == {expected}
    trunk = fine_tuning_rates(Training(freeze="trunk"), params)
    assert trunk is not None
    assert {name for name in params if set(jax.tree.leaves(trunk.learning_rate[name])) == {1.0}} == {"head"}
    assert rates.decay["head"] == {"kernel": 1.0, "bias": 0.0}
    assert fine_tuning_rates(Training(), params) is None


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
@pytest.mark.parametrize("freeze", [2, "trunk"])
def test_frozen_parts_keep_their_statistics(name: Any, freeze: Any) -> None:
    """By the program alone, nothing is compiled: statistics that are an input of it are as they were."""
    model = build_model(
        ModelConfig(name=name, architecture=Architecture(stem="large", dropout=0.0)), SCHEMA, outputs=2, freeze=freeze
    )
    batch = {"image": jax.ShapeDtypeStruct((2, 1, 32, 32, 3), np.float32)}
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    program = jax.make_jaxpr(lambda v, b: model.apply(v, b, train=True)[1])(variables, batch).jaxpr
    same = {
        path
        for path, out in zip(_paths(variables["batch_stats"]), program.outvars, strict=True)
        if out in program.invars
    }
    depths = depths_of(variables["params"])
    frozen = {module for module, depth in depths.items() if depth <= (depths["head"] - 1 if freeze == "trunk" else 2)}
    assert same == {path for path in _paths(variables["batch_stats"]) if path[0] in frozen}
    assert same


def _paths(tree: Any) -> list[tuple[str, ...]]:
    return [tuple(key.key for key in path) for path, _ in jax.tree.leaves_with_path(tree)]


def test_groups_of_airbench_learn_slower_the_earlier_they_are() -> None:
    rates = fine_tuning_rates(Training(layer_decay=0.5), params_of("airbench_s", Architecture()))
    assert rates is not None
    found = {name: set(jax.tree.leaves(factors)) for name, factors in rates.learning_rate.items()}
    expected = {"whitening_bias": 0.0625, "group1_conv1": 0.125, "group2_norm2": 0.25, "group3_conv2": 0.5, "head": 1.0}
    assert {name: found[name] for name in expected} == {name: {rate} for name, rate in expected.items()}


def test_more_stages_than_there_are_cannot_be_frozen() -> None:
    for name, stages in (("resnet18", 4), ("tf_efficientnet_b0", 7)):  # the numbers that the config's rules know
        with pytest.raises(
            ConfigError, match=rf"training\.freeze: expected at most {stages}, the stages of {name}, got"
        ):
            params_of(name, freeze=stages + 1)


def test_a_crop_share_travels_in_the_schema_and_is_absent_where_it_is_none() -> None:
    image = ImageSpec(height_px=8, width_px=8, crop_share=0.875)
    schema = Schema(target=SCHEMA.target, image=image)
    assert schema_from_json(schema_to_json(schema), "s") == schema
    whole = Schema(target=SCHEMA.target, image=ImageSpec(height_px=8, width_px=8))
    assert b"crop_share" not in schema_to_json(whole)


def test_a_decay_of_layers_that_are_all_frozen_is_refused() -> None:
    document = {
        "name": "f",
        "data": {"image": {"path": "images"}},
        "model": {"name": "resnet18", "pretrained": "weights.npz"},
        "training": {"freeze": "trunk", "layer_decay": 0.5},
    }
    with pytest.raises(ConfigError, match=r"training\.layer_decay: has no effect beside `freeze: trunk`"):
        config_from_dict(document, "a test")
    config_from_dict({**document, "training": {"freeze": 1, "layer_decay": 0.5}}, "a test")
