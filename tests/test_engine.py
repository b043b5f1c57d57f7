"""The engine: what it compiles and proves, that answers depend on no neighbour, and how it changes models."""

import asyncio
import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mmjax.artifact.predictor import Predictor, largest_difference, make_predictor
from mmjax.artifact.registry import promote
from mmjax.config import Config, Data, Model, TabularData
from mmjax.data.encode import encode
from mmjax.data.pipeline import pad_rows, take
from mmjax.errors import BundleError, ConfigError
from mmjax.parts import States, build_parts
from mmjax.recipe import resolve
from mmjax.schema import Batch, Columns, Schema
from mmjax.serving.answering import Encoded, answer, deadline_of
from mmjax.serving.batcher import Batcher
from mmjax.serving.engine import (
    Engine,
    Served,
    admitted,
    buckets,
    load_models,
    load_served,
    make_engine,
    phase,
    retry_after_s,
    select,
    stop,
    warm,
    warmed,
)
from mmjax.serving.reload import Source, changed, reload_models, watch
from mmjax.serving.table_bodies import TableRequest, table_columns
from mmjax.serving.wire import Refused
from mmjax.training.scoring import Scores
from tests.untrained import KINDS, NUMBERS, PRICE, SHADES, add_model, columns_for, kinds_columns, matrix

TOLERANCE, REALMLP_TOLERANCE = 1e-6, 1e-5
"""How far an answer may be from that of the row alone, relative to its size: f32 sums in another order."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("engine") / "registry"
    root.parent.mkdir(exist_ok=True)
    for name, schema in (("numbers", NUMBERS), ("kinds", KINDS), ("shades", SHADES)):
        add_model(root, name, schema)
    return root


@pytest.fixture(scope="module")
def engine(registry: Path) -> Iterator[Engine]:
    engine = make_engine(load_models(["numbers", "kinds", "shades:1"], registry, max_batch=8), queue=4)
    assert phase(engine) == "starting"
    warm(engine)
    assert phase(engine) == "ready"
    yield engine
    stop(engine)
    assert phase(engine) == "stopping"


def counted(engine: Engine, name: str) -> float:
    """The sum of all samples of a counter."""
    families = engine.metrics.registry.collect()
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def probabilities(engine: Engine, served: Served, columns: dict[str, Any], **options: Any) -> np.ndarray:
    arrays = {name: np.array(cells, dtype=object) for name, cells in columns.items()}
    found = asyncio.run(answer(engine, served, arrays, request_id="x", **options)).scores.probabilities
    assert found is not None
    return found


def values_of(engine: Engine, served: Served, columns: Columns, **options: Any) -> np.ndarray:
    """Probabilities, or the values of a regression before an offset is put back."""
    scores = asyncio.run(answer(engine, served, columns, request_id="x", **options)).scores
    return scores.prediction if scores.probabilities is None else scores.probabilities


def test_every_bucket_is_compiled_once_and_counted(engine: Engine):
    assert buckets(8) == (1, 2, 4, 8)
    assert [served.largest for served in engine.models] == [8, 8, 8]
    assert counted(engine, "mmjax_compiles_total") == 12
    for served in engine.models:
        assert served.batcher is not None
        assert set(served.batcher.programs) == set(served.batcher.warm_s) == {1, 2, 4, 8}


@pytest.mark.parametrize(("name", "index"), [("numbers", 0), ("kinds", 1), ("shades", 2)])
def test_an_answer_does_not_depend_on_bucket_place_or_neighbours(engine: Engine, name: str, index: int):
    served = engine.models[index]
    schema, batcher = served.predictor.schema, served.batcher
    assert batcher is not None
    rows = encode(schema, columns_for(schema))
    alone = [batcher.programs[1](take(rows, slice(i, i + 1))).probabilities for i in range(4)]
    rng = np.random.default_rng(0)
    for bucket in buckets(served.largest):
        for _ in range(4):
            places = rng.integers(0, 4, bucket)
            shared = batcher.programs[bucket](take(rows, places)).probabilities
            for place, row in enumerate(places):
                expected = alone[row]
                assert expected is not None
                assert largest_difference(expected[0], shared[place]) <= TOLERANCE, (name, bucket, place)


@pytest.mark.parametrize(("name", "schema", "most"), [("numbers", NUMBERS, None), ("price", PRICE, 64)])
def test_an_answer_of_realmlp_hardly_depends_on_the_bucket(name: str, schema: Schema, most: int | None, tmp_path: Path):
    add_model(tmp_path / "registry", name, schema)
    served = load_served(name, tmp_path / "registry", max_batch=most)
    assert served.largest == (most or 1024)
    rows = matrix(schema, 64) + np.array([column.offset for column in schema.features])
    columns = {column.name: rows[:, i] for i, column in enumerate(schema.features)}
    engine = make_engine({name: served._replace(predictor=realmlp(schema, columns), golden=None)}, queue=4)
    try:
        warm(engine)
        (served,) = engine.models
        alone = values_of(engine, served, columns, deterministic=True)
        for bucket in buckets(served.largest):
            assert served.batcher is not None
            scores = served.batcher.programs[bucket](pad_rows(take(encode(schema, columns), slice(0, bucket)), bucket))
            values = scores.prediction if scores.probabilities is None else scores.probabilities
            assert largest_difference(alone[:bucket], values[:64]) <= REALMLP_TOLERANCE, bucket
    finally:
        stop(engine)


def realmlp(schema: Schema, columns: Columns) -> Predictor:
    """RealMLP as the recipe makes it, its parameters not trained."""
    data = Data(tabular=TabularData(path="table.csv", target_column=schema.target.column))
    config, _ = resolve(
        Config(name="real", data=data, model=Model(name="realmlp")), schema, train_rows=64, validation_rows=0
    )
    batch, parts = encode(schema, columns), build_parts(config, schema)
    transform = parts.transform.fit(batch)
    variables = jax.jit(parts.model.init)(jax.random.key(0), parts.transform.apply(transform, batch))
    labels = (
        np.linspace(0, 1, 64, dtype=np.float32)[:, None] if schema.target.task == "regression" else np.arange(64) % 2
    )
    return make_predictor(config, schema, States(variables, transform, parts.output.fit(labels)))


def test_a_deterministic_answer_has_the_same_bits_in_any_company(engine: Engine):
    served = engine.models[1]
    columns = kinds_columns(40)
    together = probabilities(engine, served, columns, deterministic=True)
    alone = [probabilities(engine, served, {k: v[i : i + 1] for k, v in columns.items()})[0] for i in range(40)]
    np.testing.assert_array_equal(together, alone)


def test_rows_beyond_the_largest_bucket_and_many_callers_get_their_own(engine: Engine):
    served = engine.models[0]
    numbers = matrix(NUMBERS, 77)
    whole = {f"x{i}": numbers[:, i] for i in range(5)}
    expected = served.predictor.predict(whole).probabilities
    assert expected is not None
    assert largest_difference(expected, probabilities(engine, served, whole)) <= TOLERANCE
    parts = np.split(np.arange(77), [1, 3, 8, 9, 30, 31, 50])

    async def all_at_once() -> list[Any]:
        asked = ({"numeric": numbers[part]} for part in parts)
        return await asyncio.gather(*(answer(engine, served, Encoded(batch), request_id="x") for batch in asked))

    for part, answered in zip(parts, asyncio.run(all_at_once()), strict=True):
        assert largest_difference(expected[part], answered.scores.probabilities) <= TOLERANCE


def test_nothing_compiles_once_ready(engine: Engine):
    compiled: list[str] = []
    before = counted(engine, "mmjax_compiles_total")
    jax.monitoring.register_event_duration_secs_listener(lambda event, _seconds, **_: compiled.append(event))
    try:
        for rows in (1, 2, 3, 5, 8, 9, 17):
            probabilities(engine, engine.models[1], kinds_columns(rows))
    finally:
        jax.monitoring.clear_event_listeners()
    assert [event for event in compiled if "compile" in event] == []
    assert counted(engine, "mmjax_compiles_total") == before


def test_cells_and_answers_are_counted(engine: Engine):
    served = engine.models[1]
    columns = {"size": [1.0, None], "colour": ["mauve", ""], "flag": ["yes", None], "when": ["2024-01-01", None]}
    before = {name: counted(engine, f"mmjax_{name}_total") for name in ("cells", "predicted")}
    probabilities(engine, served, columns)
    assert counted(engine, "mmjax_predicted_total") - before["predicted"] == 2
    # size, flag and when are missing once, colour is missing once and unknown once.
    assert counted(engine, "mmjax_cells_total") - before["cells"] == 5


def test_an_answer_that_is_not_finite_fails_alone(engine: Engine):
    def program(batch: Batch) -> Scores:
        answers = np.where(batch["numeric"] == 0, np.inf, batch["numeric"])
        return Scores(answers, np.zeros(len(answers), np.int32), answers)

    blank = {"numeric": np.ones((1, 3), np.float32)}
    programs, known_s = dict.fromkeys((1, 2, 4), program), dict.fromkeys((1, 2, 4), 1.0)
    batcher = Batcher(engine.device, programs, blank, known_s, observe=lambda rows, bucket: None)
    served = engine.models[0]._replace(batcher=batcher)

    async def three() -> list[Any]:
        good = {"numeric": np.full((2, 3), 0.5, np.float32)}
        wild = {"numeric": np.array([[0.5, 1.0, 0.1], [0.5, 0.0, 0.1]], np.float32)}
        asked = (answer(engine, served, Encoded(batch), request_id="x") for batch in (good, wild, good))
        return await asyncio.gather(*asked, return_exceptions=True)

    first, refused, last = asyncio.run(three())
    assert isinstance(refused, Refused)
    assert (refused.status, refused.reason, len(refused.problems)) == (422, "non-finite-output", 1)
    assert refused.problems[0].startswith("row 2: the model's answer is not finite")
    np.testing.assert_array_equal(first.scores.probabilities, last.scores.probabilities)


def test_places_are_bounded_and_given_back(engine: Engine):
    with admitted(engine), admitted(engine), admitted(engine), admitted(engine):
        with pytest.raises(Refused, match="4 requests are in the server") as refused, admitted(engine):
            pass
        assert (refused.value.status, refused.value.retry_after_s) == (503, 1)
    with pytest.raises(ValueError), admitted(engine):
        raise ValueError
    assert engine.places.taken == 0


def test_the_time_to_wait_is_computed_from_what_waits(engine: Engine):
    batcher = engine.models[2].batcher
    assert batcher is not None
    kept = dict(batcher.service_s)
    try:
        batcher.service_s[8] = 2.0
        batcher.rows_waiting = 8 * 4
        assert retry_after_s(engine) == 8
        batcher.rows_waiting = 8 * 400
        assert retry_after_s(engine) == 30
    finally:
        batcher.rows_waiting = 0
        batcher.service_s.update(kept)
    assert retry_after_s(engine) == 1


@pytest.mark.parametrize("text", ["", "-1", "0", "1.5", "3600001", "ten", "9" * 11, "\u0663"])
def test_a_timeout_is_whole_milliseconds(engine: Engine, text: str):
    with pytest.raises(Refused, match="X-Request-Timeout-Ms: expected whole milliseconds") as refused:
        deadline_of(engine, text)
    assert refused.value.status == 400


def test_a_deadline_is_that_of_the_request_or_the_servers(engine: Engine):
    assert deadline_of(engine, None) is None
    for own_s, asked, seconds in ((None, "1500", 1.5), (7.0, None, 7.0)):
        before = time.monotonic()
        deadline = deadline_of(engine._replace(deadline_s=own_s), asked)
        assert deadline is not None
        assert before + seconds <= deadline <= time.monotonic() + seconds


def test_a_model_that_no_longer_gives_its_golden_answers_is_not_served(registry: Path, engine: Engine):
    model = load_served("numbers", registry, max_batch=2)
    assert model.golden is not None
    wrong = {name: values + 0.5 for name, values in model.golden.expected.items()}
    with pytest.raises(BundleError, match="numbers:1: golden rows: expected probabilities within"):
        warmed(engine, model._replace(golden=model.golden._replace(expected=wrong)))


def test_a_model_is_named_once_and_found_by_name_version_and_modality(registry: Path, engine: Engine):
    with pytest.raises(ConfigError, match="expected each model once, got numbers:1 again"):
        load_models(["numbers", "numbers:1"], registry)
    assert str(select(engine, None, None, "image")) == "shades:1"
    assert str(select(engine, "kinds", 1)) == "kinds:1"
    for name, version, status in (
        ("none", None, 404), ("", None, 404), ("kinds", 2, 404), (None, None, 400), ("shades", None, 400),
    ):  # fmt: skip
        with pytest.raises(
            Refused, match=r"there are numbers:1 \(table\), kinds:1 \(table\), shades:1 \(image\)"
        ) as refused:
            select(engine, name, version, "table")
        assert refused.value.status == status
    tables = engine._replace(serving={"numbers": engine.models[0]})
    with pytest.raises(Refused, match=r"no '' is served; there are numbers:1 \(table\)"):
        select(tables, "", None, "image")


def test_a_request_for_a_model_that_is_not_warm_is_told_so(registry: Path, engine: Engine):
    cold = load_served("numbers", registry)
    with pytest.raises(Refused, match="numbers:1 is being compiled") as refused:
        probabilities(engine, cold, {f"x{i}": [0.0] for i in range(5)})
    assert (refused.value.status, refused.value.retry_after_s) == (503, 1)


# ---- reloading


class Story:
    """An engine that follows the newest version of `price` in a registry of its own, and what it told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        add_model(root, "numbers", NUMBERS)
        self.source = Source(str(root), 2)
        self.engine = make_engine(load_models(["numbers"], root, max_batch=2), queue=4)
        warm(self.engine)
        self.told: list[tuple[str, dict[str, Any]]] = []

    def reload(self) -> None:
        reload_models(self.engine, self.source, lambda event, facts: self.told.append((event, facts)))

    @property
    def served(self) -> str:
        return str(self.engine.models[0])


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    story = Story(tmp_path / "registry")
    yield story
    stop(story.engine)


def test_a_new_version_takes_the_place_of_the_old_and_who_has_the_old_keeps_it(story: Story):
    old = story.engine.models[0]
    story.reload()
    assert (story.told, changed(story.engine, story.source)) == ([], False)
    add_model(story.root, "numbers", NUMBERS, seed=1)
    assert changed(story.engine, story.source)
    story.reload()
    assert story.served == "numbers:2"
    assert story.told == [("reloaded", {"reference": "numbers", "serving": "numbers:2", "before": "numbers:1"})]
    rows = {f"x{i}": [0.5] for i in range(5)}
    before, after = (probabilities(story.engine, served, rows) for served in (old, story.engine.models[0]))
    assert (before != after).any()
    promote(story.root, "numbers:1")
    story.reload()
    assert story.served == "numbers:1"
    np.testing.assert_array_equal(before, probabilities(story.engine, story.engine.models[0], rows))
    assert counted(story.engine, "mmjax_model_info") == 1


def test_a_damaged_version_leaves_the_old_one_in_place_and_is_told_and_counted(story: Story):
    add_model(story.root, "numbers", NUMBERS, seed=1)
    archive = next((story.root / "numbers" / "2").glob("*.npz"))
    archive.write_bytes(archive.read_bytes()[:-20])
    story.reload()
    assert story.served == "numbers:1"
    (event, facts), *_ = story.told
    assert (event, facts["reference"], facts["serving"]) == ("reload-failed", "numbers", "numbers:1")
    assert counted(story.engine, "mmjax_reloads_total") == 1
    probabilities(story.engine, story.engine.models[0], {f"x{i}": [0.5] for i in range(5)})


def test_a_canary_becomes_production_while_a_newer_one_takes_its_place(tmp_path: Path):
    root, told = tmp_path / "registry", []
    for seed in range(3):
        add_model(root, "numbers", NUMBERS, seed=seed)
    for alias, version in (("production", 1), ("canary", 2)):
        promote(root, f"numbers:{version}", alias)
    engine = make_engine(load_models(["numbers@production", "numbers@canary"], root, max_batch=1), queue=4)
    try:
        warm(engine)
        for aliases, serving in (({"production": 2}, [1, 2]), ({"canary": 3}, [2, 3]), ({"canary": 2}, [2, 3])):
            for alias, version in aliases.items():
                promote(root, f"numbers:{version}", alias)
            reload_models(engine, Source(str(root), 1), lambda event, _: told.append(event))
            assert [model.name.version for model in engine.models] == serving
    finally:
        stop(engine)
    assert told == ["reload-failed", "reloaded", "reloaded", "reload-failed"], "one version has one place"


def test_the_watch_goes_on_whatever_the_registry_holds_and_though_nobody_hears_it(story: Story):
    records = story.root / "numbers" / "versions.json"

    def nobody(event: str, facts: dict[str, Any]) -> None:
        story.told.append((event, facts))
        raise BrokenPipeError

    async def follow() -> None:
        watching = asyncio.create_task(watch(story.engine, story.source, nobody, every_s=0.01))
        sound = records.read_text()
        records.write_text(sound.replace('"1"', f'"{"9" * 5000}"'))  # more digits than Python reads
        await asyncio.sleep(0.2)
        records.write_text(sound)
        for seed in (1, 2):
            await asyncio.to_thread(add_model, story.root, "numbers", NUMBERS, seed=seed)
            for _ in range(1000):
                if story.served == f"numbers:{seed + 1}" or watching.done():
                    break
                await asyncio.sleep(0.01)
        watching.cancel()

    asyncio.run(follow())
    assert story.served == "numbers:3"
    assert [event for event, _ in story.told] == ["reloaded", "reloaded"]


def test_the_memory_of_the_old_model_is_given_back(story: Story):
    gc.collect()
    arrays = len(jax.live_arrays())
    for seed in range(1, 3):
        add_model(story.root, "numbers", NUMBERS, seed=seed)
        gc.collect()
        story.reload()
    gc.collect()
    assert story.served == "numbers:3"
    assert len(jax.live_arrays()) <= arrays


def test_reloading_leaves_nothing_behind_in_caches(story: Story):
    add_model(story.root, "numbers", NUMBERS, seed=1)

    def objects_after(reloads: int) -> int:
        for _ in range(reloads):
            promote(story.root, f"numbers:{3 - int(story.served[-1])}")
            story.reload()
        gc.collect()
        return len(gc.get_objects())

    before = objects_after(3)
    after = objects_after(6)
    assert len(story.told) == 9
    assert after - before < 6 * 50, "JAX kept 500 objects of each reload when programs had an argmax"


def test_padding_is_that_of_training(engine: Engine):
    served = engine.models[1]
    assert served.batcher is not None
    columns = table_columns(KINDS, TableRequest(rows=[{"size": 1, "colour": "red", "flag": None, "when": None}] * 3))
    padded = pad_rows(encode(KINDS, columns), 4)
    expected = served.batcher.programs[4](padded).probabilities
    assert expected is not None
    np.testing.assert_array_equal(expected[:3], probabilities(engine, served, columns))
