"""From a resolved config and prepared rows to what `train_events` needs: the learner, fitted states, who measures."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from msgspec import UNSET

from mmjax.backend import compile_ahead, compiled, platform, threads_in_use
from mmjax.config import Config, Training, fold_count, image_settings, table_images
from mmjax.config_rules_images import NO_CUTMIX, size_problem
from mmjax.data.pipeline import Picked, batch_rows, take
from mmjax.data.prepare import Prepared
from mmjax.data.prepared import rows_to_learn
from mmjax.data.split import Split
from mmjax.errors import ConfigError, DataError
from mmjax.models.build import count_parameters, served_otherwise, served_variables
from mmjax.models.fusion import images_trunk, with_images_trunk
from mmjax.models.pretrained import expected_at, with_state_dict
from mmjax.models.state_dict import load_state_dict, sha256_of
from mmjax.parts import Parts, States, build_parts
from mmjax.schema import Batch, Target
from mmjax.training.decide import CALIBRATED, decision_problems
from mmjax.training.fine_tuning import fine_tuning_rates
from mmjax.training.losses import Loss, class_weight_array, label_weight_array, make_loss
from mmjax.training.matrix_scaling import MOST_CLASSES
from mmjax.training.members import Members, member_of, stacked
from mmjax.training.metrics import metric_names
from mmjax.training.optimizer import make_optimizer, make_schedule
from mmjax.training.outputs import Output
from mmjax.training.program import Measure, Plan, Task, start_compiling
from mmjax.training.scorer import Scorer, compiled_forwards, make_scorer
from mmjax.training.scoring import inputs_of
from mmjax.training.state import TrainState, eval_variables, init_state
from mmjax.training.steps import Learner
from mmjax.transforms.base import stack_states
from mmjax.transforms.build import build_augment, progressive_sizes

INIT_ROWS = 1024
"""Training rows of a table, drawn at random, that initial weights may be fitted to."""


class Setup(NamedTuple):
    """Everything `train_events` needs, and the states that the bundle will hold."""

    state: TrainState
    task: Task
    plan: Plan
    fitted: tuple[Any, Any]
    """Transform and output states."""
    scorer: Scorer
    output: Output
    """For when training is done: its state is added to by `training.decide`. With folds, that of out-of-fold rows."""
    whole: Output
    """Of all members together."""
    alone: Output
    """Of one of them."""
    pretrained: str = ""
    """What was loaded where the config names pretrained weights."""


def set_up(config: Config, prepared: Prepared, parts: Parts, *, ahead: bool = True) -> Setup:
    """Return the Setup of a resolved config: fits the Transform and Output on training rows, makes initial weights.

    With `ahead` the programs of a small run of a table begin to be compiled, for who trains next.

    ConfigError, all problems at once, for what only the data can tell: a `monitor` that is no metric of this target, a
    run that ends before its first update. DataError for training rows that all weigh nothing.
    """
    _refuse_useless(config, prepared)
    members = make_members(config, prepared.split)
    train = _training_rows(prepared, prepared.split.train)
    transform_state = jax.device_put(_fit_transform(parts, prepared, members, train))
    output_state = jax.device_put(parts.output.fit(train["label"]))
    fitted = (transform_state, output_state)
    plan = make_plan(config)
    rows = members.shortest if members else batch_rows(train)
    steps = _updates(config, rows)
    init, drawn = _init_program(parts, prepared, members, transform_state, config.seed)
    shapes = jax.eval_shape(init, *drawn[0])
    params = shapes["params"]
    # Compiling is most of a small run: initial weights while the rest is traced, then what is needed first
    small = ahead and members is None and not prepared.streamed and prepared.schema.image is None
    ready = [compile_ahead(init, *drawn[0])] if small else []
    rates = parts.model.rates(params) if parts.model.rates else fine_tuning_rates(config.training, params)
    optimizer = make_optimizer(config.training, total_steps=steps[-1], params=params, rates=rates)
    loss = _loss(config, prepared, train)
    ema_decay = None if config.training.ema_decay is UNSET else config.training.ema_decay
    learner = Learner(
        model=parts.model,
        transform=parts.transform,
        augment=None,
        loss=loss,
        targets=parts.output.targets,
        optimizer=optimizer,
        ema_decay=ema_decay,
        accumulate_steps=config.training.accumulate_steps,
        total_steps=_epochs(config.training) * _batches(config.training, rows),
    )
    stages, data = _augmented(learner, config, _batches(config.training, rows)), prepared.batch
    learner = stages[-1][1]
    if learner.epoch_steps:
        data = {**data, "row": np.arange(len(data["label"]), dtype=np.int32)}
    begin, ema = compiled(optimizer.init), ema_decay is not None
    scorer = make_scorer(prepared, parts, loss, output_state, plan.precision, members)
    schedule = make_schedule(config.training, total_steps=steps[-1])
    task = Task(
        learner=learner,
        data=data,
        smaller=tuple(stages[:-1]),
        rows=prepared.split.train,
        streamed=prepared.streamed,
        fitted=fitted,
        measure=_measure(scorer, fitted, plan.monitor),
        members=members,
        learning_rates=np.asarray(compiled(jax.vmap(lambda count: jnp.float32(schedule(count))))(steps - 1)),
        parameters=count_parameters(shapes) * len(drawn),
        validation_rows=rows_to_learn(prepared.split)[1],
    )
    if small:
        task, scorer = _started(task, plan, scorer, shapes)
    for program in ready:
        program.result()
    each, loaded = _pretrained(config, [init(*own) for own in drawn])
    numbers = members.numbers if members else (0,)
    states = [init_state(own, begin(own["params"]), ema=ema, member=n) for own, n in zip(each, numbers, strict=True)]
    state = stacked(states) if members else states[0]
    return Setup(state, task, plan, fitted, scorer, parts.held_out, parts.output, parts.alone, loaded)


def _started(task: Task, plan: Plan, scorer: Scorer, variables: dict[str, Any]) -> tuple[Task, Scorer]:
    """Return both with their programs being compiled, the longest first; `variables` may be shapes."""
    optimizer, ema = task.learner.optimizer, task.learner.ema_decay is not None
    first = jax.eval_shape(lambda own: init_state(own, optimizer.init(own["params"]), ema=ema), variables)
    task = start_compiling(task, plan, first)
    scorer = scorer.started(States(eval_variables(first), *task.fitted))
    return task._replace(measure=_measure(scorer, task.fitted, plan.monitor)), scorer


def _augmented(learner: Learner, config: Config, epoch_steps: int) -> list[tuple[int, Learner]]:
    """Return (last epoch, learner) for each size that images are trained at, with what changes them at random."""
    settings, image, epochs = image_settings(config), config.data.image, _epochs(config.training)
    if settings is None:
        return [(epochs, learner)]
    augmentation, size = settings.augmentation, image.train_size if image else None
    if augmentation.horizontal_flip == "alternating":
        learner = learner._replace(epoch_steps=epoch_steps)
    sizes: list[tuple[int, tuple[int, int] | None]] = [(epochs, size)]
    if image is not None and image.progressive_resizing and size is not None:
        assert isinstance(image.image_size, tuple), "the recipe decides the size"
        sizes = [*progressive_sizes(size, image.image_size, epochs)]
    return [
        (last, learner._replace(augment=build_augment(augmentation, size=own, seed=config.seed))) for last, own in sizes
    ]


def first_member(setup: Setup) -> Setup:
    """Return the Setup of the first of several members, as a model of its own; of one model itself."""
    members, (transform_state, output_state) = setup.task.members, setup.task.fitted
    if members is None:
        return setup
    fitted = (members.transform_of(transform_state, 0), output_state)
    measure = _measure(setup.scorer, fitted, setup.plan.monitor, alone=True)
    task = setup.task._replace(rows=members.rows[0], members=None, fitted=fitted, measure=measure)
    return setup._replace(state=member_of(setup.state, 0), task=task, fitted=fitted)


def as_served(config: Config, setup: Setup, states: States) -> tuple[Setup, States]:
    """Return both as the model answers once it is loaded, so that what is told of it is true of its answers.

    Themselves where it answers in the form that was trained (`models.build.served_otherwise`).
    """
    precision = str(config.precision)
    if not served_otherwise(config.model, precision):
        return setup, states
    parts = build_parts(config, setup.scorer.prepared.schema, served=True)
    whole, member = compiled_forwards(parts, precision)
    variables = jax.device_put(served_variables(config.model, states.variables, precision))
    scorer = setup.scorer._replace(forward=whole, member=member)
    return setup._replace(scorer=scorer), states._replace(variables=variables)


def make_members(config: Config, split: Split) -> Members | None:
    """Return who is trained; None for one model."""
    training, folds = config.training, split.folds
    if folds is not None:
        of_fold = range(fold_count(config) * training.members)
        each = [folds == number // training.members for number in of_fold]
        held = tuple(split.train[own] for own in each)
        return Members(tuple(of_fold), tuple(split.train[~own] for own in each), held, fold_count(config))
    numbers = training.seeds or tuple(range(training.members))
    if len(numbers) == 1 and not training.seeds:
        return None
    return Members(numbers, (split.train,) * len(numbers), (split.validation,) * len(numbers), 0)


def _fit_transform(parts: Parts, prepared: Prepared, members: Members | None, train: Batch) -> Any:
    """Return the Transform's state; with folds one for each member, fitted on its rows."""
    if members is None or not members.folds:
        return parts.transform.fit(inputs_of(train))
    of_fold = members.rows[:: members.of_fold]
    fitted = [parts.transform.fit(inputs_of(_training_rows(prepared, rows))) for rows in of_fold]
    return stack_states([fitted[index // members.of_fold] for index in range(len(members.numbers))])


def _init_program(
    parts: Parts, prepared: Prepared, members: Members | None, transform_state: Any, seed: int
) -> tuple[jax.stages.Wrapped, list[tuple[Any, ...]]]:
    """Return the compiled maker of initial variables, and its arguments for each member, or for the one model."""

    def of_batch(key: jax.Array, fitted: Any, batch: Batch) -> dict[str, Any]:
        return parts.model.init(key, parts.transform.apply(fitted, batch))

    key = jax.random.key(seed)
    most = parts.model.images_to_start if "image" in prepared.batch else INIT_ROWS
    who = zip(members.numbers, members.rows, strict=True) if members else [(0, prepared.split.train)]
    drawn = []
    for index, (number, rows) in enumerate(who):
        own = members.transform_of(transform_state, index) if members else transform_state
        sample = take(inputs_of(prepared.batch), _init_rows(rows, most, seed, number))
        drawn.append((jax.random.fold_in(key, number) if number else key, own, sample))
    return compiled(of_batch), drawn


def _pretrained(config: Config, each: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Return the variables of each member with the values of `model.pretrained`, and what to tell about it.

    Where columns are joined with images they are those of the images' trunk, whose head is of the join.
    """
    path, name = config.model.pretrained, config.model.name
    if path is None:
        return each, ""
    assert name is not UNSET
    state, digest = load_state_dict(path), sha256_of(path)
    where, joined = expected_at(path), table_images(config) is not None
    loaded = [with_state_dict(name, state, images_trunk(own), where, new_head=joined) for own in each]
    found = [with_images_trunk(own, trunk.variables) for own, trunk in zip(each, loaded, strict=True)]
    return [jax.tree.map(jnp.asarray, own) for own in found], f"{loaded[0].note}; sha256 {digest}"


def _init_rows(rows: np.ndarray, most: int, seed: int, member: int) -> np.ndarray:
    """Return the rows that initial weights may be fitted to, drawn at random."""
    chosen = np.random.default_rng([seed, member] if member else seed).permutation(len(rows))[:most]
    return rows[np.sort(chosen)]


def _training_rows(prepared: Prepared, rows: np.ndarray) -> Batch:
    """Return training rows; of a streamed data set the images stay on disk."""
    batch = prepared.batch
    images = {"image": Picked(batch["image"], rows)} if prepared.streamed and "image" in batch else {}
    return take({name: values for name, values in batch.items() if name not in images}, rows) | images


def make_plan(config: Config) -> Plan:
    """Return how long and by what to train. Convolutions stay out of loops on CPU: XLA lays them out badly there."""
    monitor = config.training.early_stopping.monitor
    return Plan(
        threads=threads_in_use(),
        name=config.name,
        seed=config.seed,
        training=config.training,
        loop=image_settings(config) is None or platform() != "cpu",
        monitor=monitor if isinstance(monitor, str) else "",
        precision=str(config.precision),
    )


def _refuse_useless(config: Config, prepared: Prepared) -> None:
    """Raise ConfigError or DataError where training would measure nothing or change nothing."""
    training, weight = config.training, prepared.batch.get("weight")
    train_rows, validation_rows = rows_to_learn(prepared.split, weight)
    where, _, metric = make_plan(config).monitor.partition("_")
    known, weighed = metric_names(prepared.schema.target), "" if weight is None else " with a weight above 0"
    problems = []
    if where and metric not in known:
        told = f"expected {where}_X with X one of {', '.join(known)} for this target, got {where}_{metric}"
        problems.append(f"training.early_stopping.monitor: {told}")
    if where == "val" and not validation_rows:
        problems.append(f"training.early_stopping.monitor: expected train_X, as there are no validation rows{weighed}")
    if training.calibration in CALIBRATED and not ("ece" in known and validation_rows):
        problems.append(
            f"training.calibration: {training.calibration} expected a target of classes or labels and validation rows"
            f"{weighed}, got {prepared.schema.target.task} and {validation_rows} rows; remove it, or set it to none"
        )
    elif training.calibration == "matrix":
        problems += _no_matrix(prepared.schema.target)
    validation = prepared.split.validation if prepared.split.folds is None else prepared.split.train
    if weight is not None:
        validation = validation[weight[validation] > 0]
    problems += decision_problems(training, prepared.schema, prepared.batch["label"][validation])
    if (members := make_members(config, prepared.split)) and prepared.streamed:
        key = "training.seeds" if training.seeds else "split.folds" if members.folds else "training.members"
        problems.append(
            f"{key}: expected rows in memory to train {len(members.numbers)} models beside each other, got rows that "
            "are streamed from disk; set data.loading: resident, or train one model"
        )
    problems += _image_problems(config, prepared)
    if config.model.fusion.own_heads and not prepared.schema.features:
        problems.append("model.fusion.own_heads: expected columns beside the images, got none; remove it")
    batches = _batches(training, train_rows) * _epochs(training)
    if training.accumulate_steps > batches:
        told = f"expected at most {batches}, the batches of the whole run, got {training.accumulate_steps}"
        problems.append(f"training.accumulate_steps: {told}; no update would be made")
    if problems:
        raise ConfigError(problems)
    if weight is not None and not weight[prepared.split.train].any():
        raise DataError("weight_column: expected a weight above 0 among the training rows, got only zeros")


def _no_matrix(target: Target) -> list[str]:
    """Return why there can be no matrix of the classes, if there cannot."""
    if not target.labels and len(target.classes) <= MOST_CLASSES:
        return []
    found = "labels" if target.labels else f"{len(target.classes)} of them"
    told = f"matrix expected at most {MOST_CLASSES} classes of which each row has one, got {found}"
    return [f"training.calibration: {told}; set it to temperature"]


def _image_problems(config: Config, prepared: Prepared) -> list[str]:
    """Return what the config asks of images that only the data tells to be impossible."""
    image, spec = config.data.image, prepared.schema.image
    if image is None or spec is None:
        return []
    problem = size_problem(image.train_size, (spec.height_px, spec.width_px))
    cut = image.augmentation.cutmix_alpha > 0 and prepared.schema.target.task == "regression"
    return [
        *([f"data.image.train_size: {problem}"] if problem else []),
        *([f"data.image.augmentation.cutmix_alpha: {NO_CUTMIX}"] if cut else []),
    ]


def _updates(config: Config, rows: int) -> np.ndarray:
    """Return the number of optimizer updates done at the end of each epoch, i32[epochs]."""
    training = config.training
    batches = np.arange(1, _epochs(training) + 1) * _batches(training, rows)
    return np.maximum(1, batches // training.accumulate_steps).astype(np.int32)


def _epochs(training: Training) -> int:
    assert isinstance(training.epochs, int), "the recipe decides the epochs"
    return training.epochs


def _batches(training: Training, rows: int) -> int:
    """Return the batches of one epoch."""
    assert isinstance(training.batch_size, int), "the recipe decides the batch size"
    return rows // training.batch_size


def _loss(config: Config, prepared: Prepared, train: Batch) -> Loss:
    target = prepared.schema.target
    weights = None
    if target.task == "classification":
        counts = np.bincount(train["label"], minlength=len(target.classes))
        weights = class_weight_array(config.training.class_weights, target.classes, counts)
    elif target.task == "multilabel":
        held, rows = np.asarray(train["label"]).sum(axis=0), len(train["label"])
        weights = label_weight_array(config.training.class_weights, target.classes, held, rows)
    return make_loss(config.training, task=target.task, class_weights=weights)


_WHILE_TRAINING = ("loss", "accuracy", "subset_accuracy")
"""Metrics of the training rows that are added up in the steps."""


def _measure(scorer: Scorer, fitted: tuple[Any, Any], monitor: str, *, alone: bool = False) -> Measure:
    """Return what looks at the validation rows after each epoch, and at the training rows when `monitor` needs it.

    With `alone` of the first of several members, as a model of its own, whose states `fitted` are.
    """
    of_train = monitor.startswith("train_") and monitor.removeprefix("train_") not in _WHILE_TRAINING
    split, members = scorer.prepared.split, scorer.members
    train, held = (members.rows, members.held) if members else ((split.train,), (split.validation,))
    if alone:
        scorer, train, held = scorer._replace(members=None), train[:1], held[:1]

    def measure(variables: Any, active: np.ndarray) -> list[dict[str, float]]:
        states = States(variables, *fitted)

        def of_active(rows: Sequence[np.ndarray]) -> list[dict[str, float]]:
            return scorer.metrics(states, [own if on else own[:0] for own, on in zip(rows, active, strict=True)])

        seen = of_active(train) if of_train else [{} for _ in train]
        return [
            {f"val_{name}": value for name, value in own.items()}
            | {f"train_{name}": value for name, value in more.items() if name not in _WHILE_TRAINING}
            for own, more in zip(of_active(held), seen, strict=True)
        ]

    return measure
