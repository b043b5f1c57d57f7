"""A network's architecture where the config leaves it open: the family's defaults, and what follows from the data."""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from mmjax.config import Architecture, ModelName
from mmjax.config import Model as ModelConfig
from mmjax.errors import ConfigError
from mmjax.models.airbench import WIDTHS
from mmjax.models.mlp import default_embedding_dim
from mmjax.models.realmlp import EMBEDDING_DIM as REALMLP_EMBEDDING_DIM
from mmjax.models.resnet import SMALL_IMAGE_PX
from mmjax.models.tabm import EMBEDDING_DIM as TABM_EMBEDDING_DIM
from mmjax.models.tabm import MEMBERS
from mmjax.network_facts import EFFICIENTNETS, RESNETS, TABLE_NETWORKS
from mmjax.schema import Schema

_RESNET = Architecture(dropout=0.0, activation="relu")
_EFFICIENTNET = {name: Architecture(dropout=size.dropout, activation="silu") for name, size in EFFICIENTNETS.items()}

ARCHITECTURE_DEFAULTS: dict[str, Architecture] = {
    "mlp": Architecture(hidden_layers=(256, 256), dropout=0.1, activation="silu", normalization="none", residual=False),
    "realmlp": Architecture(hidden_layers=(256, 256, 256), dropout=0.15),
    "realmlp_s": Architecture(hidden_layers=(256, 256, 256)),
    "tabm": Architecture(hidden_layers=(512, 512), dropout=0.1, activation="relu", members=MEMBERS),
    **{
        name: Architecture(dropout=0.0, activation="gelu", mirrored=False, width=width)
        for name, width in WIDTHS.items()
    },
    "resnet": Architecture(stages=(2, 2, 2), width=32, dropout=0.0, activation="relu"),
    **dict.fromkeys(RESNETS, _RESNET),
    **_EFFICIENTNET,
}
"""What each family uses where the config says nothing. A field that is UNSET here is not used by the family, except of
networks for tables: `embedding_dim` and realmlp's `activation`, which follow from the schema, and `input_dim`; and of
those for images but airbench `stem`, which follows from their size."""


def resolve_architecture(model: ModelConfig, schema: Schema) -> Architecture:
    """Return the architecture with every field that `model.name` uses set: to the config's value, else the default.

    `input_dim` becomes the number of feature columns; `embedding_dim` stays UNSET for a table without categories;
    `stem` follows from the size of the images, and is `large` with pretrained weights.
    Resolving twice changes nothing. ConfigError, all problems at once: a field that the family does not use, an
    `embedding_dim` without categories, an `input_dim` that is not what the data has.
    """
    name = resolved_name(model)
    defaults, derived = ARCHITECTURE_DEFAULTS[name], _derived(name, model, schema)
    given = _set_fields(model.architecture)
    used = sorted({*_set_fields(defaults), *derived})
    problems = [*_unused(name, given, used), *_unlike_data(given, derived)]
    if problems:
        raise ConfigError(problems)
    return msgspec.structs.replace(defaults, **(derived | given))


def resolved_name(model: ModelConfig) -> ModelName:
    """Return the network's name; ConfigError where the recipe has not chosen one."""
    if model.name is UNSET:
        raise ConfigError("model.name: expected a name, got none; let the recipe choose one before building the model")
    return model.name


def _set_fields(architecture: Architecture) -> dict[str, Any]:
    found = {field: getattr(architecture, field) for field in architecture.__struct_fields__}
    return {field: value for field, value in found.items() if value is not UNSET and value is not None}


def _derived(name: ModelName, model: ModelConfig, schema: Schema) -> dict[str, Any]:
    """Return the fields that follow from the data; UNSET where these do not tell."""
    if name in WIDTHS:
        return {}
    if name not in TABLE_NETWORKS:
        return {"stem": _stem(model, schema)}
    found: dict[str, Any] = {"input_dim": len(schema.features), "embedding_dim": _embedding_dim(name, schema)}
    if name in ("realmlp", "realmlp_s"):
        found["activation"] = "mish" if schema.target.task == "regression" else "selu"
    return found


def _stem(model: ModelConfig, schema: Schema) -> str | UnsetType:
    if schema.image is None:
        return UNSET
    side = min(schema.image.height_px, schema.image.width_px)
    return "large" if model.pretrained or side >= SMALL_IMAGE_PX else "small"


def _embedding_dim(name: ModelName, schema: Schema) -> int | UnsetType:
    if not schema.cardinalities:
        return UNSET
    if name == "mlp":
        return default_embedding_dim(schema.cardinalities)
    return TABM_EMBEDDING_DIM if name == "tabm" else REALMLP_EMBEDDING_DIM


def _unused(name: ModelName, given: dict[str, Any], used: list[str]) -> list[str]:
    """Return a line for each field that the family does not use."""
    return [
        f"model.architecture.{field}: expected to be absent for {name}, got {value!r}; "
        f"remove it, {name} uses {', '.join(used)}"
        for field, value in given.items()
        if field not in used
    ]


def _unlike_data(given: dict[str, Any], derived: dict[str, Any]) -> list[str]:
    """Return a line for each field that is not what the data has."""
    problems, columns = [], derived.get("input_dim")
    if columns is not None and given.get("input_dim", columns) != columns:
        problems.append(
            f"model.architecture.input_dim: expected {columns}, the feature columns in the data, "
            f"got {given['input_dim']}; correct it or remove it, then it is counted"
        )
    if "embedding_dim" in given and derived.get("embedding_dim", UNSET) is UNSET:
        problems.append(
            "model.architecture.embedding_dim: has no effect: expected a table with columns of categories, got none; "
            "remove it"
        )
    return problems
