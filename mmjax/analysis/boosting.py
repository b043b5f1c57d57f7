"""Gradient boosting as a baseline, by whichever library is installed; the one file that imports them.

Numbers enter as they are, NaN for missing, and categories as codes that the library knows to be categories. Trees are
added until the loss of other rows has not improved for `PATIENCE` trees.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

LIBRARIES = {
    "lightgbm": "LightGBM",
    "xgboost": "XGBoost",
    "catboost": "CatBoost",
    "sklearn": "scikit-learn",
}
"""Module -> name, in the order in which they are taken."""
TREES, PATIENCE, RATE = 500, 30, 0.1
THREADS = 1
"""OpenMP's threads wait for each other by spinning: beside other work on two cores, two made iris take 8 s."""


class BoostingFailed(Exception):
    """A library could not be loaded or did not take the data; its words."""


class Table(NamedTuple):
    """Rows for a library of trees, on the host."""

    x: np.ndarray
    """f64[N, F]: numbers, NaN for missing, then codes of categories, 0 for missing or unknown."""
    y: np.ndarray
    """i64[N] class, or f64[N]."""
    weight: np.ndarray
    """f64[N]."""


def installed_library() -> str | None:
    """Return the module of the first library of `LIBRARIES` that is installed; None without any."""
    return next((name for name in LIBRARIES if find_spec(name) is not None), None)


def boosted(
    library: str,
    train: Table,
    choose: Table,
    x: np.ndarray,
    *,
    categories: tuple[int, ...],
    classes: int,
    seed: int,
) -> tuple[np.ndarray, str]:
    """Return what trees fitted to `train` say of `x`, and whose and how many they are.

    f64[N, K] probabilities for K `classes`, f64[N, 1] for a number (0 classes). `categories` are codes in each of the
    last columns, code 0 included. Raises BoostingFailed with whatever the library says.
    """
    fits: dict[str, Callable[..., tuple[np.ndarray, int]]] = {
        "lightgbm": _lightgbm,
        "xgboost": _xgboost,
        "catboost": _catboost,
        "sklearn": _sklearn,
    }
    present = np.unique(train.y) if classes else np.zeros(0, np.int64)
    if classes:  # libraries want classes without gaps, and know none that they have not seen
        choose = Table(*(values[np.isin(choose.y, present)] for values in choose))
        train, choose = (each._replace(y=np.searchsorted(present, each.y)) for each in (train, choose))
    options = {"categories": categories, "classes": len(present), "seed": seed}
    if (classes and len(present) < 2) or not len(choose.y):
        raise BoostingFailed("expected training rows of two classes, and rows to choose by")
    try:
        found, trees = fits[library](train, choose, x, **options)
    except Exception as error:
        # Whatever a library raises: a baseline must not cost a trained model.
        raise BoostingFailed(f"{type(error).__name__}: {error}".partition("\n")[0]) from error
    if classes:
        answers = np.zeros((len(x), classes))
        answers[:, present] = found if found.ndim == 2 else np.stack([1.0 - found, found], axis=1)
    else:
        answers = found.reshape(-1, 1)
    return answers.astype(np.float64), f"{LIBRARIES[library]}, {trees} trees"


def _lightgbm(
    train: Table, choose: Table, x: np.ndarray, *, categories: tuple[int, ...], classes: int, seed: int
) -> tuple[np.ndarray, int]:
    import lightgbm  # pyright: ignore[reportMissingImports]

    first = x.shape[1] - len(categories)
    data = lightgbm.Dataset(
        train.x, train.y, weight=train.weight, categorical_feature=list(range(first, x.shape[1])), free_raw_data=False
    )
    objective: dict[str, Any] = {"objective": "regression"}
    if classes:
        objective = {"objective": "binary"} if classes == 2 else {"objective": "multiclass", "num_class": classes}
    settings = {**objective, "learning_rate": RATE, "seed": seed, "num_threads": THREADS, "verbosity": -1}
    model = lightgbm.train(
        {**settings, "deterministic": True},
        data,
        TREES,
        valid_sets=[data.create_valid(choose.x, choose.y, weight=choose.weight)],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    return np.asarray(model.predict(x, num_iteration=model.best_iteration)), model.best_iteration


def _xgboost(
    train: Table, choose: Table, x: np.ndarray, *, categories: tuple[int, ...], classes: int, seed: int
) -> tuple[np.ndarray, int]:
    import xgboost  # pyright: ignore[reportMissingImports]

    kinds = ["q"] * (x.shape[1] - len(categories)) + ["c"] * len(categories)

    def matrix(rows: np.ndarray, **labels: np.ndarray) -> Any:
        return xgboost.DMatrix(rows, feature_types=kinds, enable_categorical=True, nthread=THREADS, **labels)

    objective: dict[str, Any] = {"objective": "reg:squarederror"}
    if classes:
        objective = {"objective": "binary:logistic"}
        if classes > 2:
            objective = {"objective": "multi:softprob", "num_class": classes}
    model = xgboost.train(
        {**objective, "eta": RATE, "tree_method": "hist", "seed": seed, "nthread": THREADS, "verbosity": 0},
        matrix(train.x, label=train.y, weight=train.weight),
        TREES,
        evals=[(matrix(choose.x, label=choose.y, weight=choose.weight), "choose")],
        early_stopping_rounds=PATIENCE,
        verbose_eval=False,
    )
    trees = model.best_iteration + 1
    return model.predict(matrix(x), iteration_range=(0, trees)), trees


def _catboost(
    train: Table, choose: Table, x: np.ndarray, *, categories: tuple[int, ...], classes: int, seed: int
) -> tuple[np.ndarray, int]:
    import catboost  # pyright: ignore[reportMissingImports]

    first = x.shape[1] - len(categories)

    def pool(rows: np.ndarray, **labels: np.ndarray) -> Any:
        cells = rows.astype(object)
        cells[:, first:] = rows[:, first:].astype(np.int64)
        return catboost.Pool(cells, cat_features=list(range(first, rows.shape[1])), **labels)

    loss = "RMSE" if not classes else "Logloss" if classes == 2 else "MultiClass"
    model = catboost.CatBoost(
        {
            "loss_function": loss,
            "iterations": TREES,
            "learning_rate": RATE,
            "random_seed": seed,
            "thread_count": THREADS,
            "verbose": False,
            "allow_writing_files": False,
        }
    )
    model.fit(
        pool(train.x, label=train.y, weight=train.weight),
        eval_set=pool(choose.x, label=choose.y, weight=choose.weight),
        early_stopping_rounds=PATIENCE,
    )
    return np.asarray(model.predict(pool(x), prediction_type="Probability" if classes else "RawFormulaVal")), int(
        model.tree_count_ or 0
    )


def _sklearn(
    train: Table, choose: Table, x: np.ndarray, *, categories: tuple[int, ...], classes: int, seed: int
) -> tuple[np.ndarray, int]:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    first = x.shape[1] - len(categories)
    few = [first + i for i, codes in enumerate(categories) if codes <= 255]  # more than its bins hold are numbers
    settings = {"learning_rate": RATE, "max_iter": TREES, "early_stopping": True, "n_iter_no_change": PATIENCE}
    kind = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    model = kind(**settings, categorical_features=few, random_state=seed)  # pyright: ignore[reportArgumentType]
    chosen = {"X_val": choose.x, "y_val": choose.y, "sample_weight_val": choose.weight}
    with threadpool_limits(THREADS):
        model.fit(train.x, train.y, sample_weight=train.weight, **chosen)
        answers = model.predict_proba(x) if isinstance(model, HistGradientBoostingClassifier) else model.predict(x)
    return answers, int(model.n_iter_)
