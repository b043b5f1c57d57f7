"""The start-up self-check: small programs, compiled as every other, against NumPy; what is wrong is mended or refused.

Compilers have turned networks into NaN, and sums into other sums, without a word (`numerics_programs`). A check that
passed is remembered for the same versions, processor, options and threads, so that it costs one start only.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import msgspec
import numpy as np

from mmjax.errors import TrainingError
from mmjax.numerics_programs import Program

Options = Mapping[str, bool | int | str]
"""What XLA compiles with: its flags by name."""
COMPILERS = 2
"""Threads that compile."""


class Wrong(NamedTuple):
    """A program that did not return what NumPy does."""

    program: str
    difference: float
    """Largest, as a share of the largest value expected; NaN where a value is none."""
    tolerance: float


class Choice(NamedTuple):
    """With what to compile every program, and what a user should know about that."""

    options: Options
    notes: tuple[str, ...] = ()


class _Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: dict[str, str]
    options: dict[str, bool | int | str]
    notes: tuple[str, ...]
    sha256: str
    """Of the rest."""


def find_wrong(programs: Sequence[Program], options: Options) -> tuple[Wrong, ...]:
    """Return the programs that are wrong when compiled with `options`, all of which XLA must know."""
    groups = [programs[first::COMPILERS] for first in range(min(COMPILERS, len(programs)))]
    with ThreadPoolExecutor(COMPILERS) as pool:
        found = [each for group in pool.map(lambda group: _differences(group, options), groups) for each in group]
    order = {program.name: index for index, program in enumerate(programs)}
    found.sort(key=lambda each: order[each[0].name])
    return tuple(Wrong(p.name, float(d), p.tolerance) for p, d in found if not d <= p.tolerance)


def _differences(programs: Sequence[Program], options: Options) -> list[tuple[Program, float]]:
    """Return how far each program is off, all of them compiled as one: each alone costs half as much again.

    NaN for one that XLA does not compile, or run.
    """

    def run(inputs: Sequence[Sequence[jax.Array]]) -> list[Any]:
        return [program.run(*own) for program, own in zip(programs, inputs, strict=True)]

    inputs = [program.inputs for program in programs]
    try:
        found = jax.jit(run).lower(inputs).compile(compiler_options=dict(options))(inputs)  # as others compile
    except jax.errors.JaxRuntimeError:
        if len(programs) == 1:
            return [(programs[0], float("nan"))]
        return [each for program in programs for each in _differences([program], options)]
    return [(program, _difference(program, got)) for program, got in zip(programs, found, strict=True)]


def _difference(program: Program, got: Sequence[jax.Array]) -> float:
    """Return the largest difference, as a share of the largest value expected; NaN for a value that is none."""
    wide = (each.astype(np.float64) if each.dtype == np.float32 else each for each in program.inputs)
    pairs = zip(map(np.asarray, got), program.expected(*wide), strict=True)
    return float(np.max([np.abs(ours - theirs).max() / np.abs(theirs).max() for ours, theirs in pairs]))


def choose_options(programs: Sequence[Program], candidates: Sequence[Options], *, on: str) -> Choice:
    """Return the first of `candidates` (XLA options, the preferred ones first) that gets every program right.

    Options that this XLA does not know are left out. The notes tell that of the first candidate's, and what it got
    wrong if another one is chosen. Raises TrainingError, naming each wrong program and what it ran `on`, when all fail.
    """
    notes: list[str] = []
    failed: list[tuple[Options, tuple[Wrong, ...]]] = []
    for candidate in candidates:
        options = {name: value for name, value in candidate.items() if _known(name, value)}
        if not failed:
            notes += [f"numerics: {name}: no option of this XLA, left out" for name in candidate if name not in options]
        if any(options == tried for tried, _ in failed):
            continue
        wrong = find_wrong(programs, options)
        if not wrong:
            return Choice(options, (*notes, *(_mended(failed[0][1], options, on) if failed else ())))
        failed.append((options, wrong))
    raise TrainingError(_refused(each, on) for each in failed[0][1])


def _known(name: str, value: bool | int | str) -> bool:
    """Return whether this XLA has the option."""
    try:
        jax.jit(lambda x: x).lower(0).compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True


def _mended(wrong: Sequence[Wrong], options: Options, on: str) -> tuple[str]:
    names = ", ".join(each.program for each in wrong)
    given = ", ".join(f"{name}={value}" for name, value in options.items()) or "its own defaults"
    return (f"numerics: {names}: wrong on {on} as usually compiled; right, and so used from now on, with {given}",)


def _refused(wrong: Wrong, on: str) -> str:
    return (
        f"numerics: expected {wrong.program} as NumPy computes it, within {wrong.tolerance:g} of the largest value, "
        f"got a difference of {wrong.difference:.2g} on {on}; models would be as wrong: use another version of jaxlib, "
        "or another device"
    )


def remembered(folder: Path, key: Mapping[str, str]) -> Choice | None:
    """Return what was chosen under this key; None where nothing is remembered, or nothing that can be trusted."""
    try:
        memory = msgspec.json.decode(_path(folder, key).read_bytes(), type=_Memory)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    choice = Choice(memory.options, memory.notes)
    return choice if memory == _memory(key, choice) else None


def remember(folder: Path, key: Mapping[str, str], choice: Choice) -> None:
    """Write what was chosen under this key, whole or not at all. Raises OSError."""
    handle, half = tempfile.mkstemp(dir=folder, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(_memory(key, choice))))
        os.replace(half, _path(folder, key))
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(half)
        raise


def _memory(key: Mapping[str, str], choice: Choice) -> _Memory:
    content = (dict(key), dict(choice.options), choice.notes)
    return _Memory(*content, hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest())


def _path(folder: Path, key: Mapping[str, str]) -> Path:
    return folder / f"{hashlib.sha256(msgspec.json.encode(dict(key), order='sorted')).hexdigest()[:16]}.json"
