"""The lock files: exact, complete for what pyproject asks, and free of any machine's own index."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
LOCKS = {"py311.txt": ("3.11",), "py312.txt": ("3.12", "3.13")}
PYTHONS = [(file, python) for file, pythons in LOCKS.items() for python in pythons]
PIN = re.compile(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!+]*( ; python_version == '3\.1[23]')?")


def lines(file: str) -> list[str]:
    """The lines of a lock file that are no comment."""
    text = (REPOSITORY / "requirements" / file).read_text()
    return [line for line in text.splitlines() if not line.startswith("#")]


def pins(file: str, python: str) -> dict[str, str]:
    """Name to version that pip reads from `file` on this Python."""
    requirements = [Requirement(line) for line in lines(file)]
    env = {"python_version": python}
    valid = [r for r in requirements if r.marker is None or r.marker.evaluate(env)]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in valid}


def wanted() -> list[Requirement]:
    """What pyproject asks for: base, dev and serve."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [Requirement(text) for text in (*project["dependencies"], *extras["dev"], *extras["serve"])]


@pytest.mark.parametrize("file", LOCKS)
def test_every_line_is_one_exact_pin(file: str):
    assert [line for line in lines(file) if not PIN.fullmatch(line)] == []


@pytest.mark.parametrize(("file", "python"), PYTHONS)
def test_the_lock_satisfies_the_ranges(file: str, python: str):
    locked = pins(file, python)
    missing = [str(r) for r in wanted() if canonicalize_name(r.name) not in locked]
    outside = [str(r) for r in wanted() if not r.specifier.contains(locked[canonicalize_name(r.name)])]
    assert (missing, outside) == ([], []), "run requirements/lock.py"


def test_each_python_gets_its_jax():
    assert pins("py311.txt", "3.11")["jax"] == "0.10.2"
    assert pins("py312.txt", "3.12")["jax"].startswith("0.12.")
    assert pins("py312.txt", "3.13")["jax"].startswith("0.12.")


@pytest.mark.parametrize(("file", "python"), PYTHONS)
def test_peers_and_trackers_are_not_locked(file: str, python: str):
    assert pins(file, python).keys() & {"torch", "mlflow", "mlflow-skinny", "lightgbm", "xgboost", "catboost"} == set()
