"""mmjax's side of cpu_images.py: train steps and answers as `mmjax.fit` and a Predictor run them. Case on stdin."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from turns import Works, answer

from mmjax.backend import compiled, configure, fast_bfloat16
from mmjax.config import Model, Training
from mmjax.models.build import build_model, count_parameters, resolve_architecture, served_variables
from mmjax.schema import ImageSpec, Schema, Target
from mmjax.training.losses import make_loss
from mmjax.training.optimizer import make_optimizer
from mmjax.training.outputs import build_output
from mmjax.training.scoring import make_forward
from mmjax.training.state import init_state
from mmjax.training.steps import Learner, empty_totals, make_train_chunk
from mmjax.transforms.image import scale_image

IMAGES = 512
TRAINING: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 1e-3,
    "weight_decay": 5e-5,
    "schedule": "constant",
    "decay_schedule": "constant",
    "loss": "cross_entropy",
    "label_smoothing": 0.0,
    "epochs": 1,
}


def prepare(case: dict[str, Any]) -> tuple[Works, dict[str, Any]]:
    """Return steps and answers in f32 and, where it is fast, bfloat16."""
    backend = configure(device="cpu", threads=case["threads"])
    works: dict[str, Callable[[], Any]] = {}
    parameters = 0
    for precision in ("float32", "bfloat16") if fast_bfloat16() else ("float32",):
        train, infer, parameters = _works(case, precision)
        works |= {f"training, {precision}": train, f"inference, {precision}": infer}
    return works, {"parameters": parameters, "jax": jax.__version__, "threads": backend.threads}


def _works(case: dict[str, Any], precision: str) -> tuple[Callable[[], Any], Callable[[], Any], int]:
    """Return a train step, the answer to a batch on the host, and the number of parameters."""
    px, batch, classes = case["px"], case["batch"], case["classes"]
    target = Target(column="label", task="classification", classes=tuple(f"class{i}" for i in range(classes)))
    schema = Schema(image=ImageSpec(height_px=px, width_px=px), target=target)
    named = Model(type="vision", name=case["net"])
    named = Model(type="vision", name=case["net"], architecture=resolve_architecture(named, schema))
    model = build_model(named, schema, outputs=classes, precision=precision)
    output, transform = build_output(target, "cross_entropy"), scale_image(normalize=True)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (IMAGES, 1, px, px, 3), dtype=np.uint8)
    labels = rng.integers(0, classes, IMAGES, dtype=np.int32)
    fitted = jax.tree.map(jnp.asarray, (transform.fit({"image": pixels}), output.fit(labels)))
    variables = jax.jit(lambda key, inputs: model.init(key, transform.apply(fitted[0], inputs)))(
        jax.random.key(0), {"image": pixels[:2]}
    )
    training = Training(batch_size=batch, **TRAINING)
    optimizer = make_optimizer(training, total_steps=10_000, params=variables["params"])
    loss = make_loss(training, task="classification", class_weights=None)
    learner = Learner(model, transform, None, loss, output.targets, optimizer, ema_decay=None)
    # One step a call, as `training.setup.make_plan` has it for images on a CPU.
    chunk = compiled(make_train_chunk(learner, seed=0, loop=False), donate=(0, 1), precision=precision)
    serving = build_model(named, schema, outputs=classes, precision=precision, served=True)  # as a loaded Predictor
    forward = compiled(make_forward(serving, transform, output), precision=precision)
    data = jax.device_put({"image": pixels, "label": labels})
    steps = IMAGES // batch
    rows = jax.device_put(rng.permutation(IMAGES).astype(np.int32)[: steps * batch].reshape(steps, batch))
    copied = jax.tree.map(jnp.array, variables)  # the train step takes its own over
    now = [init_state(copied, optimizer.init(copied["params"]), ema=False), empty_totals(), 0]
    loaded = served_variables(named, jax.tree.map(np.asarray, variables), precision)

    def train() -> None:
        state, totals, at = now
        now[:2] = jax.block_until_ready(chunk(state, totals, data, *fitted, rows, at, 1))
        now[2] = (at + 1) % steps

    def infer() -> Any:
        return jax.tree.map(np.asarray, forward(loaded, *fitted, {"image": pixels[:batch]}))

    return train, infer, count_parameters(variables)


if __name__ == "__main__":
    answer(prepare)
