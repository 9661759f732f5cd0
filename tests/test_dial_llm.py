"""The frozen LLM of the dial world: its corpus, its table, and that the best configuration depends."""

import random

import pytest
import torch

from lib.dial import Question, dial_tokenizer, frozen_llm, parse_question
from lib.dial.frozen_llm import (
    Habits,
    StyleCorpus,
    dial_surface,
    mixture,
    read_answer,
    sample_mixture_questions,
)
from lib.policies.load import load_policy
from lib.runs import check_provenance

CAREFUL = Habits(snap=0, leave_out=0, slip=0)
LONG = parse_question("The red dial shows 3. Turn it +4 x7 then +1 x9 later +5. Now?")


def test_mixtures_and_splits_are_what_was_asked_for():
    questions = sample_mixture_questions(90, seed=1, split="test")
    assert [mixture(q) for q in questions] == ["sums", "products", "mixed"] * 30
    assert {q.split for q in questions} == {"test"}
    assert {q.tier for q in questions} == {"easy", "medium", "hard"}
    assert questions == sample_mixture_questions(90, seed=1, split="test")
    assert {q.depth for q in sample_mixture_questions(9, seed=1, split="train", depths=[4])} == {4}


@pytest.mark.parametrize(
    ("steps", "sizes"), [(1, [5]), (2, [3, 2]), (3, [2, 2, 1]), (5, [1] * 5), (7, [1] * 7)]
)
def test_a_step_joins_as_many_turns_as_needed(steps, sizes):
    parts = frozen_llm.stretches(LONG.operations, steps)
    assert [len(part) for part in parts] == sizes
    assert [turn for part in parts for turn in part][:5] == list(LONG.operations)
    assert set(parts[5:]) <= {("+5",)}  # what is left over turns once more


@pytest.mark.parametrize("style", frozen_llm.STYLES)
def test_a_careful_writer_is_right_unless_asked_for_too_many_steps(style):
    tokenizer = dial_tokenizer()
    for question in sample_mixture_questions(60, seed=2, split="train"):
        for steps in frozen_llm.STEPS:
            text = frozen_llm.written_response(question, style, steps, random.Random(0), CAREFUL)
            if steps <= question.depth:
                assert read_answer(text) == question.answer
            whole = f"{frozen_llm.prompt(question, style, steps)} {text}"
            assert tokenizer.decode(tokenizer(whole).input_ids) == whole  # nothing outside the vocabulary


def test_habits_by_hand():
    sums = Question("3", ("+4", "+2"))
    assert frozen_llm.written_response(sums, "Jot", 2, random.Random(0), Habits(snap=1)) == "It shows 3."
    left_out = frozen_llm.written_response(LONG, "Jot", 3, random.Random(0), Habits(leave_out=1, slip=0))
    assert left_out == "Jot +4 x7 = 9 then +1 x9 = 0\nIt shows 0."
    slipped = frozen_llm.written_response(LONG, "think", 3, random.Random(0), Habits(leave_out=0, slip=1))
    assert slipped == "let me think.\n3 +4 x7 = 7\n7 +1 x9 = 8\n8 +5 = 8\nIt shows 8."


def test_documents_repeat():
    corpus = StyleCorpus(10, seed=3)
    assert [corpus[i] for i in range(10)] == [StyleCorpus(10, seed=3)[i] for i in range(10)]


def test_the_table_is_whole_and_belongs_to_the_checkpoint():
    table, record = frozen_llm.read_table(), check_provenance(frozen_llm.TABLE)
    assert len(table) == 35 * 72 and (table["asked"] == record["questions_per_cell"]).all()
    assert (table["right"] <= table["asked"]).all() and (table["right"] >= 0).all()
    shipped = check_provenance(frozen_llm.CHECKPOINTS / "dial-llm")
    assert record["checkpoint_sha256"] == shipped["sha256"]["model.safetensors"]


def test_the_surface_reads_the_table():
    space, table = frozen_llm.action_space(), frozen_llm.read_table()
    questions = sample_mixture_questions(12, seed=0, split="test")
    surface, tokens = dial_surface(questions)
    assert surface.values.shape == tokens.shape == (35, 72)
    for index, question in enumerate(questions):
        for action in (0, 17, 71):
            style, temperature, steps = space.decode(action)
            row = table[
                (table["kind"] == mixture(question))
                & (table["depth"] == question.depth)
                & (table["instruction"] == style)
                & (table["temperature"] == temperature)
                & (table["steps"] == steps)
            ].iloc[0]
            expected = surface.expected(torch.tensor([index]), torch.tensor([action])).item()
            assert expected == pytest.approx(row["right"] / row["asked"])


def test_there_is_something_to_adapt_to():
    """The best fixed configuration falls at least 10 points short of the best one per kind and depth."""
    surface, _ = dial_surface(sample_mixture_questions(900, seed=0, split="test"))
    everywhere = surface.values[surface.contexts]
    assert everywhere.max(-1).values.mean() - everywhere.mean(0).max() >= 0.10


def test_the_checkpoint_does_what_the_table_says():
    policy = load_policy("dial-llm")
    table = frozen_llm.read_table()
    questions = sample_mixture_questions(40, seed=99, split="test", mixtures=["mixed"], depths=[8])
    actions = [("think", 0.0, 4), ("think", 0.0, 9), ("Jot", 0.0, 2)]
    measured = frozen_llm.measure(policy, questions, actions=actions)
    for _, row in measured.iterrows():
        cell = table[
            (table["kind"] == "mixed")
            & (table["depth"] == 8)
            & (table["instruction"] == row["instruction"])
            & (table["temperature"] == row["temperature"])
            & (table["steps"] == row["steps"])
        ].iloc[0]
        assert abs(row["right"] / row["asked"] - cell["right"] / cell["asked"]) < 0.25
