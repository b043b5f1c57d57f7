"""The errors mmjax raises, each with the exit code its front door returns.

A message reads *where: expected X, got Y; what to do*. Everything wrong at a boundary is reported at once in
`problems`, so that a user mends a file in one pass.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class MmjaxError(Exception):
    """Base of every error a user can mend. `problems` holds one line for each thing that is wrong, `document` what
    `--json` tells beside the error: what was done all the same."""

    exit_code = 1

    def __init__(self, problems: str | Iterable[str], *, document: Mapping[str, Any] | None = None) -> None:
        self.document = document or {}
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class ConfigError(MmjaxError):
    """The config or the command line is wrong (exit code 2)."""

    exit_code = 2


class DataError(MmjaxError):
    """The data cannot be read, violates its schema, or cannot be trained on (exit code 3)."""

    exit_code = 3


class TrainingError(MmjaxError):
    """Training cannot go on: a non-finite loss, a device that fails (exit code 4)."""

    exit_code = 4


class BundleError(MmjaxError):
    """A bundle or the registry refuses: damaged, unknown, newer format, golden rows that drift (exit code 5)."""

    exit_code = 5


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the option nearest to `name`, of equal ones the first, or an empty string.

    >>> did_you_mean("epoch", ["epochs", "seed"])
    "; did you mean 'epochs'?"
    >>> did_you_mean("net", ["net_b0", "net_b1"])
    "; did you mean 'net_b0'?"
    >>> did_you_mean("zzz", ["epochs", "seed"])
    ''
    """
    options = list(dict.fromkeys(options))
    close = set(difflib.get_close_matches(name, options, n=len(options) or 1, cutoff=0.6))
    best = max((option for option in options if option in close), key=lambda near: _likeness(near, name), default=None)
    return f"; did you mean '{best}'?" if best is not None else ""


def _likeness(option: str, name: str) -> float:
    return difflib.SequenceMatcher(None, option, name).ratio()
