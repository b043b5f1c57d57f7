"""Ensembles of networks for images: each member answers as it would alone, and no convolution is of several at once."""

import re
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
import pytest

from mmjax.backend import platform
from mmjax.budget import COMPILED_OFTEN, Cost, Ready, cuts, measured_cost
from mmjax.config import Config
from mmjax.config_load import config_from_dict
from mmjax.data.prepare import prepare
from mmjax.errors import ConfigError
from mmjax.parts import States, build_parts
from mmjax.train import FitResult, _evaluate, fit
from mmjax.training.members import member_of
from mmjax.training.scoring import Scores, inputs_of, score
from mmjax.training.setup import Setup
from mmjax.training.state import eval_variables
from tests.doors import image_config, write_images, write_table
from tests.test_ensembles import config_of, ready, trained

CASES: dict[str, dict[str, Any]] = {
    "members": {"training": {"members": 3}},
    "folds": {"split": {"folds": 2}},
}


def several(home: Path, case: str, *, precision: str = "float32", loading: str = "auto", **training: Any) -> Config:
    content = msgspec.to_builtins(image_config(write_images(home / "shades", each=16)))
    for section, values in (CASES | {"seeds": {"training": {"seeds": [0, 5]}}})[case].items():
        content[section] = content.get(section, {}) | values
    content["training"] |= training
    content["data"] |= {"loading": loading, "cache": {"path": str(home / "cache")}}
    return config_from_dict(content | {"precision": precision}, "test")


@pytest.fixture(scope="module", params=CASES)
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    home = tmp_path_factory.mktemp(request.param)
    return fit(several(home, request.param), run_dir=home / "run", registry=None)


def test_an_ensemble_of_images_answers_as_its_members_do(fitted: FitResult):
    predictor = fitted.predictor
    prepared, states = prepare(predictor.config), predictor.states
    parts = build_parts(predictor.config, prepared.schema, served=True)
    whole = score(predictor.forward, states, prepared.batch, largest=32)
    folds = predictor.config.split.folds
    models = folds or predictor.config.training.members
    assert whole.outputs.shape[1] == models > 1
    batch = inputs_of(prepared.batch)
    for index in range(models):
        fitted_on = member_of(states.transform, index) if folds else states.transform
        variables = member_of(states.variables, index)
        own, _ = parts.model.apply(variables, parts.transform.apply(fitted_on, batch), train=False)
        np.testing.assert_allclose(whole.outputs[:, index], own, atol=1e-5, rtol=1e-5)
    assert np.abs(whole.outputs[:, 0] - whole.outputs[:, 1]).max() > 0.05, "the members are not the same"


def test_no_convolution_of_an_ensemble_is_of_several_members_at_once(fitted: FitResult):
    """XLA makes grouped convolutions of these, a hundred times slower than one after the other."""
    prepared, states = prepare(fitted.predictor.config), fitted.predictor.states
    forward = build_parts(fitted.predictor.config, prepared.schema, served=True).forward
    text = jax.jit(forward).lower(*states, inputs_of(prepared.batch)).as_text()
    groups = re.findall(r"(?:feature|batch)_group_count = (\d+)", text)
    assert len(groups) >= 4
    assert set(groups) == {"1"}


@pytest.mark.skipif(platform() != "cpu", reason="on a GPU each way is tried")
@pytest.mark.parametrize("given", [None, "map"])
def test_members_that_look_at_images_are_programs_of_their_own_on_a_cpu(tmp_path: Path, given: str | None):
    """Inside a loop their convolutions are slow, so that no way is tried; who asks for it is told."""
    content = msgspec.to_builtins(image_config(write_images(tmp_path / "shades")))
    content["training"] |= {"members": 2, "epochs": 1} | ({"member_loop": given} if given else {})
    told: list[str] = []
    done = fit(config_from_dict(content, "test"), run_dir=tmp_path / "run", registry=None, tell=told.append)
    assert done.predictor.config.training.member_loop == (given or "loop")
    (line,) = (line for line in told if line.startswith("members: "))
    assert line == (
        "members: map, as the config says, is slow for convolutions on a CPU; loop is chosen without it"
        if given
        else "members: loop: convolutions of several members in one program are slow on a CPU"
    )


def evaluated(setup: Setup, ready_to: Ready, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, int]:
    """Return what `fit` makes of a trained model, and how many images networks were asked of for it."""
    result, _ = trained(setup)
    asked: list[int] = []

    def counted(forward: Any, states: Any, batch: Any, rows: np.ndarray, **how: Any) -> Scores:
        asked.append(len(rows))
        return score(forward, states, batch, rows, **how)

    monkeypatch.setattr("mmjax.training.scorer.score", counted)
    return _evaluate(ready_to, result), sum(asked)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [*CASES, "seeds"])
def test_the_report_of_an_ensemble_asks_each_network_of_an_image_once(
    tmp_path: Path, case: str, precision: str, monkeypatch: pytest.MonkeyPatch
):
    config, prepared, setup = ready(several(tmp_path, case, precision=precision, member_loop="loop"))
    kept, asked = evaluated(setup, Ready(config, (), prepared, setup), monkeypatch)
    assert setup.task.members is not None
    models, images = len(setup.task.members.numbers), len(prepared.names)
    held = len(prepared.split.validation) + len(prepared.split.test)
    if case == "seeds":  # what each is worth on rows that it has not seen, then the first is a model like any other
        assert asked == models * held + images
    else:
        assert asked == models * images
    scorer, states, within = kept.answering.scorer, kept.fitted.states, 1e-5 if precision == "float32" else 1e-2
    (found, _), (answers, _) = scorer.scores(states, "test"), scorer._replace(known=()).scores(states, "test")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=within), found, answers)


@pytest.mark.parametrize(
    ("key", "case"), [("training.members", "members"), ("split.folds", "folds"), ("training.seeds", "seeds")]
)
def test_several_models_of_streamed_images_are_refused_by_the_key_that_asks_for_them(
    tmp_path: Path, key: str, case: str
):
    with pytest.raises(ConfigError, match=rf"{key}: expected rows in memory to train \d models beside each other"):
        ready(several(tmp_path, case, loading="streamed"))


@pytest.mark.skipif(platform() != "cpu", reason="on a GPU each way is tried")
def test_a_budget_counts_no_trial_where_there_is_none(tmp_path: Path):
    _, _, images = ready(several(tmp_path, "members"))
    _, _, given = ready(table := config_of(write_table(tmp_path / "table.csv", rows=60), members=2))
    open_ = msgspec.structs.replace(table.training, member_loop=msgspec.UNSET)
    _, _, tried = ready(msgspec.structs.replace(table, training=open_))
    assert [measured_cost(setup).programs for setup in (images, given, tried)] == [1, 1, COMPILED_OFTEN]
    assert [one.key for one in cuts(table, Cost(60.0, 4.0, 1), 100.0)] == ["budget"]
    assert [one.key for one in cuts(table, Cost(60.0, 4.0), 100.0)] == ["budget", "training.members"]


@pytest.mark.parametrize("case", CASES)
def test_no_network_is_asked_of_an_image_twice_once_it_is_trained(tmp_path: Path, case: str):
    _, prepared, setup = ready(several(tmp_path, case))
    asked: list[np.ndarray] = []

    def counting(variables: Any, transform: Any, output: Any, batch: Any) -> Any:
        asked.append(np.asarray(batch["image"]).sum(axis=(1, 2, 3, 4)))
        return setup.scorer.member(variables, transform, output, batch)

    states, members = States(eval_variables(setup.state), *setup.fitted), setup.task.members
    scorer = setup.scorer._replace(member=counting).remembering(states)
    assert members is not None
    each = [scorer.metrics(states, members.held), setup.scorer.metrics(states, members.held)]
    assert each[0] == [pytest.approx(own, abs=1e-5) for own in each[1]]
    for split in ("validation", "test", "train", "validation"):
        (found, batch), (plain, same) = scorer.scores(states, split), setup.scorer.scores(states, split)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), (found, batch), (plain, same))
    images = np.asarray(prepared.batch["image"], np.int64).sum(axis=(1, 2, 3, 4))
    assert len(np.unique(images)) == len(images) == 32
    seen = np.concatenate(asked)
    assert np.isin(seen, [*images, 0]).all(), "padding is zeros"
    assert len(seen[seen > 0]) == len(members.numbers) * len(images)
