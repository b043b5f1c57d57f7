"""The story: train twice, read in the first line that a simple model is better, and see what is larger than noise."""

import re
from pathlib import Path

import pytest

from mmjax.analysis.card import model_card
from mmjax.analysis.present import results_text
from mmjax.artifact.bundle import load_bundle
from mmjax.config_load import config_from_dict
from mmjax.registry import command as registry_door
from mmjax.runs import command as runs_door
from mmjax.train import FitResult, fit
from tests.doors import door, table_config, write_table
from tests.rough import roughly


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[FitResult]]:
    """A network that hardly learns, one that does, and one of another split."""
    home = tmp_path_factory.mktemp("worth")
    first = table_config(write_table(home / "table.csv", rows=300))
    done = []
    for rate, seed in ((1e-6, 0), (0.05, 0), (0.05, 1)):
        content = {
            "seed": seed,
            "training": {"epochs": 8, "batch_size": 16, "learning_rate": rate, "calibration": "none"},
        }
        config = config_from_dict({**_dict(first), **content}, "test")
        with roughly():
            done.append(fit(config, runs_dir=home / "runs", registry=home / "registry"))
    return home, done


def _dict(config) -> dict:
    from mmjax.config_load import config_to_dict

    return {name: value for name, value in config_to_dict(config).items() if name != "training"}


def test_a_simple_model_that_is_better_comes_first(trained) -> None:
    _, (poor, _, _) = trained
    report = poor.report
    verdict = report["verdict"]
    assert " is better than this network on test: " in verdict
    assert verdict.endswith("; train longer first: training.epochs is 8, the recipe's choice is 100")
    assert next(iter(report)) == "verdict"
    assert results_text(report, width=80).splitlines()[0] == verdict
    assert model_card(report).startswith("> **")
    assert "is better than this network" in model_card(report).splitlines()[0]
    assert "seconds" not in model_card(report).partition("## Was the network worth it")[2].partition("##")[0]
    names = [one["name"] for one in report["baselines"]["baselines"]]
    assert names[1:] == [names[1], "k nearest neighbours"]
    network, metrics = report["baselines"]["network"], poor.metrics["test"]
    assert network == pytest.approx({name: metrics[name] for name in network}, rel=1e-9)
    for name, (low, high) in report["intervals"]["test"].items():
        assert low <= metrics[name] <= high


def test_compare_tells_differences_from_noise(trained, capsys) -> None:
    home, (poor, good, other) = trained
    names = [f"{each.name}:{each.version}" for each in (poor, good, other)]
    answers = [load_bundle(each.bundle).contents.answers for each in (poor, good)]
    assert answers[0] is not None
    assert answers[1] is not None
    assert (answers[0].row == answers[1].row).all()
    asked = ("compare", *names[:2], "--registry", str(home / "registry"))
    text = door(capsys, registry_door, *asked)
    assert re.search(r"of accuracy, log_loss, brier(, roc_auc)?, larger than noise on test: ", text.out)
    assert f"a paired bootstrap over the same {answers[0].total} test rows" in text.out
    runs = [str(each.run_dir) for each in (poor, good)]
    assert "a paired bootstrap over the same" in door(capsys, runs_door, "compare", *runs).out
    text = door(capsys, registry_door, "compare", *names[1:], "--registry", str(home / "registry"))
    assert "the test rows differ" in text.out
    assert "unpaired bootstrap" in text.out


def test_what_to_try_is_what_can_help(trained) -> None:
    """Nothing was cut, so other models; and weights and threshold of a network that learns of noise are told of."""
    home, _ = trained
    asked = _dict(table_config(home / "table.csv", target_column="open"))
    del asked["model"]
    training = {"learning_rate": 1e-6, "class_weights": "balanced", "threshold": 0.3}
    config = config_from_dict({**asked, "name": "weighted", "preset": "fast", "training": training}, "test")
    with roughly():
        report = fit(config, runs_dir=home / "runs", registry=None).report
    verdict, notes = report["verdict"], report["baselines"]["notes"]
    assert verdict.endswith("; try preset: best, or split.folds: 5")
    assert "; judged by roc_auc, as training weighted this network's classes" in verdict
    assert notes == ["this network's classes are by its threshold 0.3, the baselines' by the most probable"]
