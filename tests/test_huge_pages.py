"""Huge pages: who is asked for them, when, and that the program that starts anew is the same one."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmjax.cli import COMPUTING
from mmjax.huge_pages import AGAIN, SETTING, asking, is_front_door, start_with_huge_pages

HOUSE = Path(__file__).parent.parent / "mmjax"
ASKED = "glibc.malloc.hugetlb=1"
advised_here = pytest.mark.skipif(asking({}, SETTING) is None, reason="this kernel gives huge pages to all or to none")


@pytest.fixture
def advised(tmp_path: Path) -> Path:
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    return path


@pytest.mark.parametrize("kept", ["glibc.malloc.check=0", "glibc.malloc.hugetlb_size=3", "x"])
def test_asks_where_the_kernel_waits_to_be_asked(advised: Path, kept: str) -> None:
    assert asking({}, advised) == asking({"GLIBC_TUNABLES": ""}, advised) == ASKED
    assert asking({"GLIBC_TUNABLES": kept}, advised) == f"{kept}:{ASKED}"


@pytest.mark.parametrize("value", [0, 1, 2])
def test_who_sets_the_tunable_has_the_say(advised: Path, value: int) -> None:
    assert asking({"GLIBC_TUNABLES": f"glibc.malloc.check=0:glibc.malloc.hugetlb={value}"}, advised) is None


@pytest.mark.parametrize("text", ["[always] madvise never\n", "always madvise [never]\n", None])
def test_does_not_ask_where_asking_changes_nothing(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "enabled"
    if text is not None:
        path.write_text(text)
    assert asking({}, path) is None


@pytest.mark.parametrize(
    ("started", "front_door"),
    [
        (["python", "-m", "mmjax.train", "--config", "a.yaml"], True),
        (["python", "-X", "utf8", "-m", "mmjax", "train"], True),
        (["python", "-m", "coverage", "run", "-m", "mmjax.train"], False),
        (["python", "-m", "mmjaxes"], False),
        (["python", "-m"], False),
        (["python", "-"], False),
        (["ipython"], False),
        (["python", "/bin/ipython"], False),
    ],
)
def test_only_a_front_door_by_itself_starts_anew(started: list[str], front_door: bool) -> None:
    assert is_front_door(started, ["/somewhere/mmjax/train.py"]) == front_door


def test_the_console_script_is_one_where_it_is_the_script_that_runs(tmp_path: Path) -> None:
    script = str(tmp_path / "mmjax")
    assert not is_front_door(["python", script, "train"], [script, "train"])  # no such file
    (tmp_path / "mmjax").write_text("")
    assert is_front_door(["python", script, "train"], [script, "train"])
    assert not is_front_door(["python", "-"], [script, "train"])  # a program on standard input that says it is one
    assert not is_front_door(["python"], [])


STORY = """
import json, os, sys
from mmjax.huge_pages import start_with_huge_pages
start_with_huge_pages()
print(json.dumps([os.environ.get("GLIBC_TUNABLES"), os.getpid(), sys.argv, sys.flags.utf8_mode, sys.stdin.read()]))
"""


@advised_here
def test_the_program_that_starts_anew_is_the_same(tmp_path: Path) -> None:
    script, arguments = tmp_path / "mmjax", ["--set", "a b=ü", ""]
    script.write_text(STORY)
    process = subprocess.Popen(
        [sys.executable, "-X", "utf8", str(script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(HOUSE.parent), "LC_ALL": "C.UTF-8"},
    )
    told, _ = process.communicate(b"read once")
    assert json.loads(told) == [ASKED, process.pid, [str(script), *arguments], 1, "read once"]


@pytest.fixture
def begun(advised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What would have been started, as in a process of the console script; a debugger's tracing is left out."""
    script, begun = tmp_path / "mmjax", []
    script.write_text("")
    monkeypatch.setattr("mmjax.huge_pages.SETTING", advised)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(sys, "argv", [str(script), "train"])
    monkeypatch.setattr(sys, "orig_argv", ["python", str(script), "train"])
    monkeypatch.setattr(sys, "gettrace", lambda: None)
    monkeypatch.setattr(
        os, "execve", lambda path, line, environment: begun.append((*line, environment["GLIBC_TUNABLES"]))
    )
    return begun


def test_starts_anew_once(begun: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    start_with_huge_pages()
    assert begun == [(sys.executable, "-X", AGAIN, *sys.orig_argv[1:], ASKED)]
    monkeypatch.setitem(sys._xoptions, AGAIN, True)  # its environment may have been taken away
    start_with_huge_pages()
    assert len(begun) == 1


def test_goes_on_where_it_cannot_start_anew(begun: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("seccomp")

    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    start_with_huge_pages()
    monkeypatch.setattr(sys, "executable", os.path.realpath("/proc/self/exe"))
    start_with_huge_pages()
    assert len(begun) == 1
    monkeypatch.setattr(os, "execve", refused)
    start_with_huge_pages()
    assert len(begun) == 1


def test_a_debugger_is_left_alone(begun: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "gettrace", lambda: print)
    start_with_huge_pages()
    assert not begun


@pytest.mark.parametrize("door", sorted(path.stem for path in HOUSE.glob("*.py")))
def test_front_doors_that_compute_ask_before_anything_else_is_imported(door: str) -> None:
    body = ast.parse((HOUSE / f"{door}.py").read_text(encoding="utf-8")).body
    called = "if __name__ == '__main__':\n    start_with_huge_pages()" in map(ast.unparse, body)
    assert called == (door in COMPUTING)
    if called:
        assert ast.unparse(body[1]) == "from mmjax.huge_pages import start_with_huge_pages"
        assert ast.unparse(body[2]).endswith("start_with_huge_pages()")
