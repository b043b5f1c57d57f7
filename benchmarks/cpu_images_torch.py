"""PyTorch's side of cpu_images.py: the twin, channels last, in f32 and under bfloat16 autocast. Case on stdin.

What favours it: its batch is standardised beforehand, lies on the device and never changes, SGD is its fused one, and
EfficientNet skips no blocks (mmjax's, as `mmjax.train` trains it, has stochastic depth).
"""

from functools import partial
from typing import Any

import torch
from torch.nn import functional
from torch_twins import make_twin
from turns import Works, answer


def prepare(case: dict[str, Any]) -> tuple[Works, dict[str, Any]]:
    """Return train steps and answers in both precisions."""
    torch.set_num_threads(case["threads"])
    torch.manual_seed(0)
    net = make_twin(case["net"], "torchvision", case["classes"], small=case["small"])
    net = net.to(memory_format=torch.channels_last)
    x = torch.randn(case["batch"], 3, case["px"], case["px"]).to(memory_format=torch.channels_last)
    y = torch.randint(0, case["classes"], (case["batch"],))
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9, nesterov=True, weight_decay=5e-5, fused=True)

    def train(bfloat16: bool) -> None:
        net.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            loss = functional.cross_entropy(net(x).float(), y)
        loss.backward()
        optimizer.step()

    def infer(bfloat16: bool) -> Any:
        net.eval()
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            return net(x).float().softmax(1)

    works = {
        f"{name}, {precision}": partial(work, precision == "bfloat16")
        for precision in ("float32", "bfloat16")
        for name, work in (("training", train), ("inference", infer))
    }
    return works, {"parameters": sum(p.numel() for p in net.parameters()), "torch": torch.__version__}


if __name__ == "__main__":
    answer(prepare)
