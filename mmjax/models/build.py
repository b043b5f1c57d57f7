"""From the config's model section to a Model: the family's defaults, and the one place that knows every family."""

from typing import Any, assert_never

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from msgspec import UNSET

from mmjax.config import Architecture, ModelName
from mmjax.config import Model as ModelConfig
from mmjax.errors import ConfigError, DataError
from mmjax.models.activations import activation_function
from mmjax.models.airbench import GROUPS, WHITENED_IMAGES, WIDTHS, AirNet
from mmjax.models.base import Model, Variables
from mmjax.models.efficientnet import B0_STAGES, EFFICIENTNETS, EfficientNet, norm_epsilon
from mmjax.models.fusion import Join, images_trunk, make_fusion, with_images_trunk
from mmjax.models.layers import BatchNorm, Inputs, folded_norm, model_from_linen, row_mask
from mmjax.models.mlp import MLP, default_embedding_dim, make_mlp
from mmjax.models.realmlp import EMBEDDING_DIM as REALMLP_EMBEDDING_DIM
from mmjax.models.realmlp import RealMLP, make_realmlp
from mmjax.models.resnet import RESNETS, SMALL_IMAGE_PX, ResNet, ResNetRow
from mmjax.models.tabm import EMBEDDING_DIM as TABM_EMBEDDING_DIM
from mmjax.models.tabm import MEMBERS, TabM, make_tabm
from mmjax.schema import Batch, Schema

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

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build_model(
    model: ModelConfig,
    schema: Schema,
    *,
    outputs: int,
    precision: str = "float32",
    cardinalities: tuple[int, ...] | None = None,
    onehots: tuple[int, ...] = (),
    freeze: str | int = "none",
    served: bool = False,
) -> Model:
    """Return the network that `model.name` names, for batches of `schema`, with `outputs` values per row.

    `cardinalities` are those of the batch's category columns, where a Transform leaves fewer than the schema has.
    `onehots` are the widths of the one-hot columns that its `dense` ends with (tabm).
    `freeze` is `training.freeze`: what of an image network (or trunk) is as at inference in training too.
    `served` networks take the variables of `served_variables`, and do not train.
    `precision` ("float32" or "bfloat16") is the compute type; parameters, batch statistics and outputs are f32.
    Raises ConfigError as `resolve_architecture` does.
    """
    if model.type == "multimodal":
        return _multimodal(model, schema, outputs, precision, cardinalities, freeze, served)
    name = _resolved_name(model)
    shape: Any = resolve_architecture(model, schema)  # every field the family uses is set
    activation, dtype = activation_function(shape.activation), DTYPES[precision]
    codes = schema.cardinalities if cardinalities is None else cardinalities
    large = None if shape.stem is UNSET else shape.stem == "large"
    folded = served and served_otherwise(model, precision)
    match name:
        case "realmlp" | "realmlp_s":
            simple = name == "realmlp_s"
            return make_realmlp(
                RealMLP(
                    outputs,
                    shape.hidden_layers,
                    activation,
                    0.0 if simple else shape.dropout,
                    codes,
                    0 if shape.embedding_dim is UNSET else shape.embedding_dim,
                    simple,
                    dtype,
                )
            )
        case "tabm":
            return make_tabm(
                TabM(
                    outputs,
                    shape.members,
                    shape.hidden_layers,
                    activation,
                    shape.dropout,
                    codes,
                    0 if shape.embedding_dim is UNSET else shape.embedding_dim,
                    onehots,
                    dtype,
                )
            )
        case "mlp":
            return make_mlp(
                MLP(
                    outputs,
                    shape.hidden_layers,
                    activation,
                    shape.dropout,
                    shape.normalization,
                    shape.residual,
                    codes,
                    0 if shape.embedding_dim is UNSET else shape.embedding_dim,
                    dtype,
                )
            )
        case "airbench" | "airbench_s":
            widths = tuple(shape.width * times for times in GROUPS[name])
            net = AirNet(outputs, widths, activation, shape.dropout, shape.mirrored, dtype)
            return _vision(net, name, shape.dropout)._replace(images_to_start=WHITENED_IMAGES)
        case "resnet":
            row = ResNetRow(shape.stages, shape.width)
            module = ResNet(outputs, row, activation, shape.dropout, dtype, large, folded=folded)
            return _vision(module, name, shape.dropout)
        case "resnet18" | "resnet34" | "resnet50" | "resnet18d" | "resnet34d" | "resnet50d":
            row = RESNETS[name]
            frozen = _frozen_parts(freeze, len(row.stages), 0, name)
            module = ResNet(outputs, row, activation, shape.dropout, dtype, large, frozen, folded)
            return _vision(module, name, shape.dropout)
        case (
            "efficientnet_b0"
            | "efficientnet_b1"
            | "efficientnet_b2"
            | "efficientnet_b3"
            | "efficientnet_b4"
            | "tf_efficientnet_b0"
            | "tf_efficientnet_b1"
            | "tf_efficientnet_b2"
            | "tf_efficientnet_b3"
            | "tf_efficientnet_b4"
        ):
            frozen = _frozen_parts(freeze, len(B0_STAGES), 1, name)
            size = EFFICIENTNETS[name]
            module = EfficientNet(
                outputs, size, activation, shape.dropout, dtype, large_stem=large, frozen=frozen, folded=folded
            )
            return _vision(module, name, shape.dropout)
        case _:
            assert_never(name)


def _frozen_parts(freeze: str | int, stages: int, after: int, name: str) -> int:
    """Return how many of stem, stages and what comes `after` them are frozen; ConfigError for more stages than are."""
    if isinstance(freeze, int) and freeze > stages:
        raise ConfigError(f"training.freeze: expected at most {stages}, the stages of {name}, got {freeze}; or trunk")
    if freeze == "trunk":
        return 1 + stages + after
    return freeze + 1 if isinstance(freeze, int) else 0


def resolve_architecture(model: ModelConfig, schema: Schema) -> Architecture:
    """Return the architecture with every field that `model.name` uses set: to the config's value, else the default.

    `input_dim` (mlp) becomes the number of feature columns; `embedding_dim` stays UNSET for a table without categories;
    `stem` follows from the size of the images, and is `large` with pretrained weights.
    Resolving twice changes nothing. ConfigError, all problems at once: a field that the family does not use, an
    `embedding_dim` without categories, an `input_dim` that is not what the data has.
    """
    name = _resolved_name(model)
    defaults = ARCHITECTURE_DEFAULTS[name]
    given = {field: value for field, value in _items(model.architecture) if value is not UNSET and value is not None}
    used = [field for field, value in _items(defaults) if value is not UNSET and value is not None]
    derived: dict[str, Any] = {}
    if name in ("mlp", "realmlp", "realmlp_s", "tabm"):
        derived["input_dim"] = len(schema.features)
        if schema.cardinalities:
            fixed = TABM_EMBEDDING_DIM if name == "tabm" else REALMLP_EMBEDDING_DIM
            derived["embedding_dim"] = default_embedding_dim(schema.cardinalities) if name == "mlp" else fixed
        used += ["input_dim", "embedding_dim"]
    elif name not in WIDTHS:
        if schema.image is not None:
            side = min(schema.image.height_px, schema.image.width_px)
            derived["stem"] = "large" if model.pretrained or side >= SMALL_IMAGE_PX else "small"
        used.append("stem")
    if name in ("realmlp", "realmlp_s"):
        derived["activation"] = "mish" if schema.target.task == "regression" else "selu"
        used.append("activation")
    problems = [
        f"model.architecture.{field}: expected to be absent for {name}, got {value!r}; "
        f"remove it, {name} uses {', '.join(sorted(used))}"
        for field, value in given.items()
        if field not in used
    ]
    if "input_dim" in used and given.get("input_dim", derived["input_dim"]) != derived["input_dim"]:
        problems.append(
            f"model.architecture.input_dim: expected {derived['input_dim']}, the feature columns in the data, "
            f"got {given['input_dim']}; correct it or remove it, then it is counted"
        )
    if "embedding_dim" in given and not schema.cardinalities:
        problems.append(
            "model.architecture.embedding_dim: has no effect: expected a table with columns of categories, got none; "
            "remove it"
        )
    if problems:
        raise ConfigError(problems)
    return msgspec.structs.replace(defaults, **(derived | given))


def served_otherwise(model: ModelConfig, precision: str) -> bool:
    """Return whether a loaded model answers with other variables than were trained: images in bfloat16."""
    return precision == "bfloat16" and model.type != "tabular"


def served_variables(model: ModelConfig, variables: Variables, precision: str) -> Variables:
    """Return the variables (on the host) that a network built as `served` answers with; of such, themselves.

    Where `served_otherwise`, norms are folded into the kernels before them (a ResNet-18 answers one image 15 % faster,
    many as fast as before; in float32 nothing is won) and are gone but for a bias, so that no network that trains takes
    them; and kernels are rounded once, not at every call (6 to 18 %). Answers differ from those of the trained form as
    bfloat16 does from float32.
    """
    if not served_otherwise(model, precision) or _is_served(variables):
        return variables
    trunk = images_trunk(variables)
    params, stats = _served_trunk(model, trunk["params"], trunk["batch_stats"])
    return with_images_trunk(variables, {"params": params, "batch_stats": stats})


def _is_served(variables: Variables) -> bool:
    return any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(variables["params"]))


def _served_trunk(model: ModelConfig, params: Variables, stats: Variables) -> tuple[Variables, Variables]:
    name = _resolved_name(model)
    params = jax.tree.map(np.asarray, params)  # of its own, to be changed below
    if name not in WIDTHS:  # airbench pools before it normalises
        epsilon = norm_epsilon(EFFICIENTNETS[name]) if name in EFFICIENTNETS else BatchNorm.epsilon
        for norm, found in stats.items():
            convolution = params[norm.replace("_norm", "_conv")]
            convolution["kernel"], bias = folded_norm(convolution["kernel"], params[norm], found, epsilon)
            params[norm] = {"bias": bias}
        stats = {}

    def rounded(path: tuple[Any, ...], values: Any) -> Any:
        return values.astype(jnp.bfloat16) if path[-1].key == "kernel" else values

    return jax.tree.map_with_path(rounded, params), stats


def count_parameters(variables: Variables) -> int:
    """Return the number of trainable values in `variables` (arrays or shapes); running statistics do not count."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _resolved_name(model: ModelConfig) -> ModelName:
    if model.name is UNSET:
        raise ConfigError("model.name: expected a name, got none; let the recipe choose one before building the model")
    return model.name


def _items(architecture: Architecture) -> list[tuple[str, Any]]:
    return [(field, getattr(architecture, field)) for field in architecture.__struct_fields__]


def _multimodal(
    model: ModelConfig,
    schema: Schema,
    outputs: int,
    precision: str,
    cardinalities: tuple[int, ...] | None,
    freeze: str | int,
    served: bool,
) -> Model:
    """Return the network of images and columns: the trunk that `model.name` names, an mlp, and their join.

    `precision` and `freeze` are of the images' trunk: all else is small, and f32, and learns.
    """
    fusion: Any = model.fusion  # every field is set
    trunk = msgspec.structs.replace(model, type="vision")
    images = build_model(trunk, schema, outputs=fusion.width, precision=precision, freeze=freeze, served=served)
    columns = None
    if schema.features:
        shape = Architecture(hidden_layers=fusion.hidden_layers, dropout=fusion.dropout)
        mlp = ModelConfig(type="tabular", name="mlp", architecture=shape)
        columns = build_model(mlp, schema, outputs=fusion.width, cardinalities=cardinalities)
    join = Join(outputs, fusion.width, fusion.join, fusion.pooling, fusion.dropout, fusion.modality_dropout)
    return make_fusion(images, columns, join)._replace(images_to_start=images.images_to_start)


def _vision(module: AirNet | ResNet | EfficientNet, name: str, dropout: float) -> Model:
    def read(batch: Batch) -> Inputs:
        if "image" not in batch:
            raise DataError(
                f"{name}: expected image in the batch, got {sorted(batch) or 'nothing'}; "
                "give the config data.image, or choose model.type: tabular"
            )
        if batch["image"].ndim != 5 or batch["image"].shape[1] != 1:
            raise DataError(
                f"{name}: expected one image a row, image [B, 1, H, W, 3], got shape {list(batch['image'].shape)}; "
                "keep a single image column"
            )
        return Inputs((batch["image"][:, 0],), row_mask(batch))

    return model_from_linen(module, read, needs_key=dropout > 0.0)
