"""What the shipped base and SFT models must be able to do, measured on questions they never saw."""

import pandas as pd
import pytest

from lib import dial, tasks
from lib.dial import sample_questions
from lib.engines.ask import ask, respond
from lib.formats import ReasoningFormat
from lib.measure import evaluation
from lib.measure.modes import answer
from lib.policies.load import load_policy
from lib.studies.qlora_tables import valid_share
from lib.studies.shared import decision_states, probe_accuracy
from lib.tasks import rollout_table

D, S, C, L = ReasoningFormat
pytestmark = pytest.mark.slow  # thousands of responses of the shipped models


@pytest.fixture(scope="module")
def base():
    return load_policy("dial-base")


@pytest.fixture(scope="module")
def accuracy(base):
    """Accuracy of each untagged style at each depth, on 200 distinct unseen questions."""
    tasks = dial.dial_tasks(2400, seed=11, depths=range(1, 13), distinct=True)
    table = {}
    for style in ReasoningFormat:
        rollouts = ask(base, tasks, prefix=dial.UNTAGGED_PREFIX[style], read=dial.read_untagged)
        table[style] = rollout_table(rollouts, tasks).groupby("depth")["correct"].mean()
    return pd.DataFrame(table)


def test_the_staircase(accuracy):
    assert accuracy.loc[1:2, D].min() >= 0.95 and accuracy.loc[4:, D].max() <= 0.40
    assert accuracy.loc[1:4, S].min() >= 0.95 and accuracy.loc[8:, S].max() <= 0.40
    assert accuracy.loc[1:8, C].min() >= 0.95 and accuracy.loc[11:, C].max() <= 0.50
    assert accuracy.loc[1:12, L].min() >= 0.95


def test_difficulty_is_readable_where_the_format_is_chosen(base):
    questions = sample_questions(1200, seed=12, split="test")
    states = decision_states(*base, [question.prompt for question in questions])
    assert probe_accuracy(states, [question.tier for question in questions]) >= 0.9


def test_the_base_does_not_know_the_tags(base):
    rollouts = ask(base, dial.dial_tasks(600, seed=13), temperature=1.0)
    assert valid_share(rollouts)[0] < 0.05


def test_the_base_has_met_every_tag_as_a_word(base):
    """It can repeat a tag, so the embeddings of the tags are trained, and differ."""
    tags = [f"<{format.tag}>" for format in ReasoningFormat]
    prompts = [tasks.FRAME.format(question=f"Say +4 {tag}\n dial") for tag in tags]
    responses = respond(base, prompts, max_new_tokens=8)
    assert [tag in response.text for tag, response in zip(tags, responses, strict=True)] == [True] * 4


@pytest.fixture(scope="module")
def sft():
    return load_policy("dial-sft")


def test_sft_uses_every_format_on_every_tier(sft):
    questions = dial.dial_tasks(1500, seed=101)
    rollouts = answer(sft, questions, temperature=1.0, seed=101)
    assert valid_share(rollouts)[0] >= 0.99
    shares = evaluation.format_shares(rollout_table(rollouts, questions))[list(ReasoningFormat)]
    assert shares.min().min() >= 0.15 and shares.max().max() <= 0.40
    states = decision_states(*sft, [question.prompt for question in questions])
    assert probe_accuracy(states, [question.tier for question in questions]) >= 0.9


def test_sft_keeps_the_staircase(sft):
    questions = dial.dial_tasks(1200, seed=102, depths=range(1, 13), distinct=True)
    table = rollout_table(evaluation.ask_in_every_format(sft, questions), questions)
    accuracy = table.groupby(["depth", "mode"])["correct"].mean().unstack()
    assert accuracy.loc[1:2, D].min() >= 0.95 and accuracy.loc[4:, D].max() <= 0.40
    assert accuracy.loc[1:6, S].min() >= 0.95 and accuracy.loc[8:, S].max() <= 0.40
    assert accuracy.loc[1:8, C].min() >= 0.95 and accuracy.loc[11:, C].max() <= 0.50
    assert accuracy.loc[:, L].min() >= 0.94 and accuracy.loc[:, L].mean() >= 0.97
