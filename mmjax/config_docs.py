"""The config's structs as documentation: a JSON Schema for editors and `docs/CONFIG.md`.

`python -m mmjax.config_docs` writes both into `docs/`; a test keeps them equal to the structs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec import inspect

from mmjax.config import CLASSIFICATION_METRICS, MULTILABEL_METRICS, REGRESSION_METRICS, Config
from mmjax.config_structure import section_of
from mmjax.config_words import describe_type
from mmjax.config_yaml import join_path

_INTRODUCTION = """\
# Configuration

<!-- Written by `python -m mmjax.config_docs` from the structs in `mmjax/config.py`; do not edit by hand. -->

One YAML file describes a run. `data.tabular.path` with `data.tabular.target_column`, or `data.image.path` alone, is
enough; everything else has a default. Where the default reads *recipe*, it is decided by the look of the data, and
printed; a value you write always wins.

```yaml
data:
  tabular:
    path: data/sample/iris.csv
    target_column: species
```

- **Closed.** An unknown key, a key given twice, a wrong type, an impossible value or combination, and an option that
  would do nothing are errors. All of them are reported at once, each with its file, line, key and what to do.
- **Values.** `true` and `false` are the only booleans and `1e-3` is a number; `no`, `on`, `010`, `1:30` and dates are
  text. A number where text is due is written in quotes: `positive_class: "1"`. Anchors, aliases and tags are refused.
- **`extends: base.yaml`** at the top level inherits from another file, which may extend a third. Mappings merge;
  lists and values replace; `null` takes an inherited key away.
- **`--set training.epochs=5`** on the command line overrides the file, with the same rules: the value is YAML, lists
  included (`--set 'model.architecture.hidden_layers=[64, 64]'`).
- **Paths** are relative to the working directory; that of `extends` is relative to the file it stands in.
- `python -m mmjax.check --config C --show-origin` says which file, flag or default set each value.

Editors complete and check a config that begins with
`# yaml-language-server: $schema=../docs/config.schema.json`.
"""


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a config file: closed at every level, described, with defaults.

    A file that extends another may leave out what is required, as the other file may hold it.
    """
    schema = msgspec.json.schema(Config)
    root = schema["$defs"]["Config"]
    root["properties"] = {
        "extends": {"type": "string", "minLength": 1, "description": "A config file to inherit from."},
        **root["properties"],
    }
    partial = _relax(inspect.type_info(Config), schema["$defs"])
    partial["required"].remove("name")
    root["if"], root["then"] = {"not": {"required": ["extends"]}}, partial
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "mmjax config", **schema}


def _relax(kind: inspect.Type, definitions: dict[str, Any]) -> dict[str, Any]:
    """Take `required` off every section and return it as a schema of its own."""
    section = section_of(kind)
    if section is None:
        return {}
    required = definitions[section.cls.__name__].pop("required", [])
    inner = {field.encode_name: _relax(field.type, definitions) for field in section.fields}
    properties = {name: schema for name, schema in inner.items() if schema}
    return ({"required": required} if required else {}) | ({"properties": properties} if properties else {})


def markdown() -> str:
    """Return `docs/CONFIG.md`: an introduction, then a table of the keys of each section."""
    sections = "".join(_section(inspect.type_info(Config), ""))
    return f"{_INTRODUCTION}\n{sections}{_metrics()}"


def _section(kind: inspect.Type, path: str) -> list[str]:
    section = section_of(kind)
    if section is None:
        return []
    rows = [_row(field) for field in section.fields if section_of(field.type) is None]
    table = ["| key | value | default | meaning |", "|---|---|---|---|", *rows, ""] if rows else []
    heading = [f"## `{path}`" if path else "## Top level", "", " ".join((section.cls.__doc__ or "").split()), ""]
    inner = [text for field in section.fields for text in _section(field.type, join_path(path, field.encode_name))]
    return ["\n".join((*heading, *table)) + "\n", *inner]


def _row(field: inspect.Field) -> str:
    cells = (f"`{field.encode_name}`", describe_type(field.type), _default(field), description_of(field))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(field: inspect.Field) -> str:
    if field.required:
        return "the file's stem" if field.encode_name == "name" else "required"
    if field.default is msgspec.NODEFAULT:
        return "*recipe*"
    return "none" if field.default is None else f"`{json.dumps(field.default)}`"


def description_of(field: inspect.Field) -> str:
    """Return what a field means, or an empty string when its struct does not say."""
    kind = field.type
    return (kind.extra_json_schema or {}).get("description", "") if isinstance(kind, inspect.Metadata) else ""


def _metrics() -> str:
    lines = (
        "## Metrics",
        "",
        "`training.early_stopping.monitor` takes `val_X` or `train_X` with X one of these; whether lower or higher is",
        "better follows from the metric.",
        "",
        *_metric_table("classification", CLASSIFICATION_METRICS),
        *_metric_table("regression", REGRESSION_METRICS),
        *_metric_table("multilabel", MULTILABEL_METRICS, _OF_LABELS),
    )
    return "\n".join(lines)


def _metric_table(task: str, names: tuple[str, ...], own: Mapping[str, str] = MappingProxyType({})) -> tuple[str, ...]:
    meanings = {**_METRIC_MEANINGS, **own}
    return (f"| {task} | |", "|---|---|", *(f"| `{name}` | {meanings[name]} |" for name in names), "")


_OF_LABELS = {
    "subset_accuracy": "Share of rows with all labels right.",
    "hamming_loss": "Share of the labels of all rows that are wrong.",
    **{f"{name}_macro": "Mean over the labels." for name in ("precision", "recall", "f1")},
    **{f"{name}_micro": "Of all labels counted together." for name in ("precision", "recall", "f1")},
    "roc_auc": "Mean over the labels of the probability that a row that holds it scores higher than one that does not.",
    "pr_auc": "Mean over the labels of the average precision.",
    "log_loss": "Mean over labels and rows of -ln(probability of what is true), after calibration where there is any.",
    "brier": "Mean over labels and rows of the squared error of the probability.",
    "ece": "Expected calibration error of yes or no, whichever is more probable, of all labels together, in 15 bins.",
}
_MACRO, _MICRO, _WEIGHTED = (
    "Mean over the classes, each counting the same.",
    "Over all rows together: equal to the accuracy, as each row has one class.",
    "Mean over the classes, each counting by its rows.",
)
_METRIC_MEANINGS = {
    "loss": "`training.loss` as it is trained, smoothing and class weights included, before calibration; of a "
    "regression on the target in standard deviations.",
    "accuracy": "Share of rows that get their true class: by the most probable one, or by `training.threshold`.",
    "balanced_accuracy": "Mean over the classes of the share of their rows that are found (recall).",
    "top_3_accuracy": "Share of rows whose class is among the three most probable; for more than 3 classes.",
    "top_5_accuracy": "The same of five; for more than 5 classes.",
    **{f"{name}_macro": _MACRO for name in ("precision", "recall", "f1")},
    **{f"{name}_micro": _MICRO for name in ("precision", "recall", "f1")},
    **{f"{name}_weighted": _WEIGHTED for name in ("precision", "recall", "f1")},
    "precision": "Share of the rows called positive that are; for two classes.",
    "recall": "Share of the positive rows that are called so; for two classes.",
    "f1": "2 x precision x recall / (precision + recall); for two classes.",
    "roc_auc": "Probability that a positive row scores higher than a negative one; of more classes the mean, each "
    "against the rest.",
    "pr_auc": "Average precision: the area under precision over recall; of more classes the mean, each against the "
    "rest.",
    "log_loss": "Mean of -ln(probability of the true class), after calibration where there is any.",
    "refined_log_loss": "The log loss at the temperature that suits these rows best: what calibration cannot mend "
    "(arXiv 2501.19195). The temperature is found with each label smoothed by 1/(n+1), so of few rows it may be "
    "slightly above `log_loss`.",
    "selection_loss": "`refined_log_loss` plus the share of rows whose most probable class is wrong: what "
    "chooses the epoch of `realmlp`. Of three classes or more each class has the offset that suits these rows first, "
    "as calibration by `matrix` will give it one.",
    "brier": "Mean squared error of the probabilities; of more than two classes summed over them, 0 to 2.",
    "ece": "Expected calibration error: mean gap between confidence and accuracy, in 15 bins of confidence; "
    "of the most probable class always, whatever `training.threshold` calls the row.",
    "mcc": "Matthews correlation of true and predicted classes: 1 is perfect, 0 no better than chance.",
    "rmse": "Root of the mean squared error, in the target's unit.",
    "mae": "Mean absolute error, in the target's unit.",
    "r2": "Share of the target's variance that is explained: 1 is perfect, 0 as good as its mean, less is worse.",
    "mape": "Mean of the absolute error over the absolute target, a fraction; useless where targets are near 0. One of "
    "0 counts as 2.2e-16, as in scikit-learn: terminal and card then show `-` and say why, report.json has the number.",
}


def write_docs(folder: Path) -> None:
    """Write `CONFIG.md` and `config.schema.json` into `folder`."""
    (folder / "CONFIG.md").write_text(markdown(), encoding="utf-8")
    (folder / "config.schema.json").write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_docs(Path("docs"))
