"""What a config may not say of images: sizes, augmentations and pretrained weights that contradict one another, or do
nothing.
"""

from collections.abc import Iterator

from msgspec import UNSET

from mmjax.config import Config, ImageData, RowAugmentation, image_settings
from mmjax.config_conflict import Conflict, Given
from mmjax.network_facts import stages_of

_IMAGE, _AUGMENTATION, _COLUMNS = "data.image", "data.image.augmentation", "data.tabular.images"
NO_CUTMIX = "expected classes, as a box of another image shows no part of a number, got regression; use `mixup_alpha`"


def image_conflicts(data: ImageData, given: Given, task: str | None, source: str) -> Iterator[Conflict]:
    """Yield what is wrong with sizes and augmentation; `task` as far as the config tells, by the key `source`."""
    yield from _sizes(data, given)
    yield from _mixing(data, given, task, source)
    yield from augmentation_conflicts(data.augmentation, _AUGMENTATION, given)


def augmentation_conflicts(augmentation: RowAugmentation, path: str, given: Given) -> Iterator[Conflict]:
    """Yield what is wrong with the augmentation at `path`."""
    yield from _crops(augmentation, path, given)
    others = {"rotation_range": augmentation.rotation_range, "color": augmentation.color}
    for key, value in others.items() if augmentation.trivial_augment else ():
        if value:
            told = f"expected no `trivial_augment` with it, which does the same by chance, got {value}; remove one"
            yield Conflict((f"{path}.{key}", f"{path}.trivial_augment"), told)


def fine_tuning_conflicts(config: Config) -> Iterator[Conflict]:
    """Yield what is wrong with pretrained weights, their preprocessing, and how much of them learns."""
    path, name, training, images = config.model.pretrained, config.model.name, config.training, image_settings(config)
    section = _IMAGE if config.data.image is not None else _COLUMNS
    if images is not None and (images.channel_mean is None) != (images.channel_std is None):
        keys = (f"{section}.channel_mean", f"{section}.channel_std")
        yield Conflict(keys, "expected both or neither, got one; add the other")
    if path is not None:
        if images is None or name in ("resnet", "airbench", "airbench_s", UNSET):
            got = "no `model.name`" if name is UNSET else f"`model.name: {name}`"
            message = f"expected the network whose weights these are, such as `model.name: resnet18`, got {got}"
            yield Conflict(("model.pretrained", "model.name"), message)
        if not path.lower().endswith((".safetensors", ".npz")):
            yield Conflict(("model.pretrained",), _other_weights(path))
    if training.freeze != "none" and path is None:
        told = "expected `model.pretrained` with it, or random weights would stay"
        yield Conflict(("training.freeze", "model.pretrained"), told)
    if path is not None and (problem := freeze_problem(str(name), training.freeze)):
        yield Conflict(("training.freeze", "model.name"), problem)
    if training.layer_decay not in (1.0, UNSET) and images is None:
        told = f"has no effect: expected {_IMAGE} or {_COLUMNS} with it, got neither; remove this"
        yield Conflict(("training.layer_decay", "data.tabular"), told, idle=True)
    if training.layer_decay not in (1.0, UNSET) and training.freeze == "trunk" and path is not None:
        told = "has no effect beside `freeze: trunk`, as only the head learns; remove one of them"
        yield Conflict(("training.layer_decay", "training.freeze"), told, idle=True)


def _other_weights(path: str) -> str:
    told = f"expected a .safetensors or .npz file, got {path}"
    if not path.lower().endswith((".pt", ".pth", ".bin", ".ckpt", ".pkl")):
        return told
    convert = "import sys, torch; from safetensors.torch import save_file; "
    convert += "save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])"
    return f"{told}: a pickle can run any code; convert it once: python -c '{convert}' {path} weights.safetensors"


def freeze_problem(name: str, freeze: str | int) -> str | None:
    """Return what is wrong with `training.freeze` of that network, in words after the key; None where nothing is."""
    stages = stages_of(name)
    if stages is None or not isinstance(freeze, int) or freeze <= stages:
        return None
    return f"expected at most {stages}, the stages of {name}, got {freeze}; or trunk"


def size_problem(train_size: tuple[int, int] | None, image_size: tuple[int, int]) -> str | None:
    """Return what is wrong with training at a size, in words after the key; None where nothing is."""
    if train_size is None or (train_size[0] <= image_size[0] and train_size[1] <= image_size[1]):
        return None
    listed = f"{list(train_size)} and image_size {list(image_size)}"
    return f"expected no side above that of `image_size`, at which images are tested, got {listed}; raise image_size"


def _sizes(data: ImageData, given: Given) -> Iterator[Conflict]:
    paths = (f"{_IMAGE}.train_size", f"{_IMAGE}.image_size")
    if data.train_size is not None and data.image_size is not UNSET:
        problem = size_problem(data.train_size, data.image_size)
        if problem:
            yield Conflict(paths, problem)
        elif data.train_size == data.image_size:
            yield Conflict(paths, "has no effect: expected a smaller size than `image_size`; remove it", idle=True)
    progressive = f"{_IMAGE}.progressive_resizing"
    if progressive in given and data.progressive_resizing and data.train_size is None:
        told = "has no effect: expected `train_size` with it, from which images grow; add that, or remove this"
        yield Conflict((progressive, paths[0]), told, idle=True)


def _crops(augmentation: RowAugmentation, path: str, given: Given) -> Iterator[Conflict]:
    crop, ratio = f"{path}.random_resized_crop", f"{path}.crop_ratio"
    for key, limits in ((crop, augmentation.random_resized_crop), (ratio, augmentation.crop_ratio)):
        if limits is not None and limits[0] > limits[1]:
            yield Conflict((key,), f"expected [least, most], got {list(limits)}; change their order")
    if augmentation.random_resized_crop is None:
        if ratio in given:
            told = "has no effect: expected `random_resized_crop` with it; add that, or remove this"
            yield Conflict((ratio, crop), told, idle=True)
        return
    shift = f"{path}.shift"
    if augmentation.shift is not UNSET and augmentation.shift > 0:
        told = f"expected 0 with `random_resized_crop`, which moves images too, got {augmentation.shift:g}; remove one"
        yield Conflict((shift, crop), told)


def _mixing(data: ImageData, given: Given, task: str | None, source: str) -> Iterator[Conflict]:
    augmentation, probability = data.augmentation, f"{_AUGMENTATION}.mix_probability"
    alphas = {"mixup_alpha": augmentation.mixup_alpha, "cutmix_alpha": augmentation.cutmix_alpha}
    used = [f"{_AUGMENTATION}.{key}" for key, alpha in alphas.items() if alpha > 0]
    if probability in given and not used:
        told = "has no effect: expected `mixup_alpha` or `cutmix_alpha` above 0 with it; add one, or remove this"
        yield Conflict((probability, *(f"{_AUGMENTATION}.{key}" for key in alphas)), told, idle=True)
    if used and augmentation.mix_probability == 0:
        told = "has no effect: expected `mix_probability` above 0 with it, got 0; remove one"
        yield Conflict((used[0], probability), told, idle=True)
    if augmentation.cutmix_alpha > 0 and task == "regression":
        yield Conflict((f"{_AUGMENTATION}.cutmix_alpha", source), f"{NO_CUTMIX} (`{source}` says so)")
