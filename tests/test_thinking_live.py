"""A live run of notebook 05 beside the shipped ones, and its figures, on answers that are made up."""

import numpy as np
import pandas as pd
import pytest

from lib.studies import thinking_bounds, thinking_live
from lib.studies import thinking_figures as draw
from lib.tasks import Rollout, Task


def task(place, depth):
    return Task(f"t{place}", "?", "1", "number", f"level {depth}", "math500", depth=depth)


def rollout(place, text, correct, method="thinking"):
    format = "nothinking" if text.startswith("</think>") else "thinking"
    return Rollout(f"t{place}", 0, 0, method, "adaptive", format, text, "1", correct, len(text), False)


def test_rollouts_become_answers_and_the_first_word_is_the_one_that_was_forced():
    tasks = [task(0, 1), task(1, 5), task(2, 5)]
    texts = ["</think> 1", "Alright, 1 </think> 1", "Okay, 1 </think> 1"]
    rollouts = [rollout(place, text, True) for place, text in enumerate(texts)]
    answers = thinking_live.as_answers(rollouts, tasks, start="Alright")
    assert answers["used"].tolist() == ["nothinking", "thinking", "other"]
    assert answers["skips"].tolist() == [True, False, False]
    assert answers["id"].tolist() == ["t0", "t1", "t2"] and set(answers["set"]) == {"balanced"}
    assert thinking_live.level(answers) == "depth"
    assert thinking_live.level(answers.assign(depth=[None, 1, 2])) == "tier"


@pytest.fixture
def live():
    """Skipping is right to level 2, thinking everywhere."""
    tasks = [task(place, place % 5 + 1) for place in range(40)]
    frames = []
    for method, text in (("thinking", "Okay, hm </think> 1"), ("nothinking", "</think> 1")):
        right = [method == "thinking" or one.depth <= 2 for one in tasks]
        rollouts = [rollout(place, text, right[place], method) for place in range(40)]
        frames.append(thinking_live.as_answers(rollouts, tasks, start="Okay"))
    return pd.concat(frames, ignore_index=True)


def test_a_live_run_has_thresholds_and_hindsight(live):
    points = thinking_bounds.points(thinking_live.routers(live)).set_index(["router", "setting"])
    best = points.loc[("threshold", "2")]
    assert best["accuracy"] == 1 and best["skips"] == 0.4
    assert points.loc[("hindsight", ""), "tokens"] == best["tokens"]
    assert points.loc[("threshold", "5"), "skips"] == points.loc[("threshold", "99"), "skips"] == 1


def test_points_have_intervals_that_fit(live):
    groups = {"modes": {"thinking": "always", "nothinking": "never", "nobody": "x"}}
    one = thinking_live.points(live, groups)
    assert one["policy"].tolist() == ["always", "never"]
    assert one["accuracy_high"].max() <= 1 and one["accuracy_low"][0] < 1  # Wilson's: not without width at 1
    both = thinking_live.points(pd.concat([live, live.assign(seed=1)]), groups)
    assert both["accuracy"].tolist() == one["accuracy"].tolist() and both["accuracy_low"][0] == 1


def test_figures_have_labelled_axes(live):
    lines = pd.DataFrame(
        {"method": "thinking", "depth": [1, 2], "skips": 0.5, "skips_low": 0.4, "skips_high": 0.6}
    )
    watched = pd.DataFrame({"step": [0, 10], "seed": 1, "other_start_ratio": 0.1, "accuracy": 0.9})
    watched = watched.assign(**{"easy/nothinking_ratio": 0.5, "easy/accuracy": 0.9})
    weights = pd.DataFrame({"sequence": [1e-8, 0.0]}, index=[1e-8, 0.9])
    groups = {"modes": {"thinking": "always"}}
    routers = thinking_bounds.points(thinking_live.routers(live))
    figures = [
        draw.pilot(live.assign(mode=live["method"]), "depth"),
        draw.weights({"right": weights, "wrong": weights}),
        draw.starts({"sequence, step 5": np.array([0.1, 0.2, 0.3])}),
        draw.watched(watched, pd.DataFrame(), ["easy"]),
        draw.mended({"forced": watched, "any": watched}),
        draw.depth_lines(lines, {"skips": "NoThinking ratio"}, trained=1),
        draw.plane(routers, thinking_live.points(live, groups), zoom=(0, 20, 0.5, 1)),
    ]
    for figure in figures:
        assert all(ax.get_xlabel() for ax in figure.axes) and figure.axes[0].get_ylabel()
