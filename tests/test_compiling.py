"""What a fit compiles: each program once, the same that the model answers with."""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.artifact.bundle import load_bundle
from mmjax.artifact.predictor import golden_answers, golden_columns, make_predictor
from mmjax.backend import compile_ahead, compiled, platform, reference_mode
from mmjax.train import fit
from mmjax.training.events import all_finite
from tests.doors import HEADER, table_config, table_rows, write_csv, write_table


class _Counts(logging.Handler):
    """Counts programs by name as JAX tells of them, whether they were compiled or found in the compile cache."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        if told := re.match(r"Finished XLA compilation of jit\((.*?)\)", record.getMessage()):
            self.found[told[1]] += 1


@pytest.fixture
def programs() -> Iterator[Counter[str]]:
    """How often each program was compiled from now on, by name."""
    logger, counts = logging.getLogger("jax._src.dispatch"), _Counts()
    logger.addHandler(counts)
    propagates, logger.propagate = logger.propagate, False
    jax.config.update("jax_log_compiles", True)  # for all threads
    yield counts.found
    jax.config.update("jax_log_compiles", False)
    logger.removeHandler(counts)
    logger.propagate = propagates


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_fit_compiles_each_program_once(tmp_path: Path, programs: Counter[str], task: str) -> None:
    """With golden rows, and answers to many rows; programs that were begun ahead are those that run."""
    rows = [(*row[:-1], row[-1] if task == "classification" else str(len(row[2]))) for row in table_rows(400)]
    config = table_config(write_csv(tmp_path / "table.csv", HEADER, rows), task=task)
    predictor = fit(config, run_dir=tmp_path / "run", registry=None).predictor
    predictor.predict([dict(zip(HEADER, row, strict=True)) for row in table_rows(300)])
    for name in ("chunk", "forward", "of_batch", "of_draws"):
        assert (name, programs[name]) == (name, 1)
    assert programs["total"] == 3  # one for each split: the loss of all its rows at once


def test_compiled_ahead_is_compiled_for_the_call(programs: Counter[str]) -> None:
    program = compiled(lambda x, count: {"added": x + count})
    compile_ahead(program, jax.ShapeDtypeStruct((3,), jnp.float32), 2).result()
    assert program(np.ones(3, np.float32), 5)["added"].tolist() == [6.0] * 3
    assert programs["<lambda>"] == 1


def test_compiling_ahead_raises_where_it_is_waited_for() -> None:
    with pytest.raises(TypeError, match="shapes"):
        compile_ahead(compiled(lambda x: x + jnp.ones(3)), jax.ShapeDtypeStruct((2,), jnp.float32)).result()


@pytest.mark.skipif(platform() != "cpu", reason="elsewhere golden rows are answered twice")
def test_on_a_cpu_the_reference_mode_is_the_usual_one(tmp_path: Path) -> None:
    """Why golden rows are answered once: f32 products are whole at any precision, to the bit."""
    config = table_config(write_table(tmp_path / "table.csv"))
    contents = load_bundle(fit(config, run_dir=tmp_path / "run", registry=None).bundle).contents
    predictor = make_predictor(
        contents.config, contents.schema, fit(config, run_dir=tmp_path / "b", registry=None).predictor.states
    )
    usual = golden_answers(predictor, golden_columns(contents.golden))
    with reference_mode():
        reference = golden_answers(
            make_predictor(contents.config, contents.schema, predictor.states), golden_columns(contents.golden)
        )
    np.testing.assert_array_equal(usual["probabilities"], reference["probabilities"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_none_is_seen(bad: float) -> None:
    tree = {"a": jnp.ones((3, 4)), "b": (jnp.arange(3), jnp.ones(5, jnp.bfloat16))}
    assert all_finite(tree)
    assert not all_finite({**tree, "a": tree["a"].at[1, 2].set(bad)})
    assert not all_finite({**tree, "b": (tree["b"][0], tree["b"][1].at[4].set(bad))})
