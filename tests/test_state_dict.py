"""State dicts are read as they were written, and a file that lies is refused with its name."""

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmjax.errors import DataError
from mmjax.models.state_dict import load_state_dict

LIBRARYS = base64.b64decode(
    "0AAAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJmb3JtYXQiOiJwdCJ9LCJuIjp7ImR0eXBlIjoiSTY0Iiwic2hhcGUiOltdLCJkYXRhX29mZnNldHMi"
    "OlswLDhdfSwiYS53ZWlnaHQiOnsiZHR5cGUiOiJGMzIiLCJzaGFwZSI6WzIsM10sImRhdGFfb2Zmc2V0cyI6WzgsMzJdfSwiYiI6eyJkdHlwZSI6"
    "IkYxNiIsInNoYXBlIjpbMl0sImRhdGFfb2Zmc2V0cyI6WzMyLDM2XX19ICAgICAgBwAAAAAAAAAAAAAAAACAPwAAAEAAAEBAAACAQAAAoEAAPgDA"
)
"""Written by the format's own library, safetensors 0.8.0."""


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with this header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[Any], first: Any, last: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def load(folder: Path, content: bytes, name: str = "w.safetensors") -> Any:
    (folder / name).write_bytes(content)
    return load_state_dict(folder / name)


def test_a_file_of_the_formats_own_library_is_read(tmp_path: Path) -> None:
    found = load(tmp_path, LIBRARYS)
    assert set(found) == {"a.weight", "b", "n"}
    np.testing.assert_array_equal(found["a.weight"], np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_array_equal(found["b"], np.array([1.5, -2], np.float16))
    assert found["n"].shape == ()
    assert found["n"] == 7


def test_bfloat16_is_read(tmp_path: Path) -> None:
    values = np.array([1.0, -0.5, 3.0], jnp.bfloat16)
    found = load(tmp_path, safetensors({"x": entry("BF16", [3], 0, 6)}, values.tobytes()))
    np.testing.assert_array_equal(found["x"].astype(np.float32), [1.0, -0.5, 3.0])


def test_npz_is_read_and_pickles_in_it_are_not(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **{"a.weight": np.ones((2, 3), np.float32)})
    assert load_state_dict(tmp_path / "w.npz")["a.weight"].shape == (2, 3)
    np.savez(tmp_path / "o.npz", x=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"o\.npz: expected an \.npz file of plain arrays"):
        load_state_dict(tmp_path / "o.npz")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "header of 0 bytes in a file of 0"),
        (b"\xff" * 8 + b"{}", "header of 18446744073709551615 bytes in a file of 10"),
        (safetensors({}, length=9), "header of 9 bytes"),
        (safetensors(b"[1]"), "expected a safetensors header"),
        (safetensors(b'{"x": 1}'), "expected a safetensors header"),
        (safetensors(b"[" * 5000), "expected a safetensors header"),
        (
            safetensors({"x": entry("F32", [1], 0, 8)}, bytes(8)),
            "x: expected 4 bytes from 0 on, of 8, got offsets 0 to 8",
        ),
        (safetensors({"x": entry("F32", [2], 0, 8)}, bytes(4)), "x: expected 8 bytes from 0 on, of 4"),
        (safetensors({"x": entry("F32", [1], 4, 8)}, bytes(8)), "x: expected 4 bytes from 0 on"),
        (safetensors({"x": entry("F32", [-1], 0, 4)}, bytes(4)), "expected a safetensors header"),
        (safetensors({"x": entry("F32", [2**40, 2**40], 0, 4)}, bytes(4)), "x: expected"),
        (safetensors({"x": entry("F32", [1.0], 0, 4)}, bytes(4)), "expected a safetensors header"),
        (safetensors({"x": entry("OBJ", [1], 0, 4)}, bytes(4)), "expected a safetensors header"),
        (
            safetensors({"x": entry("U8", [4], 0, 4), "y": entry("U8", [4], 2, 6)}, bytes(6)),
            "y: expected 4 bytes from 4",
        ),
        (safetensors({"x": entry("U8", [4], 0, 4)}, bytes(6)), "expected arrays to fill 6 bytes, got 4"),
        (safetensors(b'{"x": {}, "x": {}}'), "a name is there twice"),
        (safetensors({"x": entry("U8", [1] * 70, 0, 1)}, bytes(1)), "x: expected a shape of an array, got [1, 1"),
        (safetensors({"x": entry("F32", [0, 2**47, 2**47], 0, 0)}), "x: expected a shape of an array, got [0, 1407"),
    ],
)
def test_lies_are_refused(content: bytes, told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        load(tmp_path, content)
    assert told in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / "w.safetensors"))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(LIBRARYS) - 1), st.integers(0, 255)), max_size=4), st.integers(0, 300))
def test_any_bytes_are_arrays_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(LIBRARYS)
    for at, value in changes:
        content[at] = value
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    path.write_bytes(bytes(content[:cut] if cut < len(content) else content))
    try:
        found = load_state_dict(path)
    except DataError:
        return
    assert sum(values.nbytes for values in found.values()) <= len(content)


def packed(members: dict[str, bytes]) -> bytes:
    """An .npz file of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def test_a_member_of_npz_that_is_no_array_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"w\.npz: expected .* plain arrays, got a member .*conv1\.weight"):
        load(tmp_path, packed({"conv1.weight": b"hello"}), "w.npz")


NPZ = packed({"a.npy": npy(np.arange(40.0).reshape(5, 8)), "b.npy": npy(np.ones(3, np.float32))})


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(NPZ) - 1), st.integers(0, 255)), min_size=1, max_size=3))
@example([(4, 102)])  # a version of the format that is not there yet
@example([(6, 1)])  # encrypted
def test_any_bytes_of_npz_are_arrays_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(NPZ)
    for at, value in changes:
        content[at] = value
        if at in (4, 6):  # what the central directory says counts
            content[content.index(b"PK\x01\x02") + at + 2] = value
    path = tmp_path_factory.getbasetemp() / "changed.npz"
    path.write_bytes(bytes(content))
    try:
        found = load_state_dict(path)
    except DataError:
        return
    assert all(isinstance(values, np.ndarray) for values in found.values())


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        load_state_dict(tmp_path / "gone.npz")
    (tmp_path / "w.npz").write_bytes(b"PK\x03\x04nothing")
    with pytest.raises(DataError, match="damaged or other"):
        load_state_dict(tmp_path / "w.npz")
    with pytest.raises(DataError, match=r"expected a \.safetensors or \.npz file, got w\.pth"):
        load(tmp_path, b"", "w.pth")
