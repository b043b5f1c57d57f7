"""A model by its name, from the registry or from a bundle's folder."""

import os
from pathlib import Path
from typing import NamedTuple

from mmjax.artifact.predictor import Predictor, load_predictor
from mmjax.artifact.registry import resolve
from mmjax.errors import BundleError


class Located(NamedTuple):
    """Where a model is."""

    path: Path
    """Of its bundle."""
    version: int | None
    """Its number in the registry; None for a bundle that was named by its folder."""


def load_model(reference: str | Path, *, registry: str | Path = "registry") -> Predictor:
    """Return the Predictor named `NAME`, `NAME:VERSION` or `NAME@ALIAS`, or the one in a bundle's folder.

    Raises BundleError when there is none, when it is damaged, or when its golden rows give other answers.
    """
    return load_predictor(locate_model(reference, registry=registry).path)


def locate_model(reference: str | Path, *, registry: str | Path = "registry") -> Located:
    """Return where the model is that `load_model` loads for this reference; BundleError when there is none."""
    if not isinstance(reference, str | Path):
        hint = "; the model of a FitResult is its `predictor`" if hasattr(reference, "predictor") else ""
        got = type(reference).__name__
        raise BundleError(f"model: expected the name of a registered model, or a bundle's folder, got {got}{hint}")
    folder = Path(reference)
    if (folder / "manifest.json").is_file():
        return Located(folder, None)
    if isinstance(reference, Path) or os.sep in reference:
        there = "a folder without manifest.json" if folder.is_dir() else "nothing there"
        raise BundleError(f"{reference}: expected the folder of a bundle, got {there}; name one, or a registered model")
    found = resolve(Path(registry), reference)
    return Located(found.path, found.version)
