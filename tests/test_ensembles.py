"""Many models as one: members, folds and seeds, against models trained alone, however they are computed."""

import shutil
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.analysis.present import results_text
from mmjax.analysis.report import members_note
from mmjax.artifact.bundle import load_bundle
from mmjax.artifact.predictor import load_predictor
from mmjax.check import check
from mmjax.config import Config
from mmjax.config_load import config_from_dict
from mmjax.data.decode import encode_png
from mmjax.data.prepare import Prepared, prepare
from mmjax.data.prepared import rows_to_learn
from mmjax.data.split import Split, deal_folds
from mmjax.errors import ConfigError, DataError
from mmjax.evaluate import evaluate_model, evaluation_report
from mmjax.parts import States, build_parts
from mmjax.recipe import resolve
from mmjax.train import fit
from mmjax.training.checkpoint import _position_to_json, load, save
from mmjax.training.events import TrainResult, train_events, watch
from mmjax.training.members import MEMBER_LOOPS, Members, member_of, where_active
from mmjax.training.program import Snapshot
from mmjax.training.scoring import metrics_of, score
from mmjax.training.setup import Setup, set_up
from mmjax.training.state import eval_variables, on_host
from mmjax.transforms.base import stack_states
from mmjax.transforms.piecewise import piecewise_linear
from mmjax.transforms.tabular import only_seen
from tests.doors import write_csv, write_table
from tests.rough import roughly

QUICK = {
    "model": {"name": "mlp", "architecture": {"hidden_layers": [6], "dropout": 0.1}},
    "training": {"epochs": 3, "batch_size": 8, "learning_rate": 0.03},
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("members") / "table.csv", rows=90)


def config_of(table: Path, *, split: dict[str, Any] | None = None, **training: Any) -> Config:
    several = "folds" in (split or {}) or training.keys() & {"members", "seeds"}
    content = {
        "name": "many",
        "data": {"tabular": {"path": str(table), "target_column": "kind", "id_column": "id"}},
        "model": QUICK["model"],
        "training": QUICK["training"] | ({"member_loop": "map"} if several else {}) | training,
        **({"split": split} if split else {}),
    }
    return config_from_dict(content, "test")


def ready(config: Config) -> tuple[Config, Prepared, Setup]:
    prepared = prepare(config)
    train_rows, validation_rows = rows_to_learn(prepared.split)
    config, _ = resolve(config, prepared.schema, train_rows=train_rows, validation_rows=validation_rows)
    return config, prepared, set_up(config, prepared, build_parts(config, prepared.schema))


def trained(setup: Setup, resumed: Snapshot | None = None) -> tuple[TrainResult, list[Snapshot]]:
    kept: list[Snapshot] = []

    def keep(snapshot: Snapshot):
        arrays = on_host((snapshot.state, snapshot.totals, snapshot.best))
        kept.append(Snapshot(*arrays, snapshot.position))
        return ()

    return watch(train_events(setup.state, setup.task, setup.plan, resumed), (), keep), kept


def alone(setup: Setup, index: int) -> Setup:
    """The same run with one of its members only."""
    members = setup.task.members
    assert members is not None
    one = Members(*((part[index],) for part in members[:3]), members.folds)

    def measure(variables: Any, active: np.ndarray) -> list[dict[str, float]]:
        count = len(members.numbers)
        alike = jax.tree.map(lambda leaf: np.repeat(leaf, count, 0), variables)
        return setup.task.measure(alike, np.repeat(active, count))[index : index + 1]

    only = [slice(index, index + 1)]
    transform = member_of(setup.task.fitted[0], only[0]) if members.folds else setup.task.fitted[0]
    task = setup.task._replace(members=one, fitted=(transform, setup.task.fitted[1]), measure=measure)
    return setup._replace(state=member_of(setup.state, only[0]), task=task)


def close(a: Any, b: Any, *, atol: float) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=atol), a, b)


CASES = {
    "members": {"members": 3},
    "folds": {"split": {"folds": 3}},
    "folds of members": {"members": 2, "split": {"folds": 2}},
    "seeds": {"seeds": [4, 9]},
}


@pytest.mark.parametrize("case", CASES)
def test_each_member_is_what_it_would_be_alone(table: Path, case: str):
    _, _, setup = ready(config_of(table, **CASES[case]))
    together, _ = trained(setup)
    assert setup.task.models > 1
    for index in range(setup.task.models):
        single, _ = trained(alone(setup, index))
        close(member_of(together.variables, index), member_of(single.variables, 0), atol=1e-5)
        assert together.best_epochs[index] == single.best_epochs[0]
    kernels = jax.tree.leaves(together.variables["params"])[-1]
    assert not np.allclose(kernels[0], kernels[1])


@pytest.mark.parametrize("how", MEMBER_LOOPS)
def test_how_members_are_computed_changes_nothing_but_rounding(table: Path, how: str):
    results = []
    for way in (how, "map"):
        _, _, setup = ready(config_of(table, split={"folds": 3}, ema_decay=0.9, member_loop=way))
        results.append(trained(setup)[0])
    close(results[0].variables, results[1].variables, atol=1e-5)
    assert results[0].best_epochs == results[1].best_epochs


def test_member_zero_is_the_single_model(table: Path):
    _, _, several = ready(config_of(table, members=2))
    _, _, single = ready(config_of(table))
    close(member_of(trained(several)[0].variables, 0), trained(single)[0].variables, atol=1e-5)


def test_a_member_that_has_stopped_stays_as_it_is(table: Path):
    """Members stop by their own patience: what one has when it stops is what it ends with."""
    config = config_of(table, members=3, epochs=12, learning_rate=0.5, early_stopping={"enabled": True, "patience": 1})
    _, _, setup = ready(config)
    result, kept = trained(setup)
    ends = [one for one in kept if one.position.batch == 0]
    active = np.array([one.position.stop.active for one in ends])
    stopped = active.argmin(axis=0)
    assert not active[-1].any()
    assert len(set(stopped.tolist())) > 1, "no two members stopped apart: the seed of this test is badly chosen"
    for index, epoch in enumerate(stopped.tolist()):
        close(member_of(ends[epoch].state, index), member_of(ends[-1].state, index), atol=0.0)
        assert result.best_epochs[index] == epoch  # the one before it stopped, counted from 1


def test_a_run_of_members_goes_on_to_the_same_bits(table: Path, tmp_path: Path):
    _, _, setup = ready(config_of(table, split={"folds": 3}, early_stopping={"enabled": True, "patience": 2}))
    whole, kept = trained(setup)
    middle = next(one for one in kept if one.position.epoch == 2)
    step = int(middle.state.step.max())
    arrays = jax.tree.leaves((middle.state, middle.totals, middle.best))
    save(tmp_path, step, arrays, _position_to_json(middle, arrays), keep=1)
    resumed, _ = trained(setup, load(tmp_path / str(step), setup.state))
    close(resumed.variables, whole.variables, atol=0.0)
    assert (resumed.history, resumed.best_epochs) == (whole.history, whole.best_epochs)


def test_metrics_of_members_beside_each_other_are_those_of_each_alone(table: Path, tmp_path: Path) -> None:
    header, *lines = table.read_text().splitlines()
    weighed = [f"{line},{(0.0, 0.5, 3.0)[index % 3]}" for index, line in enumerate(lines)]
    (tmp_path / "weighed.csv").write_text("\n".join([f"{header},weight", *weighed]) + "\n")
    plain = msgspec.to_builtins(config_of(table, members=2, split={"folds": 5}))
    plain["data"]["tabular"] |= {"path": str(tmp_path / "weighed.csv"), "weight_column": "weight"}
    _, prepared, setup = ready(config_from_dict(plain, "test"))
    members, scorer, states = setup.task.members, setup.scorer, States(eval_variables(setup.state), *setup.fitted)
    assert members is not None
    assert len({len(held) for held in members.held}) > 1  # folds of two sizes
    rows = [held if index != 3 else held[:0] for index, held in enumerate(members.held)]
    for index, (found, own, held) in enumerate(
        zip(scorer.metrics(states, rows), scorer.each(states), rows, strict=True)
    ):
        if index == 3:  # that one learns no more
            assert found == {}
            continue
        scores = score(scorer.member, own, prepared.batch, held, largest=16, smallest=16)
        answers = scorer.answers(held)
        expected = {"loss": scorer.loss(scores.outputs, answers)} | metrics_of(prepared.schema, scores, answers)
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_out_of_fold_answers_are_those_of_models_that_never_saw_the_row(table: Path):
    _, prepared, setup = ready(config_of(table, members=2, split={"folds": 3}))
    result, _ = trained(setup)
    states = States(result.variables, *setup.fitted)
    scores, answers = setup.scorer.scores(states, "validation")
    rows, members = prepared.split.train, setup.task.members
    assert members is not None
    assert sorted(np.concatenate(members.held[::2]).tolist()) == rows.tolist()
    np.testing.assert_array_equal(answers["label"], prepared.batch["label"][rows])
    for fold in range(3):
        held = members.held[2 * fold]
        assert not set(held.tolist()) & set(members.rows[2 * fold].tolist())
        logits = [
            np.asarray(setup.scorer.member(*setup.scorer.each(states)[index], _inputs(prepared, held))[0])
            for index in (2 * fold, 2 * fold + 1)
        ]
        wanted = np.mean([np.asarray(jax.nn.softmax(each)) for each in logits], axis=0)
        np.testing.assert_allclose(scores.probabilities[np.searchsorted(rows, held)], wanted, atol=1e-6)


def _inputs(prepared: Prepared, rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[rows] for name, values in prepared.batch.items() if name not in ("label", "weight")}


@given(
    st.integers(2, 6),
    st.lists(st.integers(0, 3), min_size=12, max_size=60),
    st.integers(0, 100),
)
def test_folds_hold_out_every_row_once_and_keep_classes(folds: int, labels: list[int], seed: int):
    n, classes = len(labels), np.array(labels)
    split = Split(np.arange(0, n, 1), np.array([], np.int64), np.array([], np.int64), ())
    dealt = deal_folds(split, folds, seed=seed, labels=classes).folds
    sizes = np.bincount(dealt, minlength=folds)
    assert np.ptp(sizes) <= 1
    for k in range(4):
        assert np.ptp(np.bincount(dealt[classes == k], minlength=folds)) <= 1
    groups = np.array([f"g{label}{i % 3}" for i, label in enumerate(labels)], object)
    if len(set(groups)) >= folds:
        grouped = deal_folds(split, folds, seed=seed, groups=groups).folds
        assert all(len(set(grouped[groups == name].tolist())) == 1 for name in set(groups))
        assert len(set(grouped.tolist())) == folds


def test_more_folds_than_rows_are_refused():
    few = Split(np.arange(3), np.array([], np.int64), np.array([], np.int64), ())
    with pytest.raises(DataError, match=r"split.folds: expected at most 3"):
        deal_folds(few, 4, seed=0)
    with pytest.raises(DataError, match=r"split.folds: expected at most 2, the groups that are not for test, got 3"):
        deal_folds(few, 3, seed=0, groups=np.array(["a", "b", "a"], object))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=20))
def test_only_seen_categories_are_known(rows: list[tuple[int, int]]):
    transform = only_seen((5, 3))
    codes = np.array(rows, np.int32)
    state = transform.fit({"category": codes})
    everything = np.array([(i, j) for i in range(5) for j in range(3)], np.int32)
    for told, (i, j) in zip(transform.apply(state, {"category": everything})["category"], everything, strict=True):
        assert told[0] == (i if i in codes[:, 0] else 0)
        assert told[1] == (j if j in codes[:, 1] else 0)


def test_states_of_different_length_give_the_same_codes_and_zeros():
    rng = np.random.default_rng(0)
    transform = piecewise_linear(8)
    batches = [{"numeric": rng.normal(size=(40, 2)).astype(np.float32).round(1)} for _ in range(2)]
    batches[1]["numeric"][:, 1] = rng.integers(0, 3, 40)
    states = [transform.fit(batch) for batch in batches]
    together = stack_states(states)
    widths = [len(state["lower"]) for state in states]
    assert widths[0] != widths[1]
    for index, (state, batch) in enumerate(zip(states, batches, strict=True)):
        own = transform.apply(state, batch)["dense"]
        padded = transform.apply(member_of(together, index), batch)["dense"]
        np.testing.assert_array_equal(padded[:, : widths[index]], own)
        assert not padded[:, widths[index] :].any()


def test_where_active_keeps_the_rest():
    new, old = {"a": np.ones((2, 3)), "b": np.ones(2)}, {"a": np.zeros((2, 3)), "b": np.zeros(2)}
    found = where_active(np.array([True, False]), new, old)
    assert found["a"].tolist() == [[1, 1, 1], [0, 0, 0]]
    assert found["b"].tolist() == [1, 0]


REFUSED = {
    "one fold": ({"split": {"folds": 1}}, "split.folds: expected 2 or more"),
    "folds by time": ({"split": {"folds": 3, "strategy": "time", "column": "when"}}, "got time"),
    "seeds and members": ({"seeds": [1, 2], "members": 2}, "expected no `training.members` with seeds"),
    "a seed twice": ({"seeds": [1, 1]}, "got one twice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(table: Path, case: str):
    changes, told = REFUSED[case]
    with pytest.raises(ConfigError, match=told):
        config_of(table, **changes)


def test_members_of_streamed_rows_are_refused(table: Path, tmp_path: Path):
    config = config_of(table, members=2)
    data = msgspec.structs.replace(config.data, loading="streamed")
    cache = msgspec.structs.replace(config.data.cache, path=str(tmp_path / "cache"))
    config = msgspec.structs.replace(config, data=msgspec.structs.replace(data, cache=cache))
    with pytest.raises(ConfigError, match=r"training.members: expected rows in memory"):
        ready(config)


def test_a_bundle_of_folds_answers_as_one_model_with_uncertainty(table: Path, tmp_path: Path):
    told: list[str] = []
    config = config_of(table, split={"folds": 3}, calibration="temperature")
    config = msgspec.structs.replace(
        config, training=msgspec.structs.replace(config.training, member_loop=msgspec.UNSET)
    )
    with roughly():
        result = fit(config, runs_dir=tmp_path / "runs", registry=None, tell=told.append)
    assert any(line.startswith("members: ") for line in told)
    assert any("fitted on 72 out-of-fold rows" in line for line in told)
    assert set(result.metrics) == {"test", "out_of_fold", "train"}
    assert [member["number"] for member in result.report["members"]["each"]] == [0, 1, 2]
    text = results_text(result.report, width=80)
    assert "3 models of 3 folds, each alone (test)" in text
    assert "each with the calibration of the model" in text
    fact, bundle = result.report["answers"]["calibration"], load_bundle(result.bundle).contents
    assert 0.5 < fact["mean_temperature"] < 1.0
    assert bundle.states["output"]["mean_temperature"] == np.float32(fact["mean_temperature"])
    assert bundle.states["output"]["temperature"] == np.float32(fact["temperature"])
    assert "of their mean (as sure as one of them)" in bundle.card
    held = result.report["metrics"]["out_of_fold"]["log_loss"]  # at the temperature of one fold's models
    assert held == pytest.approx(fact["splits"]["out_of_fold"]["after"]["log_loss"])
    assert held <= fact["splits"]["out_of_fold"]["before"]["log_loss"]
    leaky = result.report | {"leak": {"rows": 1, "of": 18, "metrics": {"accuracy": 0.5}}}
    text = results_text(evaluation_report(leaky, evaluate_model(result.predictor, table)), width=80)
    assert "each alone" not in text  # that is of other rows than these
    assert "copies of training rows" not in text
    assert "kept the best epoch of each member" in text
    rows = {"size": [0.5, None], "colour": ["red", "blue"], "open": ["yes", "no"], "when": ["2024-03-04", None]}
    answers = load_predictor(result.bundle).predict(rows)
    assert answers.uncertainty is not None
    assert answers.uncertainty.shape == (2,)
    assert 0.0 < answers.uncertainty.min() < 1.0
    np.testing.assert_allclose(answers.probabilities.sum(axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize("several", [{"split": {"folds": 3}}, {"members": 2}, {"seeds": [0, 1]}])
def test_members_alone_are_called_by_the_threshold_of_the_model(several: dict[str, Any], tmp_path: Path):
    random = np.random.default_rng(0)
    size = random.normal(size=200)
    rows = [(f"{x:.3f}", "yes" if x + random.normal() > 0 else "no") for x in size]
    path = write_csv(tmp_path / "t.csv", ("size", "kind"), rows)
    config = config_of(path, threshold=0.9999, calibration="none", **several)
    data = msgspec.structs.replace(config.data, tabular=msgspec.structs.replace(config.data.tabular, id_column=None))
    with roughly():
        result = fit(msgspec.structs.replace(config, data=data), runs_dir=tmp_path / "runs", registry=None)
    for member in result.report["members"]["each"]:
        assert member["test"]["recall"] == member["validation"]["recall"] == 0.0
        assert member["test"]["roc_auc"] > 0.6
    assert "each with the threshold of the model" in results_text(result.report, width=80)
    assert "each with the threshold of the model" in load_bundle(result.bundle).contents.card


def test_seeds_keep_the_first_and_tell_the_spread(table: Path, tmp_path: Path):
    result = fit(config_of(table, seeds=[3, 5]), runs_dir=tmp_path / "runs", registry=None)
    each = result.report["members"]["each"]
    assert [member["number"] for member in each] == [3, 5]
    assert each[0]["test"]["accuracy"] == pytest.approx(result.metrics["test"]["accuracy"])
    again = fit(load_bundle(result.bundle).contents.config, runs_dir=tmp_path / "again", registry=None)
    assert [member["number"] for member in again.report["members"]["each"]] == [3]
    assert again.metrics["test"] == pytest.approx(result.metrics["test"], abs=1e-5)
    rows = {"size": [0.5], "colour": ["red"], "open": ["yes"], "when": ["2024-03-04"]}
    assert load_predictor(result.bundle).predict(rows).uncertainty is None


def test_a_seed_is_worth_the_same_wherever_it_stands_in_the_list(table: Path, tmp_path: Path):
    """Each has the temperature and threshold of its own validation answers."""
    found = {}
    for seeds in ([3, 5], [5, 3]):
        config = config_of(table, seeds=seeds, calibration="temperature", threshold="f1")
        data = msgspec.structs.replace(config.data.tabular, target_column="open")
        config = msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, tabular=data))
        report = fit(config, runs_dir=tmp_path / f"runs{seeds[0]}", registry=None).report
        found[seeds[0]] = {member["number"]: member for member in report["members"]["each"]}
        assert members_note(report) == "each with its own calibration and threshold"
    for number in (3, 5):
        for split in ("validation", "test"):
            assert found[3][number][split] == pytest.approx(found[5][number][split], rel=1e-4)


def test_check_estimates_all_members(table: Path):
    with roughly():
        one, many = (check(config_of(table, **case)) for case in ({}, {"split": {"folds": 3}}))
    assert many.parameters > 2.5 * one.parameters
    assert many.steps == 3 * (48 // 8)
    assert many.estimated_seconds > many.compile_seconds + 3 * many.steps * many.step_seconds


def test_a_member_whose_metric_is_undefined_keeps_its_last_epoch(tmp_path: Path):
    """A fold of one class has no ROC-AUC; its model must not stay as it was after the first epoch."""
    random, rows = np.random.default_rng(0), []
    for i in range(90):
        size = random.normal()
        rows.append((i, f"{size:.3f}", "b" if i % 3 and size > 0 else "a", f"g{i % 3}"))
    path = write_csv(tmp_path / "table.csv", ("id", "size", "kind", "source"), rows)
    shares = {"train_split": 0.9, "validation_split": 0.1, "test_split": 0.0}
    config = config_from_dict(
        {
            "name": "one_class",
            "data": {"tabular": {"path": str(path), "target_column": "kind", "id_column": "id", **shares}},
            "split": {"folds": 3, "strategy": "group", "column": "source"},
            "model": {"name": "mlp", "architecture": {"hidden_layers": [4]}},
            "training": QUICK["training"] | {"member_loop": "map", "early_stopping": {"monitor": "val_roc_auc"}},
        },
        "test",
    )
    _, _, setup = ready(config)
    result, kept = trained(setup)
    undefined = [np.isnan(metrics["roc_auc"]) for metrics in _each_fold(setup, result)]
    assert undefined.count(True) == 1
    index = undefined.index(True)
    assert result.best_epochs[index] == 3
    close(member_of(result.variables, index), member_of(eval_variables(kept[-1].state), index), atol=0.0)


def _each_fold(setup: Setup, result: TrainResult) -> list[dict[str, float]]:
    members = setup.task.members
    assert members is not None
    return setup.scorer.metrics(States(result.variables, *setup.fitted), members.held)


def test_folds_of_data_with_validation_rows_of_their_own_are_refused(tmp_path: Path):
    """Neither trained on nor looked at, they would be dropped in silence; folders for train and test alone are fine."""
    for part, count in (("train", 6), ("val", 2), ("test", 2)):
        for kind in "ab":
            (folder := tmp_path / "images" / part / kind).mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.png").write_bytes(encode_png(np.full((4, 4, 3), 20 * i, np.uint8)))
    content = {"name": "x", "data": {"image": {"path": str(tmp_path / "images")}}, "split": {"folds": 3}}
    with pytest.raises(DataError, match=r"split.folds: expected no rows that are assigned to validation.*got 4"):
        prepare(config_from_dict(content, "test"))
    shutil.rmtree(tmp_path / "images" / "val")
    split = prepare(config_from_dict(content, "test")).split
    assert [len(rows) for rows in split[:3]] == [12, 0, 4]
    assert np.bincount(split.folds).tolist() == [4, 4, 4]
