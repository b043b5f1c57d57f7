"""A budget of time: what is cut, in which order, and that the run ends in time and says so."""

import json
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.budget import COMPILED_OFTEN, RESERVE_S, RESERVE_SHARE, Cost, Ready, budget_s, cut_down, cuts, ends_at
from mmjax.config import Config
from mmjax.config_load import config_from_dict
from mmjax.data.prepare import prepare
from mmjax.data.split import PARTS
from mmjax.errors import ConfigError
from mmjax.parts import build_parts
from mmjax.recipe import resolve_prepared
from mmjax.train import fit
from mmjax.training.event_types import EpochEnded, Stopped
from mmjax.training.events import train_events, watch
from mmjax.training.members import try_member_loops
from mmjax.training.setup import set_up
from tests.doors import write_table


def config_of(
    path: Path | str = "table.csv",
    *,
    budget: str = "1m",
    folds: int = 0,
    shares: dict[str, float] | None = None,
    **training: object,
) -> Config:
    content = {
        "name": "hurry",
        "budget": budget,
        "data": {"tabular": {"path": str(path), "target_column": "kind", "id_column": "id"} | (shares or {})},
        "split": {"folds": folds},
        "model": {"name": "mlp", "architecture": {"hidden_layers": [4]}},
        "training": {"epochs": 100, "batch_size": 16, "early_stopping": {"enabled": False}} | training,
    }
    return config_from_dict(content, "test")


def cut(config: Config, cost: Cost, left_s: float) -> dict[str, int]:
    told, *found = cuts(config, cost, left_s)
    assert (told.key, told.value) == ("budget", config.budget)
    assert ("all that is asked trains in about" in told.why) == bool(found)
    return {decision.key: decision.value for decision in found}


ORDER = [
    (300.0, {}),
    (140.0, {"training.members": 2}),
    (90.0, {"training.members": 1}),
    (45.0, {"training.members": 1, "split.folds": 4}),
    (30.0, {"training.members": 1, "split.folds": 3}),
    (15.0, {"training.members": 1, "split.folds": 2}),
    (12.0, {"training.members": 1, "split.folds": 0}),
    (5.0, {"training.members": 1, "split.folds": 0, "training.epochs": 50}),
    (0.0, {"training.members": 1, "split.folds": 0, "training.epochs": 1}),
]


@pytest.mark.parametrize(("left_s", "expected"), ORDER)
def test_members_go_first_then_folds_then_epochs(left_s: float, expected: dict[str, int]):
    config = config_of(folds=5, members=3)
    assert cut(config, Cost(compile_s=0.0, epoch_s=0.1), left_s) == expected


def test_a_budget_that_compiling_alone_uses_up_is_told_of():
    told, *_ = cuts(config_of(), Cost(compile_s=16.0, epoch_s=1.0), 8.0)
    assert told.why == (
        "an epoch of one model takes 1 s and compiling 16 s, 8 s are left for the training, 9 s too few for one epoch: "
        "the run takes longer, all that is asked trains in about 116 s"
    )
    told, *_ = cuts(config_of(), Cost(compile_s=7.0, epoch_s=1.0), 8.0)
    assert "too few" not in told.why


@given(
    st.floats(0.0, 1e4), st.floats(1e-3, 100.0), st.floats(0.0, 50.0), st.integers(1, 400), st.integers(1, 20),
    st.sampled_from([0, 2, 3, 10]),
)  # fmt: skip
def test_what_is_left_fits_or_is_the_least(left_s, epoch_s, compile_s, epochs, members, folds):
    config = config_of(folds=folds, members=members, epochs=epochs)
    wanted = {"training.members": members, "split.folds": folds, "training.epochs": epochs}
    found = wanted | cut(config, Cost(compile_s, epoch_s), left_s)
    assert all(found[key] <= wanted[key] for key in wanted)
    assert found["split.folds"] != 1
    models = max(found["split.folds"], 1) * found["training.members"]
    rows = 1 - 1 / kept if (kept := found["split.folds"]) else 1 - 1 / folds if folds else 1
    epoch_s *= rows / (1 - 1 / folds if folds else 1)  # of fewer folds it has fewer rows
    needed = (COMPILED_OFTEN if models > 1 else 1) * compile_s + models * found["training.epochs"] * epoch_s
    assert needed <= left_s * (1 + 1e-9) or (models, found["training.epochs"]) == (1, 1)


@pytest.mark.parametrize("text", ["10", "ten minutes", "-1m", "1d", "1 m"])
def test_other_durations_are_refused(text: str):
    with pytest.raises(ConfigError, match=r"budget: expected a number and s, m or h, such as 90s, 10m or 2h"):
        config_of(budget=text)


@pytest.mark.parametrize(
    ("value", "forms"),
    [
        (60, "60s for seconds, 60m for minutes or 60h for hours"),
        (1e6, "1000000s for seconds, 1000000m for minutes or 1000000h for hours"),
        ("1.5", "1.5s for seconds, 1.5m for minutes or 1.5h for hours"),
        ("90 s", "90s"),
        ("90sec", "90s"),
        ("2 Hours", "2h"),
        ("2 hrs", "2h"),
        (1e12, "1000000000000s for seconds, 1000000000000m for minutes or 1000000000000h for hours"),
    ],
)
def test_a_number_without_its_unit_is_told_how_to_be_written(value: float | str, forms: str):
    with pytest.raises(ConfigError) as refused:
        config_of(budget=value)
    (told,) = (line for line in str(refused.value).splitlines() if "budget:" in line)
    assert told.endswith(f"; write {forms}, as in `budget: 90s` in YAML or `--set budget=90s` on the command line")
    for form in (word for word in forms.replace(",", "").split() if word[0].isdigit()):
        assert budget_s(config_of(budget=form)) > 0


@pytest.mark.parametrize("value", ["10 ms", "500ms", 0, "0.0", -5])
def test_what_is_no_time_at_all_is_not_guessed_at(value: float | str):
    with pytest.raises(ConfigError) as refused:
        config_of(budget=value)
    assert "; write " not in str(refused.value)


def test_the_end_leaves_time_for_what_follows():
    assert ends_at(config_of(budget="2m"), 1000.0) == pytest.approx(1000 + 120 * (1 - RESERVE_SHARE) - RESERVE_S)


def test_a_run_ends_in_time_and_says_what_was_cut(tmp_path: Path):
    path, lines, events = write_table(tmp_path / "table.csv", rows=120), [], []
    config = config_of(path, budget="20s", folds=3, epochs=1_000_000)
    began = time.monotonic()
    result = fit(config, runs_dir=tmp_path / "runs", registry=None, tell=lines.append, callbacks=(events.append,))
    assert time.monotonic() - began < 20
    assert any(line.startswith("budget: 20s: an epoch of one model takes") for line in lines)
    assert "split.folds: 0: budget 20s: 3 are too many" in lines
    assert any(line.startswith("training.epochs: ") and "1000000 are too many" in line for line in lines)
    (chosen,) = (line for line in lines if line.startswith("budget: trained now: "))
    epochs = result.predictor.config.training.epochs
    assert chosen == f"budget: trained now: 1 model, no folds, epochs: at most {epochs:,}"
    assert any(key == "training.calibration" and value == "none" for key, value in decisions(result))  # decided anew
    assert result.predictor.config.split.folds == 0
    done = [event for event in events if isinstance(event, EpochEnded)]
    assert len(done) > 10
    assert len(done) == result.predictor.config.training.epochs or isinstance(events[-2], Stopped)
    assert ("split.folds", 0) in decisions(result)
    assert "Its training was cut to " in (result.bundle / "card.md").read_text()
    split = json.loads((result.run_dir / "split.json").read_bytes())
    assert "folds" not in split
    assert {part: len(split[part]) for part in PARTS} == result.report["data"]["split_sizes"]
    assert len(split["validation"]) > 0
    assert msgspec.structs.asdict(result.predictor.config)["budget"] == "20s"


def decisions(result) -> list[tuple[str, object]]:
    return [(one["key"], one["value"]) for one in result.report["decisions"]]


def test_a_budget_that_is_enough_cuts_nothing_and_says_so(tmp_path: Path):
    path, lines = write_table(tmp_path / "table.csv", rows=120), []
    fit(config_of(path, budget="10m", epochs=2), runs_dir=tmp_path / "runs", registry=None, tell=lines.append)
    (told,) = (line for line in lines if line.startswith("budget: "))
    assert told.endswith(" s are needed")


def ready(config: Config) -> Ready:
    prepared = prepare(config)
    decided, decisions = resolve_prepared(config, prepared)
    return Ready(decided, decisions, prepared, set_up(decided, prepared, build_parts(decided, prepared.schema)))


def test_fewer_folds_are_decided_anew(tmp_path: Path):
    """What follows from the rows does too: without folds there may be no validation rows to look at."""
    path = write_table(tmp_path / "table.csv", rows=60)
    shares = {"train_split": 0.8, "validation_split": 0.0, "test_split": 0.2}
    asked = config_of(path, folds=3, early_stopping={}, member_loop="map", shares=shares)
    before = ready(asked)
    assert before.config.training.early_stopping.monitor == "val_loss"
    lines: list[str] = []
    found = cut_down(asked, before, cuts(before.config, Cost(0.0, 1.0), 40.0), lines.append)
    assert lines[-1].startswith("budget: trained now: 1 model, no folds, epochs: at most 40; decided anew: ")
    assert "training.early_stopping.enabled=false" in lines[-1]
    assert (found.config.split.folds, found.config.training.epochs) == (0, 40)
    assert found.config.training.early_stopping.enabled is False
    assert found.prepared.split.folds is None
    assert {one.key: one.value for one in found.decisions}["training.epochs"] == 40


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"batch_size": 40}, "training.batch_size: expected at most 25"),
        ({"coverage": 0.9}, "training.coverage: 0.9 expected at least 9 validation rows, got 6"),
    ],
)
def test_what_fewer_folds_cannot_be_names_the_budget(tmp_path: Path, asked: dict[str, object], told: str):
    config = config_of(write_table(tmp_path / "table.csv", rows=64), folds=5, member_loop="map", **asked)
    start, left_s = ready(config), 130.0 if "batch_size" in asked else 50.0
    cut = cuts(start.config, Cost(0.0, 1.0), left_s)
    with pytest.raises(ConfigError, match=r"budget: 1m leaves split.folds: [02]") as refused:
        cut_down(config, start, cut, print)
    assert told in str(refused.value)


def test_a_run_that_goes_on_keeps_what_the_clock_decided(tmp_path: Path):
    """Though it was killed twice: while it trained, and as it began to go on."""
    path, told = write_table(tmp_path / "table.csv", rows=120), []
    config = config_of(path, budget="30s", folds=2, epochs=3)

    class Killed(Exception):
        pass

    def at_an_epoch(event: object) -> None:
        if isinstance(event, EpochEnded):
            raise Killed

    def at_the_data(line: str) -> None:
        if line.startswith("data: "):
            raise Killed

    def start(**options: Any) -> list[str]:
        lines: list[str] = []
        with pytest.raises(Killed):
            fit(config, run_dir=tmp_path / "run", registry=None, **({"tell": lines.append} | options))
        return [line for line in lines if line.startswith(("budget", "members: "))]

    told = start(callbacks=(at_an_epoch,))
    assert [line.partition(":")[0] for line in told] == ["budget", "members"]
    assert told[0].endswith(" are needed")
    start(tell=at_the_data)
    assert start(callbacks=(at_an_epoch,)) == told[:1]  # in the very words: not measured, not tried anew


def test_a_run_with_fewer_folds_is_gone_on_with_though_other_settings_followed_from_them(tmp_path: Path):
    """What the run decided of its fewer folds is not what the recipe decides before the budget cuts them again."""
    path, run = write_table(tmp_path / "table.csv", rows=60), tmp_path / "run"
    shares = {"train_split": 0.8, "validation_split": 0.0, "test_split": 0.2}
    more = {"early_stopping": {}, "member_loop": "map", "shares": shares, "checkpoint": {"enabled": False}}
    asked = config_of(path, budget="10m", folds=3, **more)
    found = cut_down(asked, before := ready(asked), cuts(before.config, Cost(0.0, 1.0), 40.0), print)
    assert {one.key: one.value for one in found.decisions}["training.early_stopping.enabled"] is False

    def interrupt(event: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(asked, run_dir=run, registry=None, callbacks=(interrupt,))
    (run / "decisions.json").write_text(json.dumps([one._asdict() for one in found.decisions]))
    lines: list[str] = []
    result = fit(asked, run_dir=run, registry=None, tell=lines.append)
    assert any(line.startswith("budget: trained now: 1 model, no folds, epochs: at most 40") for line in lines)
    assert result.report["config"]["split"]["folds"] == 0


def test_training_stops_when_the_time_is_over(tmp_path: Path):
    """An estimate that was too low: the clock ends the run, with the best epoch so far."""
    path, events = write_table(tmp_path / "table.csv", rows=120), []
    _, _, _, setup = ready(config_of(path, epochs=1_000_000))
    plan = setup.plan._replace(ends_at=time.monotonic() + 1.0)
    result = watch(train_events(setup.state, setup.task, plan), (events.append,), lambda snapshot: ())
    stopped = [event for event in events if isinstance(event, Stopped)]
    assert [event.reason for event in stopped] == ["the budget is used up"]
    assert 1 <= result.best_epoch <= result.epochs < 1_000_000


@pytest.mark.parametrize(("left_s", "tried"), [(None, 3), (1e12, 3), (-1.0, 1)])
def test_no_more_ways_are_tried_than_the_budget_has_time_for(left_s: float | None, tried: int):
    def make(_how: str):
        return lambda *given: given[0] + 1

    end = None if left_s is None else time.monotonic() + left_s
    found = try_member_loops(make, lambda: (np.zeros(3), np.ones(2, bool)), steps=10**9, most=1, ends_at=end)
    assert len(found) == tried
