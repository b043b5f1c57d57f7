"""A problem of a config whose every value alone is right."""

from typing import NamedTuple

Given = frozenset[str]
"""The keys that a file or an override holds."""


class Conflict(NamedTuple):
    """A problem with the first of `paths`, seen beside the others."""

    paths: tuple[str, ...]
    message: str
    idle: bool = False
    """True: the value is harmless, it only does nothing."""
