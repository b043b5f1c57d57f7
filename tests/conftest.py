"""Strict posture for every test: no silent rank promotion, warnings are errors, one CPU device, sample data at hand."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def getkey():
    """A function that returns a fresh PRNG key at each call."""
    state = {"key": jax.random.key(0)}

    def fresh() -> jax.Array:
        state["key"], key = jax.random.split(state["key"])
        return key

    return fresh


@pytest.fixture(scope="module")
def rough_programs() -> Iterator[None]:
    """All of a file `roughly` compiled; see `tests/rough.py`."""
    from tests.rough import roughly

    with roughly():
        yield


@pytest.fixture(scope="session")
def untrained_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of untrained models of every shape (see `tests/untrained.py`), made once for a worker."""
    from tests.untrained import registry_of_all

    return registry_of_all(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def untrained_server(untrained_registry: Path) -> Iterator[Any]:
    """A live server of them (see `tests/inference_server.py`), one for a worker; `price` is there in two versions."""
    from tests.inference_server import served

    with served(untrained_registry, "numbers", "kinds", "shades", "price:1", "price:2") as server:
        yield server
