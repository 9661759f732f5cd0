"""The logs of a run are thinned before they are shipped, and keep what figures need."""

import pandas as pd
import pytest

from lib.studies.trainings import thinned


def test_logs_are_thinned_to_means():
    rows = [{"step": i, "accuracy": i / 100, "clip_ratio/low_mean": 1.0} for i in range(1, 101)]
    rows.append({"step": 100, "train_runtime": 5.0})
    found = thinned(rows, 40)
    assert len(found) <= 40 and found[0] == {"step": 3, "accuracy": 0.02}
    assert found[-1]["train_runtime"] == 5.0
    assert pd.DataFrame(found)["accuracy"].mean() == pytest.approx(0.505, abs=0.01)


def test_evaluations_keep_their_steps():
    rows = [{"step": i, "loss": 1.0, "reward": float(i)} for i in range(1, 101)]
    rows += [{"step": i, "eval_accuracy": i / 100, "eval_runtime": 9.0} for i in (0, 50, 100)]
    found = thinned(rows, 40)
    assert [row for row in found if "eval_accuracy" in row] == [
        {"step": 0.0, "eval_accuracy": 0.0},
        {"step": 50.0, "eval_accuracy": 0.5},
        {"step": 100.0, "eval_accuracy": 1.0},
    ]
    assert [row["step"] for row in found] == sorted(row["step"] for row in found)
