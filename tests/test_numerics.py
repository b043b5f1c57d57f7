"""The self-check: right here, able to fail, mended by other options or refused by name, remembered until damaged."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.errors import TrainingError
from mmjax.numerics import Choice, Wrong, choose_options, find_wrong, remember, remembered
from mmjax.numerics_programs import Program, check_programs
from tests.test_backend import asked

USUAL = {"xla_cpu_experimental_ynn_fusion_type": ""}
KEY = {"versions": "jax 1", "threads": "2"}

SMALL = np.array([0.1, 0.2, 0.3], np.float32)
EATEN = Program(
    "a sum that rounding eats",
    lambda x, large: ((x + large) - large + 1.0,),
    (SMALL, np.array(1e8, np.float32)),
    lambda x, large: (np.ones_like(x),),
    tolerance=0.05,
)
"""1 as IEEE rounds, `x + 1` where a compiler reorders."""


def doubled(scale: float, name: str = "doubling") -> Program:
    """A program that doubles, expected to multiply by `scale`."""
    return Program(name, lambda x: (x * 2,), (SMALL,), lambda x: (x * scale,), tolerance=1e-4)


def test_every_program_is_right_here() -> None:
    programs = check_programs(on_cpu=True)
    assert find_wrong(programs, USUAL) == ()
    assert len({program.name for program in programs}) == len(programs)
    values = [out for program in programs for out in program.expected(*program.inputs)]
    assert all(np.isfinite(value).all() and np.abs(value).max() > 0.1 for value in values)


@pytest.mark.parametrize("index", range(len(check_programs(on_cpu=True))))
def test_every_program_can_be_wrong(index: int) -> None:
    program = check_programs(on_cpu=True)[index]
    off = 1 + 2 * program.tolerance
    (wrong,) = find_wrong([program._replace(expected=lambda *x: tuple(y * off for y in program.expected(*x)))], USUAL)
    assert (wrong.program, wrong.tolerance) == (program.name, program.tolerance)
    assert program.tolerance < wrong.difference < 3 * program.tolerance + 0.02


def test_what_is_no_number_is_wrong() -> None:
    nothing = Program("a root", lambda x: (x**0.5,), (-SMALL,), lambda x: (np.abs(x),), tolerance=1e9)
    (wrong,) = find_wrong([doubled(2.0), nothing], {})
    assert wrong.program == "a root"
    assert np.isnan(wrong.difference)


def test_wrong_programs_are_refused_by_name() -> None:
    with pytest.raises(TrainingError) as refused:
        choose_options([doubled(2.0, "right"), doubled(2.5), doubled(-2.0, "turning")], [USUAL, {}], on="this CPU")
    assert refused.value.problems == (
        "numerics: expected doubling as NumPy computes it, within 0.0001 of the largest value, got a difference of 0.2 "
        "on this CPU; models would be as wrong: use another version of jaxlib, or another device",
        "numerics: expected turning as NumPy computes it, within 0.0001 of the largest value, got a difference of 2 "
        "on this CPU; models would be as wrong: use another version of jaxlib, or another device",
    )
    assert refused.value.exit_code == 4


def test_other_options_mend_what_they_can() -> None:
    reordering, exact = {"xla_cpu_enable_fast_math": True}, {"xla_cpu_enable_fast_math": False}
    assert [wrong.program for wrong in find_wrong([EATEN], reordering)] == [EATEN.name]
    found = choose_options([doubled(2.0), EATEN], [reordering, exact], on="this CPU")
    assert found == Choice(
        exact,
        (
            "numerics: a sum that rounding eats: wrong on this CPU as usually compiled; right, and so used from now "
            "on, with xla_cpu_enable_fast_math=False",
        ),
    )


def test_an_option_that_xla_does_not_know_is_told() -> None:
    found = choose_options([doubled(2.0)], [{"xla_no_such_option": True}], on="this CPU")
    assert found == Choice({}, ("numerics: xla_no_such_option: no option of this XLA, left out",))


def test_ynnpack_is_caught_where_it_is_wrong() -> None:
    wrong = find_wrong(check_programs(on_cpu=True), {})
    if not wrong:
        pytest.skip("this jaxlib computes rightly with YNNPACK on this CPU")
    assert {each.program for each in wrong} <= {
        "bfloat16 convolutions with norms",  # jaxlib 0.12 with AVX-512 BF16
        "matrix-vector products of many rows, summed",  # jaxlib 0.10.2, jax #39103
    }


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_a_damaged_memory_is_none(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder, choice = tmp_path_factory.mktemp("memory"), Choice(USUAL, ("numerics: told",))
    remember(folder, KEY, choice)
    (path,) = folder.iterdir()
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(content[:at])
        assert remembered(folder, KEY) is None
    else:
        content[at] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        assert remembered(folder, KEY) in (None, choice)
    remember(folder, KEY, choice)
    assert remembered(folder, KEY) == choice


def test_what_is_remembered_is_for_one_key(tmp_path: Path) -> None:
    assert remembered(tmp_path, KEY) is None
    remember(tmp_path, KEY, Choice({}))
    (path,) = tmp_path.iterdir()
    assert remembered(tmp_path, KEY) == Choice({})
    assert remembered(tmp_path, KEY | {"threads": "1"}) is None
    remember(tmp_path, KEY | {"threads": "1"}, Choice({"xla_x": 1}))
    (other,) = set(tmp_path.iterdir()) - {path}
    other.write_bytes(path.read_bytes())
    assert remembered(tmp_path, KEY | {"threads": "1"}) is None


def test_a_check_that_passed_is_not_made_again(tmp_path: Path) -> None:
    assert asked("cpu", 1, MMJAX_CACHE_DIR=str(tmp_path))[-2] == []
    (path,) = (tmp_path / "numerics").iterdir()
    key = json.loads(path.read_bytes())["key"]
    assert key["threads"] == "1"
    assert remembered(path.parent, key) == Choice(USUAL)
    remember(path.parent, key, Choice(USUAL, ("numerics: remembered",)))
    assert asked("cpu", 1, MMJAX_CACHE_DIR=str(tmp_path))[-2] == ["numerics: remembered"]


def test_wrong_says_by_how_much() -> None:
    assert find_wrong([doubled(1.0)], {}) == (Wrong("doubling", 1.0, 1e-4),)
