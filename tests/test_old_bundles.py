"""A trained bundle of every format there ever was answers as on the day it was made, on every supported version."""

from pathlib import Path

import numpy as np
import pytest

from mmjax.artifact.predictor import golden_problems, load_predictor

BUNDLES = [Path(__file__).parent / "fixtures" / "iris_v1"]


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda folder: folder.name)
def test_golden_rows_replay_tightly_and_compiled(folder: Path) -> None:
    assert golden_problems(folder) == []
    answer = load_predictor(folder).predict(
        [{"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}]
    )
    assert answer.prediction.tolist() == ["setosa"]
    assert answer.probabilities is not None
    np.testing.assert_allclose(answer.probabilities.sum(), 1.0, atol=1e-6)
