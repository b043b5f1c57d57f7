"""Plain flax's side of cpu_images.py: ResNet-18 of nn.Conv and nn.BatchNorm trains, jitted, f32. Case on stdin."""

import os
from functools import partial
from typing import Any

from turns import Works, answer


def prepare(case: dict[str, Any]) -> tuple[Works, dict[str, Any]]:
    """Return the train step on a batch that is standardised already."""
    os.environ["NPROC"] = str(case["threads"])
    import jax
    import jax.numpy as jnp
    import optax
    from flax import linen as nn

    conv = partial(nn.Conv, use_bias=False)

    class Block(nn.Module):
        width: int
        stride: int

        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
            pads = ((1, 1), (1, 1))
            y = nn.relu(norm()(conv(self.width, (3, 3), self.stride, pads)(x)))
            y = norm()(conv(self.width, (3, 3), 1, pads)(y))
            if x.shape != y.shape:
                x = norm()(conv(self.width, (1, 1), self.stride)(x))
            return nn.relu(x + y)

    class ResNet18(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = conv(64, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
            for stage in range(4):
                for block in range(2):
                    x = Block(64 * 2**stage, 2 if stage and not block else 1)(x, train)
            return nn.Dense(case["classes"])(x.mean((1, 2)))

    net, optimizer = ResNet18(), optax.sgd(1e-3, momentum=0.9, nesterov=True)
    x = jax.random.normal(jax.random.key(0), (case["batch"], case["px"], case["px"], 3))
    y = jax.random.randint(jax.random.key(1), (case["batch"],), 0, case["classes"])
    variables = jax.jit(partial(net.init, train=False))(jax.random.key(2), x)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(variables: Any, momenta: Any) -> tuple[Any, Any]:
        def loss(params: Any) -> Any:
            outputs, changed = net.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean(), changed

        gradients, changed = jax.grad(loss, has_aux=True)(variables["params"])
        updates, momenta = optimizer.update(gradients, momenta, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **changed}, momenta

    now = [jax.tree.map(jnp.array, variables), optimizer.init(variables["params"])]

    def train() -> None:
        now[:] = jax.block_until_ready(step(*now))

    return {"training, float32": train}, {"parameters": parameters, "jax": jax.__version__}


if __name__ == "__main__":
    answer(prepare)
