"""mmjax: train, evaluate, register and serve models on tables and images from one YAML file.

The names below are the notebook surface. They are imported at first use, so that `import mmjax` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmjax.artifact.models import load_model as load_model
    from mmjax.client import Client as Client
    from mmjax.client import ServerError as ServerError
    from mmjax.config import Config as Config
    from mmjax.config_load import load_config as load_config
    from mmjax.errors import MmjaxError as MmjaxError
    from mmjax.evaluate import evaluate_model as evaluate_model
    from mmjax.models.build import build_model as build_model
    from mmjax.schema import Schema as Schema
    from mmjax.train import fit as fit
    from mmjax.transforms.base import Transform as Transform
    from mmjax.transforms.base import chain as chain

_HOMES = {
    "Client": "mmjax.client",
    "Config": "mmjax.config",
    "MmjaxError": "mmjax.errors",
    "Schema": "mmjax.schema",
    "ServerError": "mmjax.client",
    "Transform": "mmjax.transforms.base",
    "build_model": "mmjax.models.build",
    "chain": "mmjax.transforms.base",
    "evaluate_model": "mmjax.evaluate",
    "fit": "mmjax.train",
    "load_config": "mmjax.config_load",
    "load_model": "mmjax.artifact.models",
}

__all__ = [
    "Client",
    "Config",
    "MmjaxError",
    "Schema",
    "ServerError",
    "Transform",
    "build_model",
    "chain",
    "evaluate_model",
    "fit",
    "load_config",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmjax' has no attribute '{name}'; it has {', '.join(_HOMES)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
