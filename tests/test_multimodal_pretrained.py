"""Photographs beside columns from pretrained weights: the trunk of the images takes them, and all else is its own."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from mmjax.artifact.bundle import load_bundle
from mmjax.artifact.predictor import load_predictor
from mmjax.config import Architecture, Config, Fusion, Training, table_images
from mmjax.config import Model as ModelConfig
from mmjax.config_load import config_from_dict
from mmjax.data.decode import decode_images
from mmjax.errors import ConfigError, DataError
from mmjax.models.build import build_model
from mmjax.models.fusion import Join, images_trunk
from mmjax.models.pretrained import with_state_dict
from mmjax.models.state_dict import load_state_dict
from mmjax.recipe import before_data, resolve
from mmjax.schema import Schema
from mmjax.train import FitResult, fit
from mmjax.training.event_types import EpochEnded, Event
from mmjax.training.fine_tuning import depths_of, fine_tuning_rates
from tests.test_fine_tuning import write_weights
from tests.test_fusion import SCHEMA, batch
from tests.test_fusion import network as fused
from tests.test_multimodal import make_shapes

WIDTH = 16


def config_of(home: Path, *, images: dict[str, Any] | None = None, **sections: Any) -> Config:
    listed: dict[str, Any] = {"columns": ["picture"], "image_size": [16, 16]} | (images or {})
    model = {
        "name": "resnet18",
        "pretrained": str(home / "w.npz"),
        "fusion": {"width": WIDTH, "hidden_layers": [8]},
    }
    table = {"path": str(home / "shapes.csv"), "target_column": "label", "id_column": "id", "images": listed}
    training: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 8,
        "freeze": "trunk",
        "optimizer": "sgd",
        "weight_decay": 0.1,
    }
    training |= {"checkpoint": {"enabled": False}} | sections.pop("training", {})
    document = {"name": "joined", "data": {"tabular": table}, "model": model | sections.pop("model", {})}
    document |= {"training": training, "precision": "float32", "evaluation": {"baselines": "none"}}
    return config_from_dict(document | sections, "test")


class Trained(NamedTuple):
    home: Path
    result: FitResult
    told: list[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    home = tmp_path_factory.mktemp("joined")
    make_shapes(home, rows=32)
    write_weights(home / "w.npz")
    told: list[str] = []
    return Trained(home, fit(config_of(home), run_dir=home / "run", registry=None, tell=told.append), told)


def variables_of(result: FitResult) -> Any:
    return jax.tree.map(np.asarray, result.predictor.states.variables)


def file_variables(trained: Trained, variables: Any) -> Any:
    """Those of a trunk like this one, as they are in the file of weights."""
    state = load_state_dict(trained.home / "w.npz")
    return with_state_dict("resnet18", state, images_trunk(variables), "w.npz", new_head=True).variables


def test_the_trunk_stays_to_the_bit_and_head_columns_and_join_learn(trained: Trained) -> None:
    variables = variables_of(trained.result)
    trunk, start = images_trunk(variables), file_variables(trained, variables)
    assert trunk["params"]["head"]["kernel"].shape == (512, WIDTH)
    for part in ("params", "batch_stats"):
        there, here = ({name: leaf for name, leaf in of[part].items() if name != "head"} for of in (start, trunk))
        jax.tree.map(np.testing.assert_array_equal, here, there)
    learnt = variables["params"]  # what starts as zeros or ones
    assert (trunk["params"]["head"]["bias"] != 0).all()
    assert (learnt["join"]["gain"] != 1).any()
    assert (learnt["join"]["joined"]["bias"] != 0).all()
    biases = [leaf for path, leaf in jax.tree.leaves_with_path(learnt["columns"]) if path[-1].key == "bias"]
    assert biases
    assert all((bias != 0).any() for bias in biases)


def test_the_run_says_what_it_took_and_the_model_keeps_it(trained: Trained) -> None:
    told = next(line for line in trained.told if line.startswith("pretrained: "))
    assert f"head replaced: 10 outputs in the file, {WIDTH} new ones needed; sha256 " in told
    decided = {made["key"]: made for made in json.loads((trained.result.run_dir / "decisions.json").read_text())}
    images = "data.tabular.images."
    assert decided[f"{images}channel_mean"]["value"] == [0.485, 0.456, 0.406]
    assert decided[f"{images}filter"]["value"] == "bilinear"
    assert decided["model.architecture.stem"]["value"] == "large"
    assert decided["training.learning_rate"]["value"] == 0.1
    assert "sha256" in decided["model.pretrained"]["why"]
    assert trained.result.report["decisions"] == json.loads((trained.result.run_dir / "decisions.json").read_text())
    card = (trained.result.run_dir / "card.md").read_text()
    assert f"head replaced: 10 outputs in the file, {WIDTH} new ones needed" in card
    kept = load_bundle(trained.result.bundle).contents.config
    assert (kept.model.pretrained, kept.training.freeze) == (str(trained.home / "w.npz"), "trunk")
    transforms = trained.result.predictor.states.transform
    std = next(state["std"] for state in transforms if "std" in state and np.shape(state["std"]) == (3,))
    np.testing.assert_allclose(std, [0.229, 0.224, 0.225], rtol=1e-6)


def test_a_run_that_was_left_goes_on_and_its_bundle_needs_no_weights(trained: Trained) -> None:
    def end(event: Event) -> None:
        if isinstance(event, EpochEnded):
            raise KeyboardInterrupt

    config, folder = (
        config_of(trained.home, training={"checkpoint": {"enabled": True, "every_epochs": 1}}),
        trained.home / "left",
    )
    with pytest.raises(KeyboardInterrupt):
        fit(config, run_dir=folder, registry=None, callbacks=(end,))
    resumed = fit(config, run_dir=folder, registry=None)
    jax.tree.map(np.testing.assert_array_equal, variables_of(resumed), variables_of(trained.result))
    weights = trained.home / "w.npz"
    weights.rename(trained.home / "away.npz")
    try:
        rows = {"picture": [str(trained.home / "drawn/0.png"), None], "weight": [2.0, -1.0], "colour": ["red", "blue"]}
        found = load_predictor(resumed.bundle).predict(rows)
        np.testing.assert_array_equal(found.probabilities, resumed.predictor.predict(rows).probabilities)
    finally:
        (trained.home / "away.npz").rename(weights)


def test_the_trunk_sees_what_the_image_model_with_these_weights_sees(trained: Trained) -> None:
    """Answers about pictures alone, made again from the file's weights by an image model and the join."""
    predictor, paths = trained.result.predictor, [trained.home / f"drawn/{i}.png" for i in range(4)]
    variables, spec = variables_of(trained.result), predictor.schema.image
    assert spec is not None
    pixels = decode_images(spec, [path.read_bytes() for path in paths])[0].astype(np.float32) / 255
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    image = (pixels - mean) / std
    model = ModelConfig(type="vision", name="resnet18", architecture=Architecture(stem="large"))
    alone = build_model(model, Schema(target=SCHEMA.target), outputs=WIDTH)
    own = file_variables(trained, variables)
    own["params"]["head"] = images_trunk(variables)["params"]["head"]
    seen = np.asarray(jax.jit(lambda v, x: alone.apply(v, {"image": x}, train=False)[0])(own, image[:, None]))
    join = Join(2, WIDTH, "concatenate", "mean", 0.0, 0.0)
    present, hidden = np.ones((4, 1), np.float32), np.zeros(4, np.float32)
    inputs = (seen[:, None], present, np.zeros_like(seen), hidden)
    logits = np.asarray(join.apply({"params": variables["params"]["join"]}, *inputs, train=False))
    found = predictor.predict({"picture": [str(path) for path in paths]}).probabilities
    assert found is not None
    assert np.ptp(found[:, 0]) > 1e-3
    np.testing.assert_allclose(found, jax.nn.softmax(logits), rtol=1e-4, atol=1e-6)


def test_other_parts_learn_at_full_rate() -> None:
    params = jax.eval_shape(fused("concatenate", "mean").init, jax.random.key(0), batch())["params"]
    rates = fine_tuning_rates(Training(layer_decay=0.5, freeze="trunk"), params)
    assert rates is not None
    factors = rates.learning_rate
    assert set(jax.tree.leaves({name: factors[name] for name in ("columns", "join")})) == {1.0}
    assert {name for name in factors["images"] if set(jax.tree.leaves(factors["images"][name])) != {0.0}} == {"head"}
    slower = fine_tuning_rates(Training(layer_decay=0.5), params)
    assert slower is not None
    depths = depths_of(params["images"])
    for name, depth in depths.items():
        assert set(jax.tree.leaves(slower.learning_rate["images"][name])) == {0.5 ** (depths["head"] - depth)}
    assert jax.tree.structure(slower.decay) == jax.tree.structure(params)
    assert fine_tuning_rates(Training(), params) is None


@pytest.mark.parametrize(
    ("training", "decay"), [({"freeze": "trunk"}, 1.0), ({"freeze": 2}, 0.5), ({"freeze": "none"}, 0.5)]
)
def test_pretrained_stages_learn_slower_than_columns_that_start_from_nothing(
    training: dict[str, Any], decay: float, tmp_path: Path
) -> None:
    config = config_of(tmp_path, training=training, images={"columns": ["p", "q", "r"]})
    resolved, _ = resolve(config, SCHEMA, train_rows=100, validation_rows=10)
    assert (resolved.training.learning_rate, resolved.training.layer_decay) == (0.1, decay)


def test_the_preprocessing_of_the_weights_is_that_of_the_columns_of_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", x=np.zeros(1))
    config = config_of(tmp_path)
    table = config.data.tabular
    assert table is not None
    given = table_images(before_data(config)[0])
    assert given is not None
    assert (given.image_size, given.filter, given.crop_share) == ((16, 16), "bilinear", None)
    bare = config_from_dict(
        {
            "name": "n",
            "data": {"tabular": {"path": "t.csv", "target_column": "y", "images": {"columns": ["p"]}}},
            "model": {"name": "efficientnet_b1", "pretrained": str(tmp_path / "w.npz")},
        },
        "test",
    )
    images = table_images(before_data(bare)[0])
    assert images is not None
    assert (images.image_size, images.filter, images.crop_share) == ((240, 240), "bicubic", 240 / 256)
    assert images.channel_std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"model": {"pretrained": "w.pth"}}, "a pickle can run any code; convert it once: python -c"),
        ({"model": {"name": "resnet"}}, "expected the network whose weights these are"),
        ({"model": {"pretrained": None}}, "training.freeze: expected `model.pretrained` with it"),
        ({"images": {"channel_std": [0.2, 0.2, 0.2]}}, "data.tabular.images.channel_mean: expected both or neither"),
    ],
)
def test_what_cannot_be_is_refused(sections: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        config_of(tmp_path, **sections)
    assert told in str(refused.value)


def test_weights_of_another_network_and_more_stages_than_there_are_are_told(trained: Trained) -> None:
    state: dict[str, Any] = dict(np.load(trained.home / "w.npz"))
    state.pop("bn1.weight")
    state["layer1.0.conv1.weight"] = np.zeros((64, 3, 3, 3), np.float32)
    np.savez(trained.home / "other.npz", **state)
    other = config_of(trained.home, model={"pretrained": str(trained.home / "other.npz")})
    with pytest.raises(DataError) as refused:
        fit(other, runs_dir=trained.home / "runs", registry=None)
    assert refused.value.problems[0].endswith("other.npz: expected the weights of resnet18")
    assert "1 missing: bn1.weight" in refused.value.problems
    assert any(problem.startswith("1 of another shape: layer1.0.conv1.weight") for problem in refused.value.problems)
    model = ModelConfig(type="multimodal", name="resnet18", fusion=Fusion(width=4))
    with pytest.raises(ConfigError, match=r"training\.freeze: expected at most 4, the stages of resnet18, got 5"):
        build_model(model, SCHEMA, outputs=2, freeze=5)
