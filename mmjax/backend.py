"""The device, its threads, the compile cache: the one place that compiles.

`configure` must run before the first array is made; every choice it makes, and every fallback, is a line in what it
returns, for the user to read.
"""

import contextlib
import functools
import hashlib
import importlib.metadata as metadata
import os
import platform as machine
import stat
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax._src.xla_bridge import backends_are_initialized  # nothing public tells
from msgspec import UnsetType

from mmjax import numerics_programs
from mmjax.errors import ConfigError
from mmjax.numerics import COMPILERS, Choice, Options, choose_options, find_wrong, remember, remembered

# What oneDNN takes part in cannot be written to the compile cache (`_bfloat16_candidates`): known, nothing to warn of.
warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry for .*: MemoryError")


class Backend(NamedTuple):
    """What the process computes on."""

    platform: str
    """`cpu`, `gpu` or `tpu`."""
    device: str
    threads: int
    cache: str
    """Folder of the persistent compile cache, or an empty string when there is none."""
    notes: tuple[str, ...]
    """Lines for the user: each fallback, and why."""
    options: dict[str, Any]
    """XLA's compiler options, as the numerics check chose them; read only."""


def configure(
    *, device: str = "auto", threads: int | None = None, precision: str | UnsetType = "float32", overlap: bool = True
) -> Backend:
    """Return the Backend after choosing the device, the CPU threads and the compile cache.

    `precision` is what will be computed in: a note says where the device has no arithmetic of its own for it. Without
    `overlap` a CPU computes in the thread that asks: right for a server, which waits for each result anyway. Threads
    and platform are those of the first array made in this process: call this before. Raises ConfigError when `device:
    gpu` is asked for and there is none, TrainingError when the device computes wrongly (`mmjax.numerics`).
    """
    notes: list[str] = []
    if not backends_are_initialized():
        _set_threads(threads)
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if not overlap:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    cache = _set_compile_cache(notes)
    found = _first_device()
    if device == "gpu" and found.platform != "gpu":
        raise ConfigError(
            f"device: expected a GPU, found only {found.platform}; set device: auto, or install JAX for your GPU"
        )
    if device == "cpu" and found.platform != "cpu":
        notes.append(f"device: cpu was asked for, but this process already runs on {found.platform}")
    in_use = threads_in_use()
    if threads not in (None, in_use):
        notes.append(f"threads: {threads} was asked for, but this process already runs with {in_use}")
    notes += _compiling(found.platform).notes
    if precision == "bfloat16" and not fast_bfloat16():
        notes.append(
            f"precision: bfloat16 is rounded to but not computed in on this {found.platform}: expect no speed from it"
        )
    if cache and _numerics_folder() is None:
        notes.append("numerics: checked at every start, as MMJAX_CACHE_DIR is no private, writable folder")
    return Backend(
        found.platform, found.device_kind, in_use, cache, tuple(notes), dict(_compiling(found.platform).options)
    )


def _first_device() -> Any:
    """Return the device that arrays live on; ConfigError when JAX cannot start what JAX_PLATFORMS asks for."""
    try:
        return jax.devices()[0]
    except (RuntimeError, AssertionError) as error:  # the latter where the platform's plugin is not installed
        wanted = jax.config.jax_platforms
        raise ConfigError(
            f"device: JAX cannot start {wanted or 'any device'} ({str(error) or 'not installed'}); "
            "unset JAX_PLATFORMS, set device: cpu, or install JAX for your device"
        ) from error


def _available_threads() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _set_threads(threads: int | None) -> None:
    # XLA sizes its pool from NPROC when the backend starts; in containers it would count the host's cores (jax #27028).
    if threads is not None:
        os.environ["NPROC"] = str(threads)
    elif "PJRT_NPROC" not in os.environ:
        os.environ.setdefault("NPROC", str(_available_threads()))


def threads_in_use() -> int:
    """Return the size of XLA's pool; the first array of a process fixes it. XLA passes over what is no count."""
    said = (os.environ.get(name, "").strip() for name in ("PJRT_NPROC", "NPROC"))
    return next((int(count) for count in said if count.isdecimal() and int(count)), _available_threads())


def cache_home() -> Path:
    """Return mmjax's private cache folder: `$MMJAX_CACHE_DIR`, else `mmjax` in the user's cache folder."""
    explicit = os.environ.get("MMJAX_CACHE_DIR")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmjax"


def _set_compile_cache(notes: list[str]) -> str:
    chosen = jax.config.jax_compilation_cache_dir  # by the user, or here before
    if chosen:
        if "://" not in chosen and not _can_hold_files(Path(chosen)):
            notes.append(f"compile cache: {chosen} cannot be written to, so programs are compiled anew at every start")
        return str(chosen)
    # A folder shared across jaxlib versions or CPUs has crashed programs: key it by both.
    cpu = hashlib.sha256(_cpu_description().encode()).hexdigest()[:12]
    key = f"jax{jax.__version__}-jaxlib{metadata.version('jaxlib')}-{cpu}"
    try:
        folder = _private_folder(cache_home(), "xla", key)
    except (OSError, RuntimeError) as error:  # the latter where a user has no home
        notes.append(f"compile cache: off, {error}; set MMJAX_CACHE_DIR to a private, writable folder")
        return ""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return str(folder)


def _can_hold_files(folder: Path) -> bool:
    """Return whether files can be written into the folder, which JAX makes when it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _private_folder(home: Path, *names: str) -> Path:
    """Return the folder `home/names...`, made with mode 0700; OSError unless it is ours alone to write."""
    folder = home
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in names:
        folder = folder / name
        folder.mkdir(exist_ok=True, mode=0o700)
    found = folder.stat()
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022):
        raise PermissionError(f"{folder}: others can write to it")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder}: not writable")
    return folder


def _cpu_description() -> str:
    """Return what decides the machine code: architecture and CPU flags."""
    return f"{machine.machine()} {machine.processor()} {_cpu_line('flags', 'Features')}"


def _cpu_model() -> str:
    """Return what people call the CPU."""
    return _cpu_line("model name").rpartition(": ")[2] or machine.processor() or machine.machine()


def _cpu_line(*starts: str) -> str:
    """Return the first line of the system's description of the CPU that starts so, or an empty string."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(starts)), "")
    return ""


def compiled(
    function: Callable[..., Any],
    *,
    donate: Sequence[int] = (),
    static: Sequence[str] = (),
    precision: str | UnsetType = "float32",
) -> jax.stages.Wrapped:
    """Return `function` compiled by XLA at its first call with each set of shapes.

    `donate` are positions of arguments whose memory the result may take over: they are dead after the call.
    `precision` is the compute type that its layers were built for: bfloat16 has compiler options of its own.
    """
    return jax.jit(
        function,
        donate_argnums=tuple(donate),
        static_argnames=tuple(static),
        compiler_options=dict(_compiling(jax.default_backend(), bfloat16=precision == "bfloat16").options),
    )


def compile_ahead(program: jax.stages.Wrapped, *arguments: Any, **static: Any) -> Future[None]:
    """Return the Future of compiling `program` in another thread for arguments like these, arrays or shapes.

    A call of `program` after its `result()` finds it compiled. For programs that compile within seconds: a process
    that ends waits for those under way.
    """

    def make() -> None:
        program.lower(*arguments, **static).compile()

    return _compilers().submit(make)


@functools.cache
def _compilers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(COMPILERS, thread_name_prefix="compiler")


@functools.cache
def fast_bfloat16() -> bool:
    """Return whether this device convolves bfloat16 with arithmetic of its own, about twice as fast as f32 or faster.

    On a CPU that takes instructions for it and an XLA that hands the convolution to oneDNN: XLA's own loops round to
    bfloat16 and gain nothing. Compiles one small program, so that the answer is about this XLA.
    """
    device = _first_device()
    if device.platform == "tpu":
        return True
    if device.platform == "gpu":
        capability = str(getattr(device, "compute_capability", ""))
        return capability.split(".")[0].isdecimal() and int(capability.split(".")[0]) >= 8  # Ampere and later
    if len(_bfloat16_candidates(device.platform)) == 1:
        return False
    images, kernel = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((8, 16, 16, 32), (3, 3, 32, 32)))

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return "onednn" in (compiled(convolve, precision="bfloat16").lower(images, kernel).compile().as_text() or "")


@functools.cache
def _compiling(platform: str, *, bfloat16: bool = False) -> Choice:
    """Return what programs of one precision are compiled with: checked against NumPy, now or at a start like this one.

    Raises TrainingError where XLA computes wrongly whatever it is told.
    """
    candidates = _bfloat16_candidates(platform) if bfloat16 else _candidates(platform)
    if bfloat16 and len(candidates) == 1:
        return Choice(candidates[0])

    def choose() -> Choice:
        usual = functools.partial(numerics_programs.check_programs, on_cpu=platform == "cpu")
        programs = numerics_programs.bfloat16_programs if bfloat16 else usual
        return choose_options(programs(), candidates, on=_where(platform))

    return _checked(choose, platform, candidates, Path(numerics_programs.__file__).read_bytes())


def wrong_programs(
    programs: Callable[[], Sequence[numerics_programs.Program]], source: bytes, *, precision: str
) -> tuple[str, ...]:
    """Return the names of the programs that are wrong when compiled as all of `precision` are, by NumPy.

    Remembered for as long as `source`, what the programs are made of, and the device with its XLA are the same.
    """
    here = platform()
    options = _compiling(here, bfloat16=precision == "bfloat16").options

    def names() -> Choice:
        return Choice({}, tuple(wrong.program for wrong in find_wrong(programs(), options)))

    return _checked(names, here, (options,), source + precision.encode()).notes


def _checked(find: Callable[[], Choice], platform: str, candidates: Sequence[Options], source: bytes) -> Choice:
    """Return what `find` does, or did at a start with the same device, versions, options, threads and `source`."""
    key = {
        "versions": f"jax {jax.__version__}, {_where(platform)}",
        "processor": hashlib.sha256(_cpu_description().encode()).hexdigest(),
        "candidates": repr(candidates),
        "flags": os.environ.get("XLA_FLAGS", ""),
        "threads": str(threads_in_use()),
        "programs": hashlib.sha256(source).hexdigest(),
    }
    folder = _numerics_folder()
    found = remembered(folder, key) if folder else None
    if found is None:
        found = find()
        with contextlib.suppress(OSError):  # a full disk: the next start checks again
            if folder:
                remember(folder, key, found)
    return found


def _where(platform: str) -> str:
    device = _cpu_model() if platform == "cpu" else _first_device().device_kind
    return f"jaxlib {metadata.version('jaxlib')} and {device}"


def _candidates(platform: str) -> tuple[Options, ...]:
    """Return what every program is compiled with, and what to try where that computes wrongly.

    YNNPACK in jaxlib 0.12 turns a bf16 ResNet's outputs into NaN on a CPU with AVX-512 BF16 (tests/test_precision.py),
    and has had other wrong results (jax #39103). It is left out where XLA knows the option; an MLP trains as fast.
    """
    if platform != "cpu":
        return ({},)
    usual: Options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    plain: Options = {"xla_cpu_use_onednn": False, "xla_cpu_use_xnnpack": False, "xla_cpu_enable_fast_math": False}
    narrow: Options = {"xla_cpu_max_isa": "AVX2"} if machine.machine() in ("x86_64", "AMD64") else {}
    return usual, {**usual, **plain}, {**usual, **plain, **narrow}


def _bfloat16_candidates(platform: str) -> tuple[Options, ...]:
    """Return what a program in bfloat16 is compiled with, the fastest first; the last is what every program is.

    XLA's own loops round to bfloat16 and compute in f32; oneDNN has convolutions and products in it. For bfloat16 only:
    such a program cannot be written to the compile cache (jaxlib 0.12 ends in `std::bad_alloc`), so it is compiled at
    every start, which small f32 networks would feel.
    """
    usual = dict(_compiling(platform).options)
    if platform != "cpu" or not _BFLOAT16_FLAGS & set(_cpu_line("flags").split()):
        return (usual,)
    return {**usual, "xla_cpu_use_onednn": True, "xla_cpu_experimental_onednn_custom_call": True}, usual


_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}
"""What a CPU with bfloat16 arithmetic says of itself, in /proc/cpuinfo."""


def _numerics_folder() -> Path | None:
    """Return where checks that passed are remembered; None where no private folder can be."""
    try:
        return _private_folder(cache_home(), "numerics")
    except (OSError, RuntimeError):  # the latter where a user has no home
        return None


class Program(NamedTuple):
    """A function compiled for one set of shapes, with what XLA says it costs."""

    run: Callable[..., Any]
    lowered: jax.stages.Lowered
    memory_bytes: int
    """Arguments, results and scratch."""
    compile_seconds: float

    @property
    def flops(self) -> float:
        """XLA's count of the program as it is written; NaN where it does not say.

        Of the compiled program it would not count what is handed to oneDNN (a bfloat16 network's convolutions).
        """
        return float((self.lowered.cost_analysis() or {}).get("flops", float("nan")))


def precompiled(function: Callable[..., Any], *arguments: Any) -> Program:
    """Return `function` compiled ahead for the shapes of `arguments`; it refuses any others."""
    started = time.perf_counter()
    # A function that is compiled already brings its options; XLA refuses them on an inner one.
    whole = function if isinstance(function, jax.stages.Wrapped) else compiled(function)
    lowered = whole.lower(*arguments)
    program = lowered.compile()
    seconds = time.perf_counter() - started
    memory = program.memory_analysis()
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    memory_bytes = sum(int(getattr(memory, part, 0)) for part in parts)
    return Program(program, lowered, memory_bytes, seconds)


def platform() -> str:
    """Return where arrays live by default: `cpu`, `gpu` or `tpu`."""
    return jax.default_backend()


@contextlib.contextmanager
def reference_mode() -> Iterator[None]:
    """Run with the highest matmul precision: what golden rows are computed in."""
    with jax.default_matmul_precision("highest"):
        yield


def versions() -> dict[str, str]:
    """Return the versions that decide a run's bits, by package."""
    names = ("mmjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pandas", "pillow", "msgspec")
    found = {"python": machine.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
