"""Pretrained weights: state dicts of torchvision and timm become the variables of the same network here.

Names are translated, never guessed: each parameter and running statistic must be in the file in its shape, and nothing
else may be. Only the head may be another: then it stays as it was initialised, and that is said.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from mmjax.config import Model as ModelConfig
from mmjax.config import ModelName
from mmjax.errors import DataError
from mmjax.models.base import Variables
from mmjax.models.build import build_model
from mmjax.models.state_dict import StateDict, load_state_dict
from mmjax.network_facts import EFFICIENTNETS, RESNETS
from mmjax.schema import ImageSpec, Schema, Target

LISTED = 8
"""Names of one kind that an error lists."""
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_BLOCK = re.compile(r"stage(\d+)_block(\d+)_(\w+)")


class Preprocessing(NamedTuple):
    """What the images looked like that the weights were tested on: resized to `size_px / crop_share`, centre kept."""

    size_px: int = 224
    crop_share: float = 224 / 256
    filter: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


_BICUBIC = Preprocessing(filter="bicubic")
_SIZES = {"b0": (224, 256), "b1": (240, 256), "b2": (288, 288), "b3": (300, 320), "b4": (380, 384)}
PREPROCESSING: dict[str, Preprocessing] = {
    **{name: _BICUBIC if row.deep else Preprocessing() for name, row in RESNETS.items()},
    **{
        name: _BICUBIC._replace(size_px=_SIZES[name[-2:]][0], crop_share=_SIZES[name[-2:]][0] / _SIZES[name[-2:]][1])
        for name in EFFICIENTNETS
    },
}
"""That of torchvision's IMAGENET1K_V1 weights; of -D and `tf_` nets timm's plain one."""


class Loaded(NamedTuple):
    """Variables from a state dict."""

    variables: Variables
    note: str
    """How many arrays of whose layout they are, and what became of the head."""


def expect_weights(model: ModelConfig) -> None:
    """Raise DataError, as `with_state_dict` does, where `model.pretrained` does not hold the arrays of the network.

    For before any data are looked at: these change nothing but the head, of which any number of outputs is right.
    """
    if model.pretrained is None or not isinstance(model.name, str):
        return
    side = PREPROCESSING[model.name].size_px
    schema = Schema(target=Target(column="", task="regression"), image=ImageSpec(height_px=side, width_px=side))
    network = build_model(msgspec.structs.replace(model, type="vision"), schema, outputs=1)
    image = jax.ShapeDtypeStruct((1, 1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(lambda image: network.init(jax.random.key(0), {"image": image}), image)
    state, where = load_state_dict(model.pretrained), expected_at(model.pretrained)
    _, wanted, _ = _arrays_of(model.name, state, variables, where, new_head=True)
    _expect_numbers(state, wanted.values(), where)


def expected_at(path: str) -> str:
    """Return how messages name the weights."""
    return f"model.pretrained: {path}"


def with_state_dict(
    name: ModelName, state: StateDict, variables: Variables, where: str, *, new_head: bool = False
) -> Loaded:
    """Return the variables with the values of the state dict, f32, and what to tell about it.

    `new_head`: the head says something else than that of the file, even if it has as many outputs.
    Raises DataError, naming `where`, that lists what is missing, unknown, of another shape, no finite number, or
    a negative variance.
    """
    paths, wanted, replaced = _arrays_of(name, state, variables, where, new_head=new_head)
    _expect_numbers(state, wanted.values(), where)
    leaves = [
        leaf if path not in wanted else _converted(state[wanted[path]], np.ndim(leaf))
        for path, leaf in zip(paths, jax.tree.leaves(variables), strict=True)
    ]
    layout, _ = _layout(name, state)
    note = f"{len(wanted)} arrays by the names of {layout}, {replaced or 'head kept: as many outputs'}"
    return Loaded(jax.tree.unflatten(jax.tree.structure(variables), leaves), note)


def _expect_numbers(state: StateDict, names: Iterable[str], where: str) -> None:
    """Raise DataError where the arrays of these names, as f32, hold what no network can compute with."""
    found = {name: np.asarray(state[name], np.float32) for name in names}
    if broken := [name for name, values in found.items() if not np.isfinite(values).all()]:
        raise DataError(f"{where}: expected finite numbers, got NaN or infinity in {_some(broken)}")
    if negative := [name for name, values in found.items() if name.endswith("running_var") and (values < 0).any()]:
        raise DataError(f"{where}: expected variances of 0 or more, got negative ones in {_some(negative)}")


def _arrays_of(
    name: ModelName, state: StateDict, variables: Variables, where: str, *, new_head: bool
) -> tuple[list[tuple[str, ...]], dict[tuple[str, ...], str], str]:
    """Return the paths of the variables, the array in the file of each but a new head's, and what is told of the head.

    `variables` may be shapes. DataError where the file does not hold just these arrays.
    """
    paths = [tuple(key.key for key in path) for path, _ in jax.tree.leaves_with_path(variables)]
    _, source = _layout(name, state)
    names = {path: f"{source(path[1])}.{_LEAVES[path[2]]}" for path in paths}
    head = [path for path in paths if path[1] == "head"]
    replaced = _other_head(state, variables, [names[path] for path in head], new_head=new_head)
    wanted = {path: names[path] for path in paths if not (replaced and path in head)}
    problems = _differences(name, state, variables, wanted, {names[path] for path in head})
    if problems:
        raise DataError([f"{where}: expected the weights of {name}", *problems])
    return paths, wanted, replaced


def source_shapes(name: ModelName, variables: Variables, *, timm: bool) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the state dict that torchvision (or timm) has for these variables or their shapes."""
    _, source = _naming(name, timm=timm)
    found = {}
    for keys, leaf in jax.tree.leaves_with_path(variables):
        _, module, part = (key.key for key in keys)
        gate = name in EFFICIENTNETS and module.endswith(("_squeeze", "_excite"))
        found[f"{source(module)}.{_LEAVES[part]}"] = _source_shape(tuple(leaf.shape), gate=gate)
    return found


def preprocessing_of(name: ModelName, weights: str | Path) -> tuple[Preprocessing, str]:
    """Return the preprocessing of weights, and where it is from: timm's `config.json` beside them, else the table.

    DataError for such a file that does not say it.
    """
    beside = Path(weights).with_name("config.json")
    if not beside.is_file():
        return PREPROCESSING[name], f"as {name} was tested with; weights of another recipe may want others"
    try:
        found = json.loads(beside.read_text("utf-8"))
        found = found.get("pretrained_cfg", found)
        (_, height, width), share = found["input_size"], float(found["crop_pct"])
        means, stds = (np.array(found[key], np.float64) for key in ("mean", "std"))
        sizes = (height == width, 8 <= height <= 4096, 0 < share <= 1)
        channels = (means.shape == stds.shape == (3,), (means >= 0).all(), (stds > 0).all(), (stds <= 1).all())
        if not all(sizes + channels) or found["interpolation"] not in ("bilinear", "bicubic", "lanczos", "box"):
            raise ValueError("a value out of range")
        mean, std = (_three(values) for values in (means, stds))
        return Preprocessing(int(height), share, found["interpolation"], mean, std), f"{beside} says so"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        told = "expected timm's input_size, crop_pct, interpolation, mean and std"
        raise DataError(f"{beside}: {told}, got {error!r}; mend it, or move it away from the weights") from error


def _three(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _layout(name: ModelName, state: StateDict) -> tuple[str, Callable[[str], str]]:
    return _naming(name, timm="conv_stem.weight" in state)


def _naming(name: ModelName, *, timm: bool) -> tuple[str, Callable[[str], str]]:
    """Return whose names these are, and the function from a module's name here to its name there."""
    if name in RESNETS:
        deep = RESNETS[name].deep
        return "timm" if deep else "torchvision and timm", lambda module: _resnet_source(module, deep)
    if timm or EFFICIENTNETS[name].tensorflow:
        return "timm", _timm_efficientnet_source
    return "torchvision", _torchvision_efficientnet_source


def _resnet_source(module: str, deep: bool) -> str:
    first = int(deep)  # a -D shortcut begins with its pool
    plain = {"stem_conv": "conv1", "stem_norm": "bn1", "head": "fc"}
    stem = {"stem_conv1": "conv1.0", "stem_norm1": "conv1.1", "stem_conv2": "conv1.3", "stem_norm2": "conv1.4"}
    plain |= stem | {"stem_conv3": "conv1.6", "stem_norm3": "bn1"}
    if module in plain:
        return plain[module]
    stage, block, part = _block(module)
    shortcut = {"shortcut_conv": f"downsample.{first}", "shortcut_norm": f"downsample.{first + 1}"}
    return f"layer{stage}.{block}.{shortcut.get(part) or part.replace('norm', 'bn')}"


def _torchvision_efficientnet_source(module: str) -> str:
    plain = {"stem": "features.0", "last": "features.8"}
    where, _, kind = module.partition("_")
    if module == "head":
        return "classifier.1"
    if where in plain:
        return f"{plain[where]}.{int(kind == 'norm')}"
    stage, block, part = _block(module)
    first = int(stage > 1)  # only the first stage's blocks do not expand
    places = {"expand": 0, "depthwise": first, "squeeze": first + 1, "excite": first + 1, "project": first + 2}
    what, _, kind = part.partition("_")
    inner = {"squeeze": "fc1", "excite": "fc2"}.get(what) or str(int(kind == "norm"))
    return f"features.{stage}.{block}.block.{places[what]}.{inner}"


def _timm_efficientnet_source(module: str) -> str:
    plain = {"stem_conv": "conv_stem", "stem_norm": "bn1", "last_conv": "conv_head", "last_norm": "bn2"}
    plain["head"] = "classifier"
    if module in plain:
        return plain[module]
    stage, block, part = _block(module)
    convs = ("expand", "depthwise", "project") if stage > 1 else ("depthwise", "project")
    names = ("conv_pw", "conv_dw", "conv_pwl") if stage > 1 else ("conv_dw", "conv_pw")
    what, _, kind = part.partition("_")
    gate = {"squeeze": "se.conv_reduce", "excite": "se.conv_expand"}.get(what)
    inner = gate or (names[convs.index(what)] if kind == "conv" else f"bn{convs.index(what) + 1}")
    return f"blocks.{stage - 1}.{block}.{inner}"


def _block(module: str) -> tuple[int, int, str]:
    """Return stage (from 1), block (from 0) and the rest of a module's name."""
    found = _BLOCK.fullmatch(module)
    assert found is not None, module
    return int(found[1]), int(found[2]) - 1, found[3]


def _other_head(state: StateDict, variables: Variables, names: list[str], *, new_head: bool) -> str:
    """Return what is told where the head cannot be the file's: it has another number of outputs, or none, or is new."""
    outputs = variables["params"]["head"]["bias"].shape[0]
    if not any(name in state for name in names):
        return f"new head with {outputs} outputs: there is none in the file"
    sizes = {state[name].shape[:1] for name in names if name in state}
    whole = len(sizes) == 1 and all(name in state for name in names)
    if whole and (new_head or sizes != {(outputs,)}):
        return f"head replaced: {next(iter(sizes))[0]} outputs in the file, {outputs}{' new ones' * new_head} needed"
    return ""


def _differences(
    name: ModelName, state: StateDict, variables: Variables, wanted: dict[Any, str], head: set[str]
) -> list[str]:
    """Return what of `wanted` is not in the file, what else is, and what has another shape or no numbers."""
    known = set(wanted.values()) | head
    counters = {f"{key.removesuffix('running_mean')}num_batches_tracked" for key in known if key.endswith("_mean")}
    missing = sorted(set(wanted.values()) - set(state))
    unknown = sorted(set(state) - known - counters)
    shapes = source_shapes(name, variables, timm="conv_stem.weight" in state)
    other = [
        f"{key} {list(state[key].shape)} instead of {list(shapes[key])}"
        for key in wanted.values()
        if key in state and tuple(state[key].shape) != shapes[key]
    ]
    whole = [key for key in wanted.values() if key in state and not _is_float(state[key])]
    found = (("missing", missing), ("unknown", unknown), ("of another shape", other), ("not of real numbers", whole))
    sources = {source for timm in (False, True) for source in source_shapes(name, variables, timm=timm)}
    prefix = _common_prefix(tuple(state), sources)
    hint = [f"all names begin with '{prefix}': strip it from each, and save the file again"] if prefix else []
    return [f"{len(names)} {kind}: {_some(names)}" for kind, names in found if names] + hint


def _common_prefix(names: Sequence[str], known: set[str]) -> str:
    """Return what stands before every one of the names, if known ones follow it; else nothing.

    >>> _common_prefix(["module.fc.bias", "module.fc.weight"], {"fc.bias"})  # of PyTorch's DataParallel
    'module.'
    """
    if not names or known & set(names):
        return ""
    starts = [names[0][: i + 1] for i, mark in enumerate(names[0]) if mark == "."]
    return next((start for start in starts if _is_prefix(start, names, known)), "")


def _is_prefix(start: str, names: Sequence[str], known: set[str]) -> bool:
    rests = {name.removeprefix(start) for name in names if name.startswith(start)}
    return len(rests) == len(names) and bool(rests & known)


def _is_float(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" or values.dtype.name == "bfloat16"


def _some(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _source_shape(shape: tuple[int, ...], *, gate: bool) -> tuple[int, ...]:
    """Return PyTorch's shape: OIHW for HWIO, [outputs, inputs] for a matrix, a 1x1 convolution's for one of a gate."""
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    if len(shape) == 2:
        return (shape[1], shape[0], *((1, 1) if gate else ()))
    return shape


def _converted(values: np.ndarray, dimensions: int) -> np.ndarray:
    """Return PyTorch's array in the layout of here, f32: OIHW as HWIO, a 1x1 convolution or matrix as its transpose."""
    values = np.asarray(values, np.float32)
    if dimensions == 4:
        return np.ascontiguousarray(values.transpose(2, 3, 1, 0))
    return np.ascontiguousarray(values.reshape(values.shape[:2]).T) if dimensions == 2 else np.array(values)
