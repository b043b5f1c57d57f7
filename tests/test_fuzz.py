"""Hostile bytes through the public path: a table or a folder ends as rows or as a clear error, soon, in little memory.

`prepare` is what training, `check` and the drill read data with; the decoder is what serving shares. Everything that is
not an answer must be an MmjaxError with a text: no other exception, no hang, no growing memory.
"""

import gzip
import resource
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmjax.config import Config
from mmjax.config_load import config_from_dict
from mmjax.data.decode import encode_png
from mmjax.data.prepare import Prepared, prepare
from mmjax.errors import MmjaxError
from tests.test_decode import VALID

SLOWEST_S = 10.0
"""A case takes milliseconds; on a busy machine a hundred times that. A hang takes for ever."""
GROWTH_BYTES = 400 << 20
"""All cases together, imports among them. One decompression bomb of a few kilobytes would take gigabytes."""
ROWS = "".join(f"{i % 7}.5,{'ab'[i % 2]},2024-01-{1 + i % 28:02d},{'no' if i % 3 else 'yes'}\n" for i in range(40))
TABLE = ("size,colour,when,kind\n" + ROWS).encode()
SPLICES = (
    b'"',
    b"\0",
    b",",
    b"\n",
    b"\r",
    b"\xff\xfe",
    b'""',
    b"\xef\xbb\xbf",
    b"1e999",
    b"NaN",
    b"-",
    b"\xc3",
    b"=cmd()",
)

bytes_of_a_table = st.one_of(
    st.binary(max_size=400),
    st.builds(
        lambda at, cut, splice: TABLE[:at] + splice + TABLE[at + cut :],
        st.integers(0, len(TABLE)),
        st.integers(0, 60),
        st.one_of(st.sampled_from(SPLICES), st.binary(max_size=12)),
    ),
    st.builds(lambda end: TABLE[:end], st.integers(0, len(TABLE))),
    st.builds(lambda times, head: TABLE[:head] * times, st.integers(2, 5), st.integers(1, len(TABLE))),
)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """Every case of this file together."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < GROWTH_BYTES, f"the peak of memory grew by {grown / 2**20:.0f} MiB"


def outcome(config: Config) -> Prepared | MmjaxError:
    """What `prepare` ends in, within the time that a case may take."""
    started = time.perf_counter()
    try:
        found = prepare(config)
    except MmjaxError as error:
        found = error
    if isinstance(found, MmjaxError):
        assert found.problems
        assert all(problem.strip() for problem in found.problems)
    assert time.perf_counter() - started < SLOWEST_S
    return found


def whole(found: Prepared | MmjaxError) -> None:
    """Rows that came through are each in one split, and encoded as the schema says."""
    if isinstance(found, MmjaxError):
        return
    rows = np.concatenate(found.split[:3])
    assert sorted(rows.tolist()) == list(range(len(found.names)))
    assert all(len(values) == len(found.names) for values in found.batch.values())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=bytes_of_a_table, policy=st.sampled_from(["fail", "drop", "report"]), streamed=st.booleans())
def test_any_bytes_as_a_table(tmp_path: Path, data: bytes, policy: str, streamed: bool) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    table = {"path": str(path), "target_column": "kind", "on_invalid": policy}
    loading = {"loading": "streamed", "cache": {"path": str(tmp_path / "cache")}} if streamed else {}
    whole(outcome(config_from_dict({"name": "t", "data": {"tabular": table, **loading}}, "fuzz")))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), cut=st.integers(0, 80))
def test_any_bytes_as_a_compressed_table(tmp_path: Path, data: bytes, cut: int) -> None:
    path = tmp_path / "t.csv.gz"
    packed = gzip.compress(TABLE, mtime=0)
    path.write_bytes(packed[: len(packed) - cut] + data)
    whole(
        outcome(
            config_from_dict({"name": "t", "data": {"tabular": {"path": str(path), "target_column": "kind"}}}, "fuzz")
        )
    )


@st.composite
def damaged_images(draw: st.DrawFn) -> bytes:
    """Bytes that begin, mostly, like an image."""
    data = bytearray(VALID[draw(st.sampled_from(sorted(VALID)))])
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    data = data[: draw(st.integers(0, len(data)))]
    return bytes(data) + draw(st.binary(max_size=20))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    images=st.lists(damaged_images(), min_size=1, max_size=4),
    policy=st.sampled_from(["fail", "drop", "report"]),
    streamed=st.booleans(),
)
def test_any_bytes_as_images(tmp_path: Path, images: list[bytes], policy: str, streamed: bool) -> None:
    folder = tmp_path / "images"
    for name in ("dark", "light"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(4):
            level = np.full((8, 8, 3), 40 * index + (name == "light"), np.uint8)
            (folder / name / f"{index}.png").write_bytes(encode_png(level))
    for index in range(4):
        extra = folder / "dark" / f"fuzz{index}.jpg"
        extra.unlink(missing_ok=True)
        if index < len(images):
            extra.write_bytes(images[index])
    data = {"image": {"path": str(folder), "image_size": [8, 8], "on_invalid": policy}}
    data |= {"loading": "streamed", "cache": {"path": str(tmp_path / "cache")}} if streamed else {}
    found = outcome(config_from_dict({"name": "t", "data": data}, "fuzz"))
    whole(found)
    if not isinstance(found, MmjaxError):
        left_out = [bad for bad in found.quarantined if not bad.kept]
        assert len(found.names) + len(left_out) == 8 + len(images)


def test_a_small_file_that_claims_to_be_huge_takes_no_memory(tmp_path: Path) -> None:
    bomb = bytearray(encode_png(np.zeros((8, 8, 3), np.uint8)))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    for name in ("dark", "light"):
        (tmp_path / name).mkdir()
        for index in range(3):
            (tmp_path / name / f"{index}.png").write_bytes(encode_png(np.full((8, 8, 3), 9 * index, np.uint8)))
    (tmp_path / "dark" / "bomb.png").write_bytes(bytes(bomb))
    data = {"image": {"path": str(tmp_path), "image_size": [8, 8]}}
    found = outcome(config_from_dict({"name": "t", "data": data}, "fuzz"))
    assert isinstance(found, MmjaxError)
    assert "bomb.png" in str(found)
    assert "more than the" in str(found)
