"""Plain PyTorch twins of torchvision's ResNets and of torchvision's and timm's EfficientNets, and timm's ResNet-D.

Written from the papers (arXiv 1512.03385, 1812.01187, 1905.11946); only names and shapes of their state dicts are
torchvision's (0.2x) and timm's (1.0): a state dict of either loads with `strict=True`. Runs in the environment that
`make_peers.py` makes (torch and NumPy only). `python torch_twins.py OUT.npz` writes, for each job on stdin (a JSON list
of `{"name", "source", "classes", "seed", "sizes"}`), the logits of seeded weights and the shapes of the state dict.

| part | torchvision ResNet | timm ResNet-D |
|---|---|---|
| stem | `conv1`, `bn1` | `conv1.0`, `conv1.1` (norm), `conv1.3`, `conv1.4` (norm), `conv1.6`, `bn1` |
| block i of stage s | `layer{s}.{i}.conv{n}`, `.bn{n}` | the same |
| shortcut | `.downsample.0`, `.downsample.1` (norm) | `.downsample.1`, `.downsample.2` (norm); 0 is the pool |
| head | `fc` | `fc` |

| part | torchvision EfficientNet | timm EfficientNet |
|---|---|---|
| stem | `features.0.0`, `features.0.1` (norm) | `conv_stem`, `bn1` |
| block i of stage s | `features.{s}.{i}.block` | `blocks.{s-1}.{i}` |
| its expand | `.0.0`, `.0.1` (norm); none in stage 1 | `conv_pw`, `bn1` |
| its depthwise | `.1.0`, `.1.1` (norm); stage 1: `.0` | `conv_dw`, `bn2`; stage 1: `bn1` |
| its project | `.3.0`, `.3.1` (norm); stage 1: `.2` | `conv_pwl`, `bn3`; stage 1: `conv_pw`, `bn2` |
| its gate | `.2.fc1`, `.2.fc2`; stage 1: `.1` | `se.conv_reduce`, `se.conv_expand` |
| last | `features.8.0`, `features.8.1` (norm) | `conv_head`, `bn2` |
| head | `classifier.1` | `classifier` |
"""

import json
import math
import sys

import numpy as np
import torch
from seeded_weights import gain_of, seeded_images, seeded_state
from torch import Tensor, nn
from torch.nn import functional

RESNETS = {"18": ((2, 2, 2, 2), False), "34": ((3, 4, 6, 3), False), "50": ((3, 4, 6, 3), True)}
EFFICIENTNETS = {"b0": (1.0, 1.0), "b1": (1.0, 1.1), "b2": (1.1, 1.2), "b3": (1.2, 1.4), "b4": (1.4, 1.8)}
B0 = (  # expand, kernel, stride, channels, repeats
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


class Block(nn.Module):
    """A residual block of two 3x3, or of 1x1, strided 3x3 and 1x1."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool, deep: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            self.conv1, self.bn1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
            self.conv3, self.bn3 = conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        else:
            self.conv1, self.bn1 = conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = conv(width, outputs, 3), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            norm = nn.BatchNorm2d(outputs)
            if deep:
                pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
                layers = [nn.Identity() if stride == 1 else pool, conv(inputs, outputs, 1), norm]
            else:
                layers = [conv(inputs, outputs, 1, stride), norm]
            self.downsample = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "conv3"):
            y = self.bn3(self.conv3(functional.relu(y)))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """`resnet18`, `resnet34`, `resnet50`, and with a `d` those with a deep stem and pooled shortcuts."""

    def __init__(self, name: str, classes: int, small: bool = False) -> None:
        super().__init__()
        deep, self.small = name.endswith("d"), small
        stages, bottleneck = RESNETS[name.removeprefix("resnet").removesuffix("d")]
        if deep:
            first = [conv(3, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU(), conv(32, 32, 3), nn.BatchNorm2d(32), nn.ReLU()]
            self.conv1 = nn.Sequential(*first, conv(32, 64, 3))
        else:
            self.conv1 = conv(3, 64, 3) if small else conv(3, 64, 7, 2)
        self.bn1, inputs = nn.BatchNorm2d(64), 64
        for stage, count in enumerate(stages, start=1):
            width, blocks = 32 * 2**stage, []
            for i in range(count):
                blocks.append(Block(inputs, width, 2 if stage > 1 and i == 0 else 1, bottleneck, deep))
                inputs = 4 * width if bottleneck else width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = functional.relu(self.bn1(self.conv1(x)))
        x = x if self.small else functional.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


class Same(nn.Conv2d):
    """TensorFlow's padding: just enough for ceil(size / stride) outputs, the odd pixel at the end."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        pads = []
        for size in (x.shape[3], x.shape[2]):
            short = max((math.ceil(size / self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
            pads += [short // 2, short - short // 2]
        return functional.conv2d(functional.pad(x, pads), self.weight, None, self.stride, groups=self.groups)


def plain_conv(same: bool):
    def make(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
        if same and stride > 1:
            return Same(inputs, outputs, kernel, stride, groups=groups, bias=False)
        return conv(inputs, outputs, kernel, stride, groups)

    return make


def scaled(channels: int, width: float) -> int:
    new = max(8, int(channels * width + 4) // 8 * 8)
    return new + 8 if new < 0.9 * channels * width else new


def block_table(width: float, depth: float) -> list[list[tuple[int, int, int, int, int]]]:
    """Return (inputs, expand, kernel, stride, outputs) of every block, by stage."""
    found, inputs = [], scaled(32, width)
    for expand, kernel, stride, channels, repeats in B0:
        outputs, blocks = scaled(channels, width), []
        for i in range(math.ceil(repeats * depth)):
            blocks.append((inputs, expand, kernel, stride if i == 0 else 1, outputs))
            inputs = outputs
        found.append(blocks)
    return found


class Gate(nn.Module):
    """Squeeze and excite; `names` are those of its two 1x1 convolutions."""

    def __init__(self, channels: int, squeezed: int, names: tuple[str, str]) -> None:
        super().__init__()
        self.names = names
        setattr(self, names[0], nn.Conv2d(channels, squeezed, 1))
        setattr(self, names[1], nn.Conv2d(squeezed, channels, 1))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        first, second = (getattr(self, name) for name in self.names)
        return x * torch.sigmoid(second(functional.silu(first(x.mean((2, 3), keepdim=True)))))


class VisionBlock(nn.Module):
    """torchvision's MBConv: a Sequential `block` of convolutions with norms, and the gate."""

    def __init__(self, inputs: int, expand: int, kernel: int, stride: int, outputs: int) -> None:
        super().__init__()
        wide, layers = inputs * expand, []
        if expand > 1:
            layers.append(nn.Sequential(conv(inputs, wide, 1), nn.BatchNorm2d(wide), nn.SiLU()))
        layers.append(nn.Sequential(conv(wide, wide, kernel, stride, wide), nn.BatchNorm2d(wide), nn.SiLU()))
        layers.append(Gate(wide, max(1, inputs // 4), ("fc1", "fc2")))
        layers.append(nn.Sequential(conv(wide, outputs, 1), nn.BatchNorm2d(outputs)))
        self.block, self.adds = nn.Sequential(*layers), stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x + self.block(x) if self.adds else self.block(x)


class VisionEfficientNet(nn.Module):
    """torchvision's `efficientnet_b0` to `efficientnet_b4`."""

    def __init__(self, name: str, classes: int) -> None:
        super().__init__()
        table = block_table(*EFFICIENTNETS[name[-2:]])
        stem, last = table[0][0][0], table[-1][-1][-1]
        stages = [nn.Sequential(conv(3, stem, 3, 2), nn.BatchNorm2d(stem), nn.SiLU())]
        stages += [nn.Sequential(*(VisionBlock(*row) for row in blocks)) for blocks in table]
        stages.append(nn.Sequential(conv(last, 4 * last, 1), nn.BatchNorm2d(4 * last), nn.SiLU()))
        self.features = nn.Sequential(*stages)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(4 * last, classes))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.classifier(self.features(x).mean((2, 3)))


class TimmBlock(nn.Module):
    """timm's DepthwiseSeparableConv (expand 1) and InvertedResidual."""

    def __init__(self, inputs: int, expand: int, kernel: int, stride: int, outputs: int, same: bool) -> None:
        super().__init__()
        wide, make = inputs * expand, plain_conv(same)
        norm = lambda channels: nn.BatchNorm2d(channels, 1e-3 if same else 1e-5)  # noqa: E731
        self.expands, self.adds = expand > 1, stride == 1 and inputs == outputs
        if self.expands:
            self.conv_pw, self.bn1 = make(inputs, wide, 1), norm(wide)
            self.conv_dw, self.bn2 = make(wide, wide, kernel, stride, wide), norm(wide)
        else:
            self.conv_dw, self.bn1 = make(wide, wide, kernel, stride, wide), norm(wide)
        self.se = Gate(wide, round(inputs / 4), ("conv_reduce", "conv_expand"))
        if self.expands:
            self.conv_pwl, self.bn3 = make(wide, outputs, 1), norm(outputs)
        else:
            self.conv_pw, self.bn2 = make(wide, outputs, 1), norm(outputs)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if self.expands:
            y = functional.silu(self.bn1(self.conv_pw(x)))
            y = self.bn3(self.conv_pwl(self.se(functional.silu(self.bn2(self.conv_dw(y))))))
        else:
            y = self.bn2(self.conv_pw(self.se(functional.silu(self.bn1(self.conv_dw(x))))))
        return x + y if self.adds else y


class TimmEfficientNet(nn.Module):
    """timm's `efficientnet_b0` to `_b4`; with `tf_`, TensorFlow's padding and epsilon 1e-3."""

    def __init__(self, name: str, classes: int) -> None:
        super().__init__()
        width, depth = EFFICIENTNETS[name[-2:]]
        same, table = name.startswith("tf_"), block_table(width, depth)
        stem, last, wide = table[0][0][0], table[-1][-1][-1], scaled(1280, width)
        eps = 1e-3 if same else 1e-5
        self.conv_stem, self.bn1 = plain_conv(same)(3, stem, 3, 2), nn.BatchNorm2d(stem, eps)
        self.blocks = nn.Sequential(*(nn.Sequential(*(TimmBlock(*row, same) for row in blocks)) for blocks in table))
        self.conv_head, self.bn2 = conv(last, wide, 1), nn.BatchNorm2d(wide, eps)
        self.classifier = nn.Linear(wide, classes)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.blocks(functional.silu(self.bn1(self.conv_stem(x))))
        return self.classifier(functional.silu(self.bn2(self.conv_head(x))).mean((2, 3)))


def make_twin(name: str, source: str, classes: int, *, small: bool = False) -> nn.Module:
    """Return the network; with `small` (torchvision's only) its stem is mmjax's for small images: stride 1, no pool."""
    if name.startswith("resnet"):
        return ResNet(name, classes, small)
    twin = (VisionEfficientNet if source == "torchvision" else TimmEfficientNet)(name, classes)
    if small:
        twin.features[0][0].stride = (1, 1)
    return twin


def main() -> None:
    torch.set_grad_enabled(False)
    out: dict[str, np.ndarray] = {}
    for job in json.load(sys.stdin):
        twin = make_twin(job["name"], job["source"], job["classes"]).eval()
        shapes = {name: tuple(value.shape) for name, value in twin.state_dict().items()}
        state = seeded_state(shapes, job["seed"], gain_of(job["name"]))
        state = {name: torch.from_numpy(value) for name, value in state.items()}
        counters = {name: torch.tensor(0) for name in shapes if name.endswith("num_batches_tracked")}
        twin.load_state_dict(state | counters, strict=True)
        key = f"{job['source']}/{job['name']}"
        out[f"{key}/shapes"] = np.array(json.dumps(shapes))
        for height, width in job["sizes"]:
            images = torch.from_numpy(seeded_images(height, width, job["seed"]).transpose(0, 3, 1, 2).copy())
            out[f"{key}/{height}x{width}"] = twin(images).numpy()
    np.savez(sys.argv[1], **out)


if __name__ == "__main__":
    main()
