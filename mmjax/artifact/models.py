"""A model by its name, from the registry or from a bundle's folder."""

from pathlib import Path

from mmjax.artifact.predictor import Predictor, load_predictor
from mmjax.artifact.registry import resolve


def load_model(reference: str | Path, *, registry: str | Path = "registry") -> Predictor:
    """Return the Predictor named `NAME`, `NAME:VERSION` or `NAME@ALIAS`, or the one in a bundle's folder.

    Raises BundleError when there is none, when it is damaged, or when its golden rows give other answers.
    """
    return load_predictor(model_folder(reference, registry=registry))


def model_folder(reference: str | Path, *, registry: str | Path = "registry") -> Path:
    """Return the bundle's folder for a reference, as `load_model` takes it."""
    folder = Path(reference)
    if (folder / "manifest.json").is_file():
        return folder
    return resolve(Path(registry), str(reference)).path
