"""Huge pages: who is asked for them, when, and that the program that starts anew is the same one."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmjax.cli import COMPUTING
from mmjax.huge_pages import SETTING, asking

HOUSE = Path(__file__).parent.parent / "mmjax"
ASKED = "glibc.malloc.hugetlb=1"


@pytest.fixture
def advised(tmp_path: Path) -> Path:
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    return path


def test_asks_where_the_kernel_waits_to_be_asked(advised: Path) -> None:
    assert asking({}, advised) == asking({"GLIBC_TUNABLES": ""}, advised) == ASKED
    kept = "glibc.malloc.check=0"
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


STORY = """
import json, os, sys
from mmjax.huge_pages import start_with_huge_pages
start_with_huge_pages()
print(json.dumps([os.environ.get("GLIBC_TUNABLES"), os.getpid(), sys.argv, sys.flags.utf8_mode, sys.stdin.read()]))
"""


@pytest.mark.skipif(asking({}, SETTING) is None, reason="this kernel gives huge pages to all or to none")
def test_the_program_that_starts_anew_is_the_same(tmp_path: Path) -> None:
    script, arguments = tmp_path / "a script.py", ["--set", "a b=ü", ""]
    script.write_text(STORY)
    process = subprocess.Popen(
        [sys.executable, "-X", "utf8", str(script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(HOUSE.parent), "LC_ALL": "C.UTF-8"},
    )
    told, _ = process.communicate(b"read once")
    assert json.loads(told) == [ASKED, process.pid, [str(script), *arguments], 1, "read once"]


@pytest.mark.parametrize("door", COMPUTING)
def test_front_doors_ask_before_anything_else_is_imported(door: str) -> None:
    docstring, imported, asked = ast.parse((HOUSE / f"{door}.py").read_text(encoding="utf-8")).body[:3]
    assert isinstance(docstring, ast.Expr)
    assert ast.unparse(imported) == "from mmjax.huge_pages import start_with_huge_pages"
    assert ast.unparse(asked) == "if __name__ == '__main__':\n    start_with_huge_pages()"


@pytest.mark.skipif(asking({}, SETTING) is None, reason="this kernel gives huge pages to all or to none")
@pytest.mark.parametrize("command", ["train", "predict"])
def test_the_console_script_asks_for_what_computes(command: str) -> None:
    story = "import os, sys; from mmjax import cli; os.execve = lambda *a: print(a[2]['GLIBC_TUNABLES']); cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", story, command, "--nothing"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(HOUSE.parent)},
        check=False,
    )
    assert (done.stdout, done.returncode) == (f"{ASKED}\n", 2)
