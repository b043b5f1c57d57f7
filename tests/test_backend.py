"""The backend: a private compile cache that never stands in the way, the device that was asked for, what XLA says."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import backend
from mmjax.backend import (
    cache_home,
    compiled,
    configure,
    fast_bfloat16,
    platform,
    precompiled,
    reference_mode,
    versions,
)
from mmjax.errors import ConfigError
from tests.doors import REPOSITORY

CACHE_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def no_cache() -> Iterator[None]:
    """A process that has not chosen a compile cache; its choice is given back."""
    before = {name: getattr(jax.config, name) for name in CACHE_SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("no_cache")
def test_the_cache_is_private_and_keyed_by_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMJAX_CACHE_DIR", str(tmp_path / "mine"))
    found = configure()
    folder = Path(found.cache)
    assert folder.parent == tmp_path / "mine" / "xla"
    assert folder.name.startswith(f"jax{jax.__version__}-jaxlib")
    assert [mode(path) for path in (tmp_path / "mine", folder.parent, folder)] == [0o700] * 3
    assert found.notes == ()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert configure().cache == str(folder)


@pytest.mark.usefixtures("no_cache")
def test_a_cache_that_cannot_be_is_one_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMJAX_CACHE_DIR", str(tmp_path / "file"))
    found = configure()
    assert found.cache == ""
    (note,) = found.notes
    assert note.startswith("compile cache: off, ")
    assert f"{tmp_path}/file" in note
    assert note.endswith("; set MMJAX_CACHE_DIR to a private, writable folder")
    assert not jax.config.jax_compilation_cache_dir


@pytest.mark.usefixtures("no_cache")
def test_a_cache_that_others_can_write_to_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMJAX_CACHE_DIR", str(tmp_path))
    folder = Path(configure().cache)
    jax.config.update("jax_compilation_cache_dir", None)
    folder.chmod(0o770)
    (note,) = configure().notes
    assert note == (
        f"compile cache: off, {folder}: others can write to it; set MMJAX_CACHE_DIR to a private, writable folder"
    )


@pytest.mark.usefixtures("no_cache")
def test_a_user_without_a_home_trains_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("MMJAX_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    (note,) = configure().notes
    assert note.startswith("compile cache: off, Could not determine home directory.; ")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setenv("MMJAX_CACHE_DIR", "")
    assert cache_home() == Path("/caches/mmjax")
    monkeypatch.setenv("MMJAX_CACHE_DIR", "/mine")
    assert cache_home() == Path("/mine")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/user"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("MMJAX_CACHE_DIR")
    assert cache_home() == Path("/home/user/.cache/mmjax")


ASK = """
import json
from mmjax.backend import configure
from mmjax.errors import ConfigError
{before}
try:
    print(json.dumps(configure(device={device!r}, threads={threads})))
except ConfigError as error:
    print(json.dumps([str(error)]))
"""


def asked(device: str, threads: int | None, before: str = "", **env: str) -> list:
    """What `configure` returns, or says, in a process of its own that first does what `before` says."""
    code = ASK.format(device=device, threads=threads, before=before)
    settings = os.environ | {"PYTHONPATH": str(REPOSITORY)} | env
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_gpu_that_is_not_there() -> None:
    (message,) = asked("gpu", None, JAX_PLATFORMS="cpu")
    assert message == "device: expected a GPU, found only cpu; set device: auto, or install JAX for your GPU"


def test_a_platform_that_jax_cannot_start() -> None:
    (message,) = asked("auto", None, JAX_PLATFORMS="nonsense")
    assert message.startswith("device: JAX cannot start nonsense (")
    assert message.endswith("unset JAX_PLATFORMS, set device: cpu, or install JAX for your device")


def test_the_cpu_and_its_threads(tmp_path: Path) -> None:
    name, device, threads, cache, notes, _ = asked(
        "cpu", 1, JAX_PLATFORMS="", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "chosen")
    )
    assert (name, device, threads, cache, notes) == ("cpu", "cpu", 1, str(tmp_path / "chosen"), [])


def test_threads_asked_for_after_the_first_array() -> None:
    before = "import os; os.environ.pop('NPROC', None); import jax.numpy as jnp; jnp.ones(2)"
    cores = len(os.sched_getaffinity(0))
    _, _, threads, _, notes, _ = asked("cpu", cores + 1, before)
    assert threads == cores
    assert notes == [f"threads: {cores + 1} was asked for, but this process already runs with {cores}"]


def test_an_environment_that_stands_in_the_way() -> None:
    _, _, threads, _, notes, _ = asked(
        "cpu",
        2,
        PJRT_NPROC="1",
        JAX_COMPILATION_CACHE_DIR=str(REPOSITORY / "pyproject.toml" / "cache"),
        MMJAX_CACHE_DIR=str(REPOSITORY / "pyproject.toml"),
    )
    assert threads == 1
    assert notes == [
        f"compile cache: {REPOSITORY / 'pyproject.toml' / 'cache'} cannot be written to, so programs are compiled anew "
        "at every start",
        "threads: 2 was asked for, but this process already runs with 1",
        "numerics: checked at every start, as MMJAX_CACHE_DIR is no private, writable folder",
    ]


@pytest.mark.parametrize(("said", "threads"), [("3", 3), (" 3 ", 3), ("many", None), ("0", None), ("-2", None)])
def test_a_number_of_threads_that_is_none_stands_in_nobodys_way(
    monkeypatch: pytest.MonkeyPatch, said: str, threads: int | None
) -> None:
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    monkeypatch.setenv("NPROC", said)
    assert configure().threads == (threads or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("flags", ["", "avx512f avx512_bf16"])
def test_bfloat16_is_fast_where_the_cpu_has_it_and_onednn_takes_it(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = backend._cpu_line("flags")
    if flags and "_bf16" not in real:
        pytest.skip("this CPU has no bfloat16 arithmetic")
    monkeypatch.setattr(backend, "_cpu_line", lambda *starts: flags)
    for cached in (backend.fast_bfloat16, backend._compiling):
        cached.cache_clear()
    fast = fast_bfloat16()
    notes = configure(precision="bfloat16").notes
    assert fast or not flags or "onednn" not in repr(backend._compiling("cpu", bfloat16=True).options)
    slow = "precision: bfloat16 is rounded to but not computed in on this cpu: expect no speed from it"
    assert notes == (() if fast else (slow,))
    assert configure(precision="float32").notes == ()
    monkeypatch.undo()
    for cached in (backend.fast_bfloat16, backend._compiling):
        cached.cache_clear()


def test_programs_in_float32_and_in_bfloat16_have_options_of_their_own() -> None:
    narrow = dict(backend._compiling("cpu", bfloat16=True).options)
    assert {**narrow, **backend._compiling("cpu").options} == narrow
    assert "onednn" not in (compiled(lambda x: x @ x).lower(jnp.ones((64, 64))).compile().as_text() or "")


def test_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    found = configure()
    assert (found.platform, platform()) == ("cpu", "cpu")
    assert found.threads >= 1
    with pytest.raises(ConfigError, match="expected a GPU, found only cpu"):
        configure(device="gpu")


def test_compiled_functions_are_the_functions() -> None:
    def scaled(x: jax.Array, *, power: int) -> jax.Array:
        return 2.0 * x**power

    x = jnp.arange(4.0)
    np.testing.assert_array_equal(compiled(scaled, static=("power",))(x, power=3), [0, 2, 16, 54])
    state = jnp.ones(4)
    compiled(lambda a, b: a + b, donate=(0,))(state, x)
    assert state.is_deleted()
    assert not x.is_deleted()


def test_a_program_says_what_it_costs_and_takes_one_shape() -> None:
    matrix = jnp.ones((8, 8), jnp.float32)
    program = precompiled(lambda a, b: a @ b, matrix, matrix)
    np.testing.assert_array_equal(program.run(matrix, matrix), np.full((8, 8), 8.0))
    assert program.flops == pytest.approx(2 * 8**3, rel=0.2)
    assert program.memory_bytes >= 3 * 8 * 8 * 4
    assert program.compile_seconds > 0
    with pytest.raises(TypeError):
        program.run(jnp.ones((4, 4)), jnp.ones((4, 4)))


def test_reference_mode_ends() -> None:
    before = jax.config.jax_default_matmul_precision
    with reference_mode():
        assert jax.config.jax_default_matmul_precision == "highest"
    assert jax.config.jax_default_matmul_precision == before


def test_versions_name_what_decides_the_bits() -> None:
    found = versions()
    assert found["jax"] == jax.__version__
    assert found["numpy"] == np.__version__
    assert set(found) >= {"python", "jaxlib", "flax", "optax"}
