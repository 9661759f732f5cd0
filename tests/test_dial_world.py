"""Notebook 00's library: bounds of choosing, prompts of one length, worked lines taken apart."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from lib.dial import dial_tokenizer, sample_questions, untagged_response
from lib.formats import ReasoningFormat
from lib.studies import dial_world
from lib.studies.lesson_figures import share_bars


def test_hindsight_takes_the_cheapest_right_response_and_else_the_cheapest():
    rows = [("a", 0, True, 9), ("a", 0, True, 5), ("a", 0, False, 2), ("b", 0, False, 9), ("b", 0, False, 2)]
    table = pd.DataFrame(rows, columns=["task_id", "sample", "correct", "tokens"])
    chosen = dial_world.hindsight_rows(table).set_index("task_id")
    assert chosen["tokens"].to_dict() == {"a": 5, "b": 2} and chosen["correct"].to_dict() == {"a": 1, "b": 0}


def test_mixtures_are_the_upper_edge():
    points = pd.DataFrame({"tokens": [5, 10, 20, 30, 40], "accuracy": [0.2, 0.3, 0.8, 0.7, 1.0]})
    corners = dial_world.mixtures(points)
    assert corners["tokens"].tolist() == [5, 20, 40]  # 10 lies below the line, 30 below its neighbours
    assert dial_world.mixed_accuracy(corners, 30) == pytest.approx(0.9)
    assert dial_world.mixed_accuracy(corners, 12.5) == pytest.approx(0.5)


def test_prompts_of_one_length_hold_the_same_question():
    tokenizer = dial_tokenizer()
    prompts = [q.prompt for q in sample_questions(24, seed=0, depths=range(1, 13))]
    filled = dial_world.of_one_length(prompts, tokenizer)
    assert len({len(ids) for ids in tokenizer(filled).input_ids}) == 1
    for prompt, long in zip(prompts, filled, strict=True):
        assert long.replace(" red", "") == prompt.replace(" red", "")
        assert tokenizer.unk_token_id not in tokenizer(long).input_ids


def test_a_gold_chain_has_no_fault_and_every_spoilt_one_has():
    for question in sample_questions(40, seed=0, depths=range(2, 17)):
        text = untagged_response(question, ReasoningFormat.LONG_COT)
        assert dial_world.first_fault(question, text) is None
        lines = text.split("\n")
        assert dial_world.first_fault(question, "\n".join(lines[:1] + lines[2:])) == "lines"
        assert dial_world.first_fault(question, f"It shows {question.answer}.") == "copy"
        wrong = str((int(question.answer) + 1) % 10)
        assert dial_world.first_fault(question, "\n".join([*lines[:-1], f"It shows {wrong}."])) == "answer"


def test_what_is_taken_apart():
    worked = dial_world.taken_apart(
        "Okay, let me think. The dial shows 3 and turns +4 x7.\n3 +4 = 7\nIt shows 7."
    )
    assert worked == (("+4", "x7"), (("3", "+4", "7"),), "7")


def test_the_percents_of_a_bar_sum_to_a_hundred():
    shares = pd.DataFrame({f: [0.125] for f in ReasoningFormat} | {"other": [0.5]}, index=["easy"])
    figure = share_bars(shares)
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert sum(int(label.rstrip("%")) for label in labels if label) == 100
    plt.close(figure)
