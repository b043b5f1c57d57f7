"""Training smaller than testing: sizes of each epoch, the size that models are served at, resuming between stages."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmjax.config import Config
from mmjax.config_load import config_from_dict
from mmjax.data.prepare import prepare
from mmjax.errors import ConfigError
from mmjax.parts import build_parts
from mmjax.recipe import resolve_prepared
from mmjax.train import fit
from mmjax.training import events
from mmjax.training.events import TrainResult, train_events
from mmjax.training.program import Snapshot
from mmjax.training.setup import Setup, set_up
from mmjax.transforms.build import progressive_sizes
from tests.doors import write_images

sides, more_px = st.integers(8, 300), st.integers(0, 300)


def config_of(folder: Path, augmentation: dict[str, Any], *, loading: str = "resident", **image: Any) -> Config:
    """A quick config in float32: programs in bfloat16 are compiled anew each time."""
    data = {"image": {"path": str(folder), "augmentation": augmentation} | image, "loading": loading}
    content = {
        "name": "sizes",
        "data": data | ({"cache": {"path": str(folder.parent / "cache")}} if loading == "streamed" else {}),
        "model": {"architecture": {"stages": [1], "width": 4}},
        "training": {"epochs": 4, "batch_size": 5, "learning_rate": 0.02},
        "precision": "float32",
    }
    return config_from_dict(content, "test")


def setup_of(config: Config) -> Setup:
    prepared = prepare(config)
    resolved, _ = resolve_prepared(config, prepared)
    return set_up(resolved, prepared, build_parts(resolved, prepared.schema))


def trained(setup: Setup, resumed: Snapshot | None = None, stop_at: int = 10**9) -> TrainResult | Snapshot:
    """The result, or the Snapshot after so many steps."""
    run = train_events(setup.state, setup.task, setup.plan, resumed)
    while True:
        try:
            event = next(run)
        except StopIteration as stop:
            return stop.value
        if isinstance(event, Snapshot) and int(event.state.step) >= stop_at:
            kept = jax.tree.map(np.array, event)
            run.close()
            return kept


def bits(result: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(result.variables)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("shades") / "images", each=12)


@given(first=st.tuples(sides, sides), more=st.tuples(more_px, more_px), epochs=st.integers(1, 90))
@example(first=(33, 33), more=(2, 0), epochs=8)
def test_sizes_grow_to_the_last_and_the_last_quarter_is_at_it(first, more, epochs):
    last = (first[0] + more[0], first[1] + more[1])
    stages = progressive_sizes(first, last, epochs)
    ends, sizes = zip(*stages, strict=True)
    assert ends[-1] == epochs
    assert sizes[-1] == last
    assert list(ends) == sorted(set(ends))
    assert all(low[side] <= high[side] for low, high in pairwise(sizes) for side in (0, 1))
    assert sizes[0] == (first if epochs > 1 else last)
    if len(stages) == 4:
        assert abs(ends[2] - 0.75 * epochs) <= 0.5


@pytest.mark.parametrize("crop", [None, [0.5, 1.0]])
def test_images_are_trained_at_one_size_and_tested_at_another(images: Path, crop: list[float] | None) -> None:
    augmentation = {} if crop is None else {"random_resized_crop": crop}
    setup = setup_of(config_of(images, augmentation, image_size=[16, 20], train_size=[8, 12]))
    batch = {name: jnp.asarray(values[:3]) for name, values in setup.task.data.items()}
    assert batch["image"].shape == (3, 1, 16, 20, 3)
    augment = setup.task.learner.augment
    assert augment is not None
    assert augment(jax.random.key(0), batch)["image"].shape == (3, 1, 8, 12, 3)


def test_a_growing_run_resumes_to_the_same_bits_and_is_served_at_the_test_size(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(
        images,
        {"horizontal_flip": "alternating", "random_resized_crop": [0.5, 1.0], "cutmix_alpha": 1.0},
        image_size=[16, 16],
        train_size=[8, 8],
        progressive_resizing=True,
    )
    setup = setup_of(config)
    assert [last for last, _ in setup.task.smaller] == [1, 3]  # at 8 and 12 px
    program = events.make_program(setup.task, setup.plan)
    with monkeypatch.context() as once:
        once.setattr(events, "make_program", lambda task, plan: program)  # compiled once
        whole = _resumes(setup)
    result = fit(config, runs_dir=tmp_path / "runs", registry=None)
    spec = result.predictor.schema.image
    assert spec is not None
    assert (spec.height_px, spec.width_px) == (16, 16)
    assert whole == [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(result.predictor.states.variables)]


def _resumes(setup: Setup) -> list[bytes]:
    """The bits in which the run ends, wherever it was left."""
    whole, steps = bits(trained(setup)), len(setup.task.rows) // 5
    for stop_at in (2, steps, 2 * steps + 1):  # within an epoch, between two sizes, within a later one
        resumed = trained(setup, stop_at=stop_at)
        assert isinstance(resumed, Snapshot)
        assert bits(trained(setup, resumed)) == whole
    return whole


def test_alternating_flips_know_their_rows_when_they_are_streamed(images: Path) -> None:
    found = [
        bits(trained(setup_of(config_of(images, {"horizontal_flip": "alternating"}, loading=loading))))
        for loading in ("resident", "streamed")
    ]
    assert found[0] == found[1]
    assert found[0] != bits(trained(setup_of(config_of(images, {"horizontal_flip": True}))))


REFUSED = [
    ({}, {"train_size": [32, 8], "image_size": [16, 16]}, "train_size: expected no side above that of `image_size`"),
    ({"random_resized_crop": [0.9, 0.3]}, {}, "random_resized_crop: expected [least, most], got [0.9, 0.3]"),
    ({"random_resized_crop": [0.3, 1.0], "crop_ratio": [2.0, 1.0]}, {}, "crop_ratio: expected [least, most]"),
    ({"random_resized_crop": [0.3, 1.0], "shift": 0.1}, {}, "shift: expected 0 with `random_resized_crop`"),
    ({"trivial_augment": True, "color": 0.2}, {}, "color: expected no `trivial_augment` with it"),
    ({"trivial_augment": True, "rotation_range": 9}, {}, "rotation_range: expected no `trivial_augment` with it"),
    ({"cutmix_alpha": 1.0}, {"task": "regression"}, "cutmix_alpha: expected classes"),
    ({"mixup_alpha": 1.0, "mix_probability": 0.0}, {}, "mixup_alpha: has no effect: expected `mix_probability` above"),
    ({"horizontal_flip": "sometimes"}, {}, "horizontal_flip: expected true or false or one of alternating"),
]


@pytest.mark.parametrize(("augmentation", "image", "told"), REFUSED, ids=[told[:24] for _, _, told in REFUSED])
def test_what_contradicts_itself_is_refused(tmp_path: Path, augmentation: dict, image: dict, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, augmentation, **image)
    (problem,) = caught.value.problems
    assert told in problem


def test_a_size_that_the_images_are_below_is_refused_before_training(images: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.image.train_size: expected no side above .* \[8, 8\]; raise"):
        setup_of(config_of(images, {}, train_size=[16, 16]))


def test_the_recipe_does_not_shift_what_is_cropped(images: Path) -> None:
    prepared = prepare(config_of(images, {}))
    for augmentation, shift in (({}, 0.08), ({"random_resized_crop": [0.3, 1.0]}, 0.0)):
        resolved, _ = resolve_prepared(config_of(images, augmentation), prepared)
        assert resolved.data.image is not None
        assert resolved.data.image.augmentation.shift == shift
