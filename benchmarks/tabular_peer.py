"""The peers' side of `tabular_quality.py`: fits one model on a training CSV, and predicts the rows of a test CSV.

Run by the Python of `benchmarks/.peers-tabular` (see make_peers.py). JSON on standard input: {"model", "train", "test",
"target", "task", "classes", "missing", "seed", "device", "output"}. What it predicts is written to `output` (`.npy`):
f64[N, K] probabilities in the order of `classes`, or f64[N] values. JSON on standard output: {"seconds"} of reading,
fitting and predicting, without imports.

Every peer gets its defaults and the same columns. What the defaults do not say, and its users must choose:
- pytabkit refuses missing numbers, also for its trees, and says to impute them beforehand; so do scikit-learn's network
  and linear models: they get the median of the training rows, and one column more that tells where it was.
- `_ce` (classification only) is what pytabkit's README recommends where AUC or log-loss counts: cross-entropy, not the
  share of wrong answers, chooses the epoch or the number of trees, and RealMLP is trained without label smoothing.
- scikit-learn's network and linear models get standardised numbers and one-hot categories; the network a standardised
  target too, without which it learns nothing of prices; logistic regression up to 1,000 iterations, to converge.
"""

import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

Frames = tuple[pd.DataFrame, pd.DataFrame]
"""The columns of training and of test rows: numbers as floats, all others as categories; NaN where missing."""

LOADED = {
    "RealMLP": ("lightning", "torchmetrics"),
    "CatBoost": ("catboost",),
    "XGB": ("xgboost",),
    "LGBM": ("lightgbm",),
}
"""What pytabkit imports only when it fits: imported before the timer starts."""


def main() -> None:
    """Answer one request."""
    warnings.filterwarnings("ignore")
    request = json.load(sys.stdin)
    model, prepare = make_model(request["model"], request["task"], request["seed"], request["device"])
    os.chdir(os.path.dirname(request["output"]))  # CatBoost and Lightning leave folders where they run
    started = time.perf_counter()
    train, test = (pd.read_csv(request[part], na_values=request["missing"], dtype=dtype_of(request)) for part in PARTS)
    answers = train.pop(request["target"])
    frames = prepare(typed(train, test.drop(columns=request["target"])))
    if request["task"] == "regression":
        model.fit(frames[0], answers.to_numpy(np.float64))
        predicted = np.asarray(model.predict(frames[1]), np.float64).reshape(-1)
    else:
        classes = np.array(request["classes"])
        model.fit(frames[0], np.searchsorted(classes, answers.to_numpy(str)))
        predicted = np.zeros((len(test), len(classes)))
        predicted[:, np.asarray(model.classes_, int)] = model.predict_proba(frames[1])
    seconds = time.perf_counter() - started
    np.save(request["output"], predicted)
    print(json.dumps({"seconds": seconds}))


PARTS = ("train", "test")


def dtype_of(request: dict[str, Any]) -> dict[str, type]:
    """Return how the target is to be read: as text where it is a class."""
    return {} if request["task"] == "regression" else {request["target"]: str}


def typed(train: pd.DataFrame, test: pd.DataFrame) -> Frames:
    """Return both with their columns as floats or categories; a column is of numbers when it is so in both."""
    for name in train.columns:
        numeric = all(pd.api.types.is_numeric_dtype(frame[name]) for frame in (train, test))
        for frame in (train, test):
            frame[name] = frame[name].astype(np.float64) if numeric else frame[name].astype(object).astype("category")
    return train, test


def as_is(frames: Frames) -> Frames:
    """Return the columns with their gaps."""
    return frames


def imputed(frames: Frames) -> Frames:
    """Return the columns with gaps in numbers filled, and an indicator for each column that has gaps in training."""
    train, test = frames
    for name in train.select_dtypes("number").columns:
        gaps, median = train[name].isna().any(), train[name].median()
        for frame in (train, test):
            if gaps:
                frame[f"{name} is missing"] = frame[name].isna().astype(np.float64)
            frame[name] = frame[name].fillna(median)
    return train, test


def make_model(name: str, task: str, seed: int, device: str) -> tuple[Any, Callable[[Frames], Frames]]:
    """Return a model to fit, and what its columns go through first."""
    classify = task != "regression"
    if "_TD" in name:
        return _pytabkit(name, classify, seed, device), imputed
    if name == "HistGradientBoosting":
        from sklearn import ensemble

        made = ensemble.HistGradientBoostingClassifier if classify else ensemble.HistGradientBoostingRegressor
        return made(categorical_features="from_dtype", random_state=seed), as_is
    return _scikit_learn(name, classify, seed), imputed


def _pytabkit(name: str, classify: bool, seed: int, device: str) -> Any:
    import pytabkit

    for module in LOADED[name.partition("_")[0]]:
        try:
            importlib.import_module(module)
        except ImportError:
            importlib.import_module(f"pytorch_{module}")
    settings: dict[str, Any] = {"device": device, "random_state": seed}
    if name.endswith("_ce"):
        settings["val_metric_name"] = "cross_entropy"
        if name.startswith("RealMLP"):
            settings["use_ls"] = False
    kind = "Classifier" if classify else "Regressor"
    return getattr(pytabkit, f"{name.removesuffix('_ce')}_{kind}")(**settings)


def _scikit_learn(name: str, classify: bool, seed: int) -> Any:
    from sklearn.compose import ColumnTransformer, TransformedTargetRegressor, make_column_selector
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    made = {
        ("sklearn_MLP", True): lambda: MLPClassifier(random_state=seed),
        ("sklearn_MLP", False): lambda: TransformedTargetRegressor(
            MLPRegressor(random_state=seed), transformer=StandardScaler()
        ),
        ("sklearn_linear", True): lambda: LogisticRegression(max_iter=1000),
        ("sklearn_linear", False): Ridge,
    }
    columns = ColumnTransformer(
        [
            ("numbers", StandardScaler(), make_column_selector(dtype_include="number")),
            ("categories", OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_include="category")),
        ]
    )
    return make_pipeline(columns, made[name, classify]())


if __name__ == "__main__":
    main()
