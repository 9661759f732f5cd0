import math
from contextlib import nullcontext
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from lib import dial
from lib.dial import TIERS, dial_tokenizer, new_dial_model, sample_questions, token_cost
from lib.engines.base import Completion, Request, Sampling
from lib.formats import ReasoningFormat
from lib.measure import evaluation, intervals
from lib.studies.paired import seed_interval
from lib.studies.qlora_tables import valid_share
from lib.studies.shared import asking, decision_states, probe_accuracy
from lib.tasks import Rollout, Task, rollout_table
from lib.verify import is_correct


@pytest.fixture(scope="module")
def tokenizer():
    return dial_tokenizer()


@pytest.fixture(scope="module")
def model():
    return new_dial_model(seed=0).eval()


def test_wilson_interval_against_hand_values():
    # 8 of 10 at z = 1.96: the textbook interval is [0.490, 0.943]
    assert intervals.wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert intervals.wilson_interval(0, 10)[0] == 0
    assert intervals.wilson_interval(10, 10)[1] == pytest.approx(1)
    with pytest.raises(ValueError, match="got 3 of 0"):
        intervals.wilson_interval(3, 0)


def test_mean_interval_uses_the_sample_deviation():
    values = [2, 4, 4, 4, 5, 5, 7, 9]  # mean 5, sample deviation sqrt(32 / 7)
    half = intervals.Z95 * math.sqrt(32 / 7) / math.sqrt(8)
    assert intervals.mean_interval(values) == pytest.approx((5 - half, 5 + half))


def test_summarise_groups_accuracy_and_tokens():
    rows = pd.DataFrame(
        {"format": ["a"] * 4 + ["b"] * 2, "correct": [1, 1, 0, 1, 0, 0], "tokens": [1, 2, 3, 4, 9, 9]}
    )
    table = evaluation.summarise(rows.astype({"correct": bool}), ["format"]).set_index("format")
    assert table.loc["a", ["accuracy", "tokens", "count"]].tolist() == [0.75, 2.5, 4]
    assert table.loc["a", "accuracy_low"] < 0.75 < table.loc["a", "accuracy_high"]
    assert table.loc["b", "tokens_low"] == table.loc["b", "tokens_high"] == 9


def answered(*given, tier="easy", depth=1):
    """A task and a rollout for each (format, answer, tokens); the right answer is 3."""
    tasks = [
        Task(f"t/{tier}{n}", "?", "3", "number", tier, source="t", depth=depth) for n in range(len(given))
    ]
    names = {"sample": 0, "seed": 0, "method": "", "mode": "adaptive", "text": "", "truncated": False}
    rollouts = [
        Rollout(task_id=t.id, format=f, answer=a, correct=is_correct(a, t.answer, t.kind), tokens=n, **names)
        for t, (f, a, n) in zip(tasks, given, strict=True)
    ]
    return tasks, rollouts


def test_format_shares_by_tier_and_the_valid_share():
    direct, _, code, _ = ReasoningFormat
    hard = answered((direct, "3", 4), (direct, "3", 4), (code, "3", 4), (direct, None, 4), tier="hard")
    easy = answered((code, "3", 4), (None, None, 4))
    rollouts = hard[1] + easy[1]
    shares = evaluation.format_shares(rollout_table(rollouts, hard[0] + easy[0]))
    assert shares.columns.tolist() == ["direct", "short_cot", "code", "long_cot", "invalid"]
    assert shares.loc["hard"].tolist() == [0.5, 0, 0.25, 0, 0.25]
    assert shares.loc["easy"].tolist() == [0, 0, 0.5, 0, 0.5]
    assert shares.index.tolist() == ["hard", "easy"]
    assert valid_share(rollouts) == pytest.approx((4 / 6, *intervals.wilson_interval(4, 6)))


def test_the_oracle_is_right_and_cheapest():
    questions = sample_questions(60, seed=0, depths=range(1, 13))
    rows = dial.oracle_rows(questions)
    assert rows["correct"].all()
    assert rows["tokens"].tolist() == [
        token_cost(f, q.depth) for f, q in zip(rows["format"], questions, strict=True)
    ]
    beyond = dial.oracle_rows(sample_questions(5, seed=0, depths=[13]))
    assert not beyond["correct"].any() and (beyond["tokens"] == 4).all()


def test_a_probe_reads_what_is_there_and_nothing_else():
    labels = list(TIERS) * 60
    signal = torch.eye(3)[torch.arange(180) % 3]
    noise = torch.randn(180, 8, generator=torch.Generator().manual_seed(0))
    assert probe_accuracy(torch.cat([signal, noise], 1), labels) == 1
    assert probe_accuracy(noise, labels) < 0.55


def test_decision_states_do_not_depend_on_padding(model, tokenizer):
    prompts = [q.prompt for q in sample_questions(5, seed=0, depths=[1, 12, 4])]
    together = decision_states(model, tokenizer, prompts)
    alone = torch.cat([decision_states(model, tokenizer, [p]) for p in prompts])
    assert together.shape == (5, model.config.hidden_size)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_seed_interval_is_students():
    # mean 3, sample deviation sqrt(2.5), t(0.975, 4) = 2.7764
    half = 2.7764 * math.sqrt(2.5) / math.sqrt(5)
    assert seed_interval([1, 2, 3, 4, 5]) == pytest.approx((3, 3 - half, 3 + half), abs=1e-3)
    assert math.isnan(seed_interval([1])[1])


def test_a_summary_of_formats():
    direct, _, code, long = ReasoningFormat
    easy, hard = answered((direct, "3", 4)), answered((code, "x", 20), (long, None, 60), tier="hard", depth=9)
    table = rollout_table(easy[1] + hard[1], easy[0] + hard[0])
    assert table["used"].tolist() == ["direct", "code", "invalid"]
    assert table["format"].tolist() == ["direct", "code", "long_cot"]
    assert table["depth"].tolist() == [1, 9, 9]
    found = evaluation.summary(table)
    assert found["accuracy"] == pytest.approx(1 / 3) and found["mean_tokens"] == 28
    assert found["tiers"]["hard"]["format_share"]["code"] == 0.5
    assert found["tiers"]["easy"] == {
        "accuracy": 1.0,
        "mean_tokens": 4.0,
        "format_share": {"direct": 1.0, "short_cot": 0.0, "code": 0.0, "long_cot": 0.0, "invalid": 0.0},
    }
    with pytest.raises(ValueError, match="2 rollouts are of tasks that were not given, t/hard0 for one"):
        rollout_table(easy[1] + hard[1], easy[0])


def test_a_summary_of_thinking():
    tasks, rollouts = answered(("thinking", "3", 40), ("nothinking", "3", 10), ("nothinking", "4", 10))
    found = evaluation.summary(rollout_table(rollouts, tasks))
    numbers = {"accuracy": 2 / 3, "mean_tokens": 20.0, "nothinking_ratio": 2 / 3}
    assert found == {**numbers, "tiers": {"easy": numbers}, "depths": {"1": numbers}}


def test_the_models_beside_make_room_while_one_is_asked(monkeypatch):
    parked = []
    monkeypatch.setattr(
        "lib.studies.shared.alone.parked", lambda *models: parked.append(models) or nullcontext()
    )
    with asking(("model", "tokenizer"), "transformers", "anywhere", beside=("other",)) as policy:
        assert policy == ("model", "tokenizer") and parked == [("other",)]


def test_vllm_is_not_asked_in_place_of_a_model_in_4_bits():
    quantised = (SimpleNamespace(is_loaded_in_4bit=True), None)
    refused = pytest.raises(ValueError, match="cannot ask a model in 4 bits: take ENGINE='transformers'")
    with refused, asking(quantised, "vllm", "anywhere"):
        pass


def test_what_a_server_wrote_is_not_asked_again(monkeypatch, tmp_path):
    """A measurement that was killed goes on; other weights at the same place begin anew."""
    asked = []

    def generate(requests, sampling):
        asked.extend(requests)
        return [Completion((1, 2), truncated=False) for _ in requests]

    server = SimpleNamespace(tokenizer=None, generate=generate)
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    monkeypatch.setattr("lib.studies.shared.alone.parked", lambda *models: nullcontext())
    monkeypatch.setattr("lib.studies.shared.alone.serving", lambda *given: nullcontext("http://here/v1"))
    monkeypatch.setattr("lib.studies.shared.alone.load_engine", lambda *given, **named: server)
    requests = [Request((1,), key=(str(n), 0)) for n in range(3)]
    for weights, fresh in (("a", 3), ("a", 0), ("b", 3)):
        monkeypatch.setattr("lib.studies.shared.alone.fingerprint", lambda source, weights=weights: weights)
        with asking((None, None), "vllm", "org/name") as engine:
            assert [one.ids for one in engine.generate(requests, Sampling())] == [(1, 2)] * 3
        assert len(asked) == fresh
        asked.clear()
