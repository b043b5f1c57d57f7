"""Processes that are made ready once, then measured in turns: compiling is paid once, and drift meets all alike.

The child calls `answer(prepare)`, the parent makes a `Side` of its command. Standard library only, for any Python.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import ROOT, clean_environment

WARM_UPS, STEPS = 1, 5
"""Of each turn; when it is made ready, a child has done two steps of each kind already."""

Works = Mapping[str, Callable[[], Any]]
"""What a child can be asked to time, by name: each call does all of one step, to its end."""


def answer(prepare: Callable[[dict[str, Any]], tuple[Works, dict[str, Any]]]) -> None:
    """Be the child: `prepare(case)` gives the Works, each is called twice, then comes the median of those asked for.

    What `prepare` adds (versions, parameters) goes to the parent, with the seconds that each first call took.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    works, about = prepare(json.loads(sys.stdin.readline()))
    first = {name: seconds_of(work) for name, work in works.items()}
    for work in works.values():
        work()
    print(json.dumps({"works": list(works), "first_call_s": first, **about}), file=out, flush=True)
    for line in sys.stdin:
        work = works[json.loads(line)]
        seconds = [seconds_of(work) for _ in range(WARM_UPS + STEPS)][WARM_UPS:]
        print(json.dumps(statistics.median(seconds)), file=out, flush=True)


def seconds_of(work: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Side:
    """A child that is ready; a context manager that ends it."""

    def __init__(self, command: Sequence[str | Path], case: Mapping[str, Any], env: Mapping[str, str]) -> None:
        """Start it and wait until it is ready. Raises RuntimeError with its standard error when it fails."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [*map(str, command)],
            cwd=ROOT,
            env=clean_environment(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self.about: dict[str, Any] = self._ask(case)
        except BaseException:
            self._end()
            raise

    def seconds(self, work: str) -> float:
        """Return the median seconds of STEPS steps, after WARM_UPS."""
        return self._ask(work)

    def _ask(self, question: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._errors.seek(0)
            told = self._errors.read().decode().strip()[-3000:]
            raise RuntimeError(f"{self._process.args}: ended with exit code {self._process.wait()}:\n{told}")
        return json.loads(line)

    def __enter__(self) -> "Side":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the child."""
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()
