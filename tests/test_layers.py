"""The house's law of layers: one table of every file, and no import that goes up or to a sibling room.

A file may import files of lower layers, and files of its own room in its own layer. A room is a key within a layer.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "mmjax"

LAYERS: dict[int, dict[str, str]] = {
    0: {
        "ground": """errors schema interrupts frames huge_pages network_facts numerics numerics_programs backend
            config config_conflict config_drafts config_load config_rules config_rules_images config_structure
            config_tree config_words config_yaml config_docs""",
    },
    1: {
        "data": """data/asked_images data/audit data/audit_columns data/audit_copies data/audit_drift data/audit_images
            data/audit_labels data/audit_leaks
            data/audit_rows data/audit_target data/cache data/cells data/decode data/decode_sheet
            data/encode data/encode_survey
            data/facts data/findings data/fingerprint data/folders data/idx data/image_bytes data/image_paths
            data/images data/infer
            data/kinds data/labels data/loading data/pipeline data/pixels data/prepare data/prepare_images
            data/prepare_table
            data/prepared data/prepared_cache data/quarantine data/schema_file data/split data/split_groups
            data/split_time data/stream data/survey data/table data/table_images data/table_survey data/target
            data/unknown data/validate data/validate_survey""",
        "transforms": """transforms/augment transforms/base transforms/boxes transforms/build transforms/image
            transforms/mix transforms/piecewise transforms/tabular transforms/trivial_augment""",
        "models": """models/activations models/airbench models/architecture models/base models/build models/convolution
            models/convolution_check models/convolution_forms models/efficientnet models/fusion models/layers
            models/mlp models/norms models/pools models/pretrained models/realmlp models/resnet models/state_dict
            models/tabm""",
        "training": """training/calibration training/callbacks training/classification_metrics training/conformal
            training/event_types training/fold_means training/label_metrics training/label_outputs training/losses
            training/matrix_scaling training/metrics training/outputs training/state training/stopping
            training/threshold""",
        "artifact": "artifact/answers artifact/files artifact/golden artifact/manifest artifact/tree",
        "client": "client client_binary client_bodies client_http",
        "analysis": """analysis/answers analysis/card analysis/log analysis/present analysis/report
            analysis/tables""",
    },
    2: {
        "training": """training/checkpoint training/decide training/events training/fine_tuning training/members
            training/optimizer training/program training/scoring training/steps""",
        "artifact": "artifact/bundle artifact/registry artifact/runs",
    },
    3: {
        "parts": "parts",
        "recipe": "recipe recipe_training",
        "evaluation": """analysis/baseline_data analysis/baseline_labels analysis/baseline_models
            analysis/baseline_quantiles analysis/baselines
            analysis/boosting
            analysis/bootstrap analysis/bootstrap_labels
            analysis/bootstrap_ranking analysis/compare analysis/evaluation
            analysis/modalities analysis/noise analysis/trust analysis/verdict""",
    },
    4: {
        "training": "training/scorer training/setup",
        "artifact": "artifact/models artifact/parity artifact/predictor artifact/sample",
    },
    5: {
        "cli": "cli",
        "resume": "resume",
        "drill": "drill",
        "ensembles": "ensembles",
        "outcome": "outcome",
        "run_inputs": "run_inputs",
        "budget": "budget",
        "serving": """serving/answering serving/app serving/batcher serving/client serving/compression serving/device
            serving/engine serving/express serving/health serving/image_bodies serving/life serving/limits serving/log
            serving/mixed serving/numbers serving/observe serving/open_inference serving/open_inference_extras
            serving/open_inference_inputs serving/open_inference_model serving/open_inference_reply
            serving/open_inference_request serving/open_inference_tensors serving/openapi serving/openapi_schemas
            serving/outer serving/page serving/parity serving/probes serving/protocol serving/reload serving/routes
            serving/settings serving/table_bodies serving/tables serving/wire""",
    },
    6: {
        door: door
        for door in ("train", "evaluate", "predict", "serve", "init", "check", "registry", "runs", "__main__")
    },
    7: {"surface": "__init__"},
}

# Who may import what: prefixes of files, by top-level package; an empty tuple means nobody.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "flax": ("models/",),
    "optax": ("training/",),
    "orbax": ("training/checkpoint",),
    "pandas": ("data/table",),
    "PIL": ("data/decode",),
    "grain": ("data/",),
    "litestar": ("serving/", "serve"),
    "uvicorn": ("serving/", "serve"),
    "sklearn": ("analysis/boosting",),
    "lightgbm": ("analysis/boosting",),
    "xgboost": ("analysis/boosting",),
    "catboost": ("analysis/boosting",),
    "threadpoolctl": ("analysis/boosting",),
    "scipy": (),
    "pickle": (),
    "cloudpickle": (),
    "joblib": (),
    "shelve": (),
    "marshal": (),
}

Place = tuple[int, str]


def places(layers: Mapping[int, Mapping[str, str]]) -> dict[str, Place]:
    """File (without .py, relative to the package) to its layer and room; a file listed twice fails."""
    rows = [(f, (n, room)) for n, rooms in layers.items() for room, files in rooms.items() for f in files.split()]
    table = dict(rows)
    assert len(table) == len(rows), "a file is listed twice"
    return table


def sources() -> dict[str, str]:
    """File to source text, for every Python file of the package."""
    return {p.relative_to(PACKAGE).with_suffix("").as_posix(): p.read_text("utf-8") for p in PACKAGE.rglob("*.py")}


def imported(file: str, source: str) -> Iterator[str]:
    """Dotted names that `source` imports anywhere; `from a import b` gives `a.b`, relative imports are resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ["mmjax", *file.split("/")][: -node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def target(name: str, files: Mapping[str, str]) -> str | None:
    """The file of the package that the dotted name lies in, or None when it is no name of the package."""
    parts = name.split(".")
    if parts[0] != "mmjax":
        return None
    for length in range(len(parts), 1, -1):
        stem = "/".join(parts[1:length])
        if stem in files:
            return stem
        if f"{stem}/__init__" in files:
            return f"{stem}/__init__"
    return "__init__"


def wrong_edges(files: Mapping[str, str], table: Mapping[str, Place]) -> list[str]:
    """One line for each import between files of the package that the law forbids."""
    wrong = []
    for file, source in sorted((f, text) for f, text in files.items() if f in table):
        targets = {target(name, files) for name in imported(file, source)} - {file}
        for other in sorted(other for other in table if other in targets):
            here, there = table[file], table[other]
            if there[0] > here[0]:
                wrong.append(f"{file} (layer {here[0]}) imports {other} (layer {there[0]}): an edge upward")
            elif there[0] == here[0] and there[1] != here[1]:
                wrong.append(f"{file} imports {other}: rooms {here[1]} and {there[1]} are siblings in layer {here[0]}")
    return wrong


def wrong_packages(files: Mapping[str, str]) -> list[str]:
    """One line for each import of an outside package in a file that may not have it."""
    wrong = []
    for file, source in sorted(files.items()):
        for package in sorted({name.split(".")[0] for name in imported(file, source)} & set(ONLY_IN)):
            if not file.startswith(ONLY_IN[package]):
                wrong.append(f"{file} imports {package}: {' and '.join(ONLY_IN[package]) or 'nobody'} may")
    return wrong


def test_the_table_lists_every_file_and_no_other():
    files, table = set(sources()), set(places(LAYERS))
    doors = {file for file in files if file.endswith("/__init__")}
    assert sorted(files - doors - table) == [], "these files have no layer yet"
    assert sorted(table - files) == [], "these files are gone"


def test_a_room_has_an_empty_door():
    full = [f for f, text in sources().items() if f.endswith("/__init__") and list(imported(f, text))]
    assert full == [], "the __init__ of a room imports nothing, so that importing one file loads only what it needs"


def test_no_import_goes_up_or_aside():
    files = sources()
    assert wrong_edges(files, places(LAYERS)) == []


def test_heavy_packages_stay_in_their_files():
    assert wrong_packages(sources()) == []


HOUSE = {"a": (0, "ground"), "data/b": (1, "data"), "data/c": (1, "data"), "models/d": (1, "models"), "e": (2, "top")}


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("data/b", "from mmjax.a import x", []),
        ("data/b", "from mmjax.data.c import x", []),
        ("data/b", "from mmjax.data import c", []),
        ("data/b", "def f():\n    import mmjax.e", ["data/b (layer 1) imports e (layer 2): an edge upward"]),
        ("a", "from .e import x", ["a (layer 0) imports e (layer 2): an edge upward"]),
        ("data/b", "from ..e import x", ["data/b (layer 1) imports e (layer 2): an edge upward"]),
        ("data/b", "from mmjax import models, e", ["data/b (layer 1) imports e (layer 2): an edge upward"]),
        ("data/b", "import mmjax.models.d", ["data/b imports models/d: rooms data and models are siblings in layer 1"]),
        ("e", "import mmjax.models.d, numpy", []),
    ],
)  # fmt: skip
def test_the_law_sees_forbidden_edges(file: str, source: str, expected: list[str]):
    doors = dict.fromkeys(["data/__init__", "models/__init__"], (0, "ground"))
    files = {**dict.fromkeys([*HOUSE, *doors], ""), file: source}
    assert wrong_edges(files, {**HOUSE, **doors}) == expected


def test_the_law_sees_packages_in_the_wrong_file():
    files = {"data/table": "import pandas as pd", "data/split": "from pandas import read_csv", "e": "import pickle"}
    assert wrong_packages(files) == [
        "data/split imports pandas: data/table may",
        "e imports pickle: nobody may",
    ]
