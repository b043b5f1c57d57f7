"""What an import costs: packages that one part needs are not paid by the others."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = ("jax", "flax", "optax", "orbax", "grain", "pandas", "PIL", "litestar", "uvicorn", "sklearn", "scipy", "torch")


def loaded_by(statement: str) -> set[str]:
    """The heavy packages in a fresh process after `statement`."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout)) & set(HEAVY)


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import mmjax", set()),
        ("import mmjax.errors, mmjax.config, mmjax.config_load, mmjax.schema", set()),
        ("import mmjax.artifact.predictor, mmjax.data.encode", {"jax", "flax", "PIL"}),
        ("from mmjax import load_config", set()),
        ("from mmjax import Client", set()),
    ],
)
def test_an_import_loads_only_what_it_needs(statement: str, allowed: set[str]):
    assert loaded_by(statement) - allowed == set()


def test_the_names_of_the_notebook_surface_resolve():
    import mmjax

    for name in mmjax.__all__:
        assert getattr(mmjax, name) is not None
