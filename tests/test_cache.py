"""The encoded cache: written once, whole or not at all, by one process; found again, and never believed unseen."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmjax.config import Cache
from mmjax.data.cache import CacheWriter, NoCacheFolder, open_or_build
from mmjax.data.fingerprint import array_digest
from mmjax.errors import DataError

ROOT = Path(__file__).resolve().parent.parent
KEY = {"file": "a.csv", "size": 12}


def blocks(count: int, rows: int = 100) -> Callable[[CacheWriter], dict[str, Any]]:
    """Return a builder of `count` blocks whose numbers tell their place."""

    def build(writer: CacheWriter) -> dict[str, Any]:
        for block in range(count):
            at = np.arange(block * rows, (block + 1) * rows)
            writer.append({"image": np.repeat(at.astype(np.uint8), 30).reshape(rows, 30), "label": at.astype(np.int32)})
        return {"faults": [[3, "is empty"]], "name": "\udcff"}

    return build


def never(_writer: CacheWriter) -> dict[str, Any]:
    raise AssertionError("built a second time")


def names(folder: Path) -> list[str]:
    return sorted(path.name.replace(path.name[:32], "KEY") for path in folder.iterdir())


def test_what_was_written_is_read_and_not_written_again(tmp_path: Path) -> None:
    made = open_or_build(Cache(path=str(tmp_path / "c")), KEY, blocks(5))
    found = open_or_build(Cache(path=str(tmp_path / "c")), dict(reversed(KEY.items())), never)
    for entry in (made, found):
        assert entry.batch["label"].tolist() == list(range(500))
        assert entry.batch["image"][:, 7].tolist() == [i % 256 for i in range(500)]
        assert entry.facts == {"faults": [[3, "is empty"]], "name": "\udcff"}
        assert entry.bytes == 500 * 34
        assert entry.digests == {name: array_digest(values) for name, values in entry.batch.items()}
        assert all(isinstance(values, np.memmap) and not values.flags.writeable for values in entry.batch.values())
    assert made.note == f"cache: 16.6 KiB at {made.path}, made now"
    assert found.note == f"cache: 16.6 KiB at {made.path}, found there; nothing is read or decoded again"
    assert names(tmp_path / "c") == ["KEY", "KEY.lock"]
    other = open_or_build(Cache(path=str(tmp_path / "c")), KEY | {"size": 13}, blocks(1))
    assert other.key != made.key
    assert len(other.batch["label"]) == 100


def test_the_default_place_is_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMJAX_CACHE_DIR", str(tmp_path / "home"))
    assert open_or_build(Cache(), KEY, blocks(1)).path.parent == tmp_path / "home" / "data"


@settings(max_examples=30, deadline=None)
@given(
    values=hnp.arrays(st.sampled_from([np.uint8, np.float32, np.int64]), hnp.array_shapes(max_dims=3, min_side=0)),
    cut=st.integers(0, 10),
)
def test_any_array_survives_in_any_blocks(
    tmp_path_factory: pytest.TempPathFactory, values: np.ndarray, cut: int
) -> None:
    def build(writer: CacheWriter) -> dict[str, Any]:
        writer.append({"x": values[:cut]})
        writer.append({"x": values[cut:]})
        return {}

    entry = open_or_build(Cache(path=str(tmp_path_factory.mktemp("c"))), KEY, build)
    assert (entry.batch["x"].dtype, entry.batch["x"].shape) == (values.dtype, values.shape)
    assert entry.batch["x"].tobytes() == values.tobytes()
    assert entry.digests["x"] == array_digest(values)
    assert not entry.batch["x"].flags.writeable


def test_a_digest_knows_dtype_and_shape() -> None:
    values = np.zeros(6, np.float32)
    others = (values, values.view(np.int32), values.reshape(3, 2), values.reshape(2, 3), np.zeros(7, np.float32))
    assert len(set(map(array_digest, others))) == len(others)
    wide = np.arange(3 << 20, dtype=np.float64).reshape(-1, 8)
    assert array_digest(wide[::2]) == array_digest(np.ascontiguousarray(wide[::2]))


@pytest.mark.parametrize("spoil", ["flip", "cut", "gone", "facts", "entry", "shape"])
def test_a_damaged_entry_is_told_and_made_again(tmp_path: Path, spoil: str) -> None:
    settings, told = Cache(path=str(tmp_path)), []
    path = open_or_build(settings, KEY, blocks(3)).path
    image = path / "image.bin"
    match spoil:
        case "flip":
            content = bytearray(image.read_bytes())
            content[4711] ^= 8
            image.write_bytes(content)
            why = "image.bin is not as written"
        case "cut":
            os.truncate(image, 8999)
            why = "image.bin has 8999 bytes instead of 9000"
        case "gone":
            image.unlink()
            why = f"{image} is missing"
        case "facts":
            (path / "facts.json").write_text("{}")
            why = "facts.json is not as written"
        case "entry":
            (path / "entry.json").write_text('{"arrays')
            why = "Unterminated string starting at: line 1 column 2 (char 1)"
        case _:
            entry = path / "entry.json"
            entry.write_text("".join(entry.read_text().split()).replace("[300,30]", "[30,300]"))
            why = "image.bin is not as written"
    again = open_or_build(settings, KEY, blocks(3), told.append)
    assert told == [f"cache: {path} is damaged ({why}); removed, and made again"]
    assert again.note.endswith("made now")
    assert again.batch["label"].tolist() == list(range(300))
    open_or_build(settings, KEY, never)


def test_a_builder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(writer: CacheWriter) -> dict[str, Any]:
        blocks(2)(writer)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_or_build(Cache(path=str(tmp_path)), KEY, fails)
    assert names(tmp_path) == ["KEY.lock"]

    def changes(writer: CacheWriter) -> dict[str, Any]:
        writer.append({"x": np.zeros((2, 3), np.float32)})
        writer.append({"x": np.zeros((2, 4), np.float32)})
        return {}

    with pytest.raises(
        ValueError, match=r"cache: expected rows of \(dtype\('float32'\), \(3,\)\) in 'x', got .*\(4,\)"
    ):
        open_or_build(Cache(path=str(tmp_path)), KEY, changes)
    assert names(tmp_path) == ["KEY.lock"]


def test_the_largest_size_is_kept(tmp_path: Path) -> None:
    limit = Cache(path=str(tmp_path), max_gib=1e-5)
    wanted = (
        "data.cache.max_gib: expected at most 1e-05 GiB of encoded rows, got {} GiB or more; "
        "raise it, or choose smaller images or fewer columns"
    )
    with pytest.raises(DataError) as caught:
        open_or_build(limit, KEY, blocks(100))
    assert caught.value.problems == (wanted.format("1.27e-05"),)

    def announces(writer: CacheWriter) -> dict[str, Any]:
        writer.expect(1 << 33)
        return never(writer)

    with pytest.raises(DataError) as caught:
        open_or_build(limit, KEY, announces)
    assert caught.value.problems == (wanted.format("8"),)
    assert names(tmp_path) == ["KEY.lock"]
    with pytest.raises(DataError, match=r"expected room for 1,125,899,906,842,624 bytes of encoded rows, got [\d,]+;"):
        CacheWriter(tmp_path, 1e9).expect(1 << 50)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NoCacheFolder) as caught:
        open_or_build(Cache(path=str(tmp_path / "file")), KEY, never)
    assert caught.value.problems == (
        f"data.cache.path: expected a folder to write encoded rows to, got {tmp_path / 'file'}: File exists; "
        "name another, or set data.loading: resident",
    )
    with pytest.raises(NoCacheFolder, match="/proc/nowhere: No such file or directory; name another"):
        open_or_build(Cache(path="/proc/nowhere"), KEY, never)


# ---- real processes

CHILD = """
import resource, sys, time
import numpy as np
from pathlib import Path
from mmjax.config import Cache
from mmjax.data.cache import open_or_build
from mmjax.errors import DataError

folder, count, pause, log = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "pause", sys.argv[4]

def build(writer):
    with open(log, "a") as file:
        file.write("built\\n")
    for block in range(count):
        writer.append({"x": np.full((256, 1024), block, np.int32)})
        while pause and not Path(log).with_name("go").exists():
            time.sleep(0.01)
    return {}

try:
    entry = open_or_build(Cache(path=folder), {"k": 1}, build, lambda line: print(line, flush=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(entry.note.rpartition(", ")[2], int(entry.batch["x"][:, 0].sum()), flush=True)
except DataError as error:
    print(error)
else:
    print(peak)
"""


def child(folder: Path, count: int, *before: str, pause: bool = False) -> subprocess.Popen[str]:
    """Start a process that builds `count` MiB, with `pause` not past the first before a file `go` lies beside."""
    arguments = [str(folder), str(count), "pause" if pause else "", str(folder.parent / "log")]
    command = [*before, sys.executable, "-c", CHILD, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_file(folder: Path, pattern: str) -> None:
    end = time.monotonic() + 30
    while not list(folder.glob(pattern)):
        assert time.monotonic() < end, f"no {pattern} appeared"
        time.sleep(0.01)


def test_two_processes_build_once_and_the_second_says_that_it_waits(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    first = child(folder, 10, pause=True)
    wait_for_file(folder, "*.tmp/x.bin")
    second = child(folder, 10, pause=True)
    assert second.stdout is not None
    said = second.stdout.readline()
    assert said.startswith(f"cache: waiting for another process that makes or checks {folder}/")
    (tmp_path / "go").touch()
    one, two = (process.communicate(timeout=60)[0].splitlines() for process in (first, second))
    assert one[0] == f"made now {256 * 45}"
    assert two[0] == f"found there; nothing is read or decoded again {256 * 45}"
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_killed_build_leaves_what_the_next_removes(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    killed = child(folder, 100, pause=True)
    wait_for_file(folder, "*.tmp/x.bin")
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert [name for name in names(folder) if name.endswith(".tmp")]
    other = open_or_build(Cache(path=str(folder)), KEY, blocks(1))
    assert other.path.is_dir()
    assert not [name for name in names(folder) if name.endswith(".tmp")]
    lines = child(folder, 2).communicate(timeout=60)[0].splitlines()
    assert lines[0] == "made now 256"


def test_memory_does_not_grow_with_the_cache(tmp_path: Path) -> None:
    small, large = (
        int(child(tmp_path / f"c{count}", count).communicate(timeout=60)[0].splitlines()[-1]) for count in (4, 128)
    )
    assert large - small < 32 << 10, "in KiB: 124 MiB more were written and verified"


def test_a_full_disk_is_told_and_nothing_stays(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    script = f'mount -t tmpfs -o size=4m none {folder} && "$@"; code=$?; ls -A {folder}; exit $code'
    inside = ("unshare", "-rm", "sh", "-c", script, "sh")
    if not shutil.which("unshare") or subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a tmpfs of their own")
    lines = child(folder, 10, *inside).communicate(timeout=60)[0].splitlines()
    assert lines[0].startswith(f"{folder}: expected room for enough bytes of encoded rows, got a full disk after ")
    assert lines[0].endswith("; set data.cache.path to a larger disk, or data.loading: resident")
    assert [line.endswith(".lock") for line in lines[1:]] == [True]


def test_a_file_that_may_grow_no_further_is_told(tmp_path: Path) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))\n" + CHILD
    command = [sys.executable, "-c", limited, str(tmp_path / "c"), "10", "", str(tmp_path / "log")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "expected room for enough bytes of encoded rows, got a full disk after 3,145,728; set data" in done.stdout
    assert names(tmp_path / "c") == ["KEY.lock"]
