"""From the config's model section to a Model: the one place that knows every family."""

from collections.abc import Callable
from typing import Any, NamedTuple, assert_never

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from msgspec import UNSET

from mmjax.config import Architecture, ModelName
from mmjax.config import Model as ModelConfig
from mmjax.config_rules_images import freeze_problem
from mmjax.errors import ConfigError, DataError
from mmjax.models.activations import activation_function
from mmjax.models.airbench import GROUPS, WHITENED_IMAGES, WIDTHS, AirNet
from mmjax.models.architecture import resolve_architecture, resolved_name
from mmjax.models.base import Model, Variables
from mmjax.models.efficientnet import EfficientNet, norm_epsilon
from mmjax.models.fusion import Join, images_trunk, make_fusion, with_images_trunk
from mmjax.models.layers import Inputs, model_from_linen, row_mask
from mmjax.models.mlp import MLP, make_mlp
from mmjax.models.norms import BatchNorm, folded_norm
from mmjax.models.realmlp import RealMLP, make_realmlp
from mmjax.models.resnet import ResNet
from mmjax.models.tabm import TabM, make_tabm
from mmjax.network_facts import B0_STAGES, EFFICIENTNETS, RESNETS, ResNetRow
from mmjax.schema import Batch, Schema

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
    shape: Any = resolve_architecture(model, schema)
    plan = _Plan(
        resolved_name(model),
        outputs,
        shape,
        activation_function(shape.activation),
        DTYPES[precision],
        schema.cardinalities if cardinalities is None else cardinalities,
        onehots,
        freeze,
        served and served_otherwise(model, precision),
    )
    return _built(plan)


class _Plan(NamedTuple):
    """What the networks of all families are built from."""

    name: ModelName
    outputs: int
    shape: Any
    """The Architecture, in which every field that the family uses is set."""
    activation: Callable[[jax.Array], jax.Array]
    dtype: Any
    cardinalities: tuple[int, ...]
    onehots: tuple[int, ...]
    freeze: str | int
    folded: bool

    @property
    def embedding_dim(self) -> int:
        """0 for a table without categories."""
        return 0 if self.shape.embedding_dim is UNSET else self.shape.embedding_dim

    @property
    def large_stem(self) -> bool | None:
        """None where the size of the images is not known."""
        return None if self.shape.stem is UNSET else self.shape.stem == "large"


def _built(plan: _Plan) -> Model:
    match plan.name:
        case "mlp":
            return _mlp(plan)
        case "realmlp" | "realmlp_s":
            return _realmlp(plan, simple=plan.name == "realmlp_s")
        case "tabm":
            return _tabm(plan)
        case "airbench" | "airbench_s":
            return _airbench(plan)
        case "resnet":
            return _resnet(plan, ResNetRow(plan.shape.stages, plan.shape.width), frozen=0)
        case "resnet18" | "resnet34" | "resnet50" | "resnet18d" | "resnet34d" | "resnet50d":
            row = RESNETS[plan.name]
            return _resnet(plan, row, frozen=_frozen_parts(plan, 1 + len(row.stages)))
        case "efficientnet_b0" | "efficientnet_b1" | "efficientnet_b2" | "efficientnet_b3" | "efficientnet_b4":
            return _efficientnet(plan)
        case (
            "tf_efficientnet_b0"
            | "tf_efficientnet_b1"
            | "tf_efficientnet_b2"
            | "tf_efficientnet_b3"
            | "tf_efficientnet_b4"
        ):
            return _efficientnet(plan)
        case _:
            assert_never(plan.name)


def _mlp(plan: _Plan) -> Model:
    return make_mlp(
        MLP(
            outputs=plan.outputs,
            hidden_layers=plan.shape.hidden_layers,
            activation=plan.activation,
            dropout=plan.shape.dropout,
            normalization=plan.shape.normalization,
            residual=plan.shape.residual,
            cardinalities=plan.cardinalities,
            embedding_dim=plan.embedding_dim,
            dtype=plan.dtype,
        )
    )


def _realmlp(plan: _Plan, *, simple: bool) -> Model:
    return make_realmlp(
        RealMLP(
            outputs=plan.outputs,
            hidden_layers=plan.shape.hidden_layers,
            activation=plan.activation,
            dropout=0.0 if simple else plan.shape.dropout,
            cardinalities=plan.cardinalities,
            embedding_dim=plan.embedding_dim,
            simple=simple,
            dtype=plan.dtype,
        )
    )


def _tabm(plan: _Plan) -> Model:
    return make_tabm(
        TabM(
            outputs=plan.outputs,
            members=plan.shape.members,
            hidden_layers=plan.shape.hidden_layers,
            activation=plan.activation,
            dropout=plan.shape.dropout,
            cardinalities=plan.cardinalities,
            embedding_dim=plan.embedding_dim,
            onehots=plan.onehots,
            dtype=plan.dtype,
        )
    )


def _airbench(plan: _Plan) -> Model:
    shape, widths = plan.shape, tuple(plan.shape.width * times for times in GROUPS[plan.name])
    net = AirNet(plan.outputs, widths, plan.activation, shape.dropout, shape.mirrored, plan.dtype)
    return _vision(net, plan)._replace(images_to_start=WHITENED_IMAGES)


def _resnet(plan: _Plan, row: ResNetRow, *, frozen: int) -> Model:
    module = ResNet(
        outputs=plan.outputs,
        row=row,
        activation=plan.activation,
        dropout=plan.shape.dropout,
        dtype=plan.dtype,
        large_stem=plan.large_stem,
        frozen=frozen,
        folded=plan.folded,
    )
    return _vision(module, plan)


def _efficientnet(plan: _Plan) -> Model:
    module = EfficientNet(
        outputs=plan.outputs,
        size=EFFICIENTNETS[plan.name],
        activation=plan.activation,
        dropout=plan.shape.dropout,
        dtype=plan.dtype,
        large_stem=plan.large_stem,
        frozen=_frozen_parts(plan, 2 + len(B0_STAGES)),
        folded=plan.folded,
    )
    return _vision(module, plan)


def _frozen_parts(plan: _Plan, trunk: int) -> int:
    """Return how many parts are frozen of the `trunk`, so many in all: the stem, stages, and what comes after them.

    ConfigError for more stages than there are.
    """
    if problem := freeze_problem(plan.name, plan.freeze):
        raise ConfigError(f"training.freeze: {problem}")
    if plan.freeze == "trunk":
        return trunk
    return plan.freeze + 1 if isinstance(plan.freeze, int) else 0


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
    name = resolved_name(model)
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
    fusion: Any = model.fusion  # every field is set, but for own_heads
    trunk = msgspec.structs.replace(model, type="vision")
    images = build_model(trunk, schema, outputs=fusion.width, precision=precision, freeze=freeze, served=served)
    columns = None
    if schema.features:
        shape = Architecture(hidden_layers=fusion.hidden_layers, dropout=fusion.dropout)
        mlp = ModelConfig(type="tabular", name="mlp", architecture=shape)
        columns = build_model(mlp, schema, outputs=fusion.width, cardinalities=cardinalities)
    heads = () if fusion.own_heads is UNSET else fusion.own_heads  # bundles made before there were any have none
    join = Join(outputs, fusion.width, fusion.join, fusion.pooling, fusion.dropout, fusion.modality_dropout, heads)
    return make_fusion(images, columns, join)._replace(images_to_start=images.images_to_start)


def _vision(module: AirNet | ResNet | EfficientNet, plan: _Plan) -> Model:
    name = plan.name

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
        if jnp.issubdtype(batch["image"].dtype, jnp.integer):
            raise DataError(
                f"{name}: expected image as a Transform returns it, of real numbers, got {batch['image'].dtype}; "
                "apply the Transform first"
            )
        return Inputs((batch["image"][:, 0],), row_mask(batch))

    return model_from_linen(module, read, needs_key=plan.shape.dropout > 0.0)
