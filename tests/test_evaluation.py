import math

import pandas as pd
import pytest
import torch

from lib import dial
from lib.dial import TIERS, dial_tokenizer, gold_response, new_dial_model, sample_questions, token_cost
from lib.engines.generate import Response, decision_states, generate
from lib.formats import ReasoningFormat
from lib.measure import evaluation, intervals
from lib.measure.modes import Answer


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


def test_format_shares_by_tier_and_the_valid_share():
    def answers(*formats, answer="3"):
        return [Answer(answer, format, "", 4, False) for format in formats]

    direct, _, code, _ = ReasoningFormat
    given = [
        *answers(direct, direct, code),
        *answers(direct, answer=None),
        *answers(code),
        *answers(None, answer=None),
    ]
    shares = evaluation.format_shares(given, ["hard"] * 4 + ["easy"] * 2)
    assert shares.columns.tolist() == ["direct", "short_cot", "code", "long_cot", "invalid"]
    assert shares.loc["hard"].tolist() == [0.5, 0, 0.25, 0, 0.25]
    assert shares.loc["easy"].tolist() == [0, 0, 0.5, 0, 0.5]
    assert shares.index.tolist() == ["hard", "easy"]
    assert evaluation.valid_share(given) == pytest.approx((4 / 6, *intervals.wilson_interval(4, 6)))
    with pytest.raises(ValueError):
        evaluation.format_shares(given, ["hard"])


def test_the_oracle_is_right_and_cheapest():
    questions = sample_questions(60, seed=0, depths=range(1, 13))
    rows = dial.oracle_rows(questions)
    assert rows["correct"].all()
    assert rows["tokens"].tolist() == [
        token_cost(f, q.depth) for f, q in zip(rows["format"], questions, strict=True)
    ]
    beyond = dial.oracle_rows(sample_questions(5, seed=0, depths=[13]))
    assert not beyond["correct"].any() and (beyond["tokens"] == 4).all()


def test_generation_keeps_the_order_counts_the_prefix_and_flags_truncation(model, tokenizer):
    prompts = [q.prompt for q in sample_questions(7, seed=0, depths=[9, 1, 5])]
    responses = generate(model, tokenizer, prompts, prefix="<COT>\n", max_new_tokens=5, batch_size=3)
    alone = [generate(model, tokenizer, [p], prefix="<COT>\n", max_new_tokens=5)[0] for p in prompts]
    assert responses == alone  # batching and padding change nothing
    for response in responses:
        assert response.text.startswith("<COT>\n")
        assert response.num_tokens == 6 if response.is_truncated else response.num_tokens <= 6
    assert generate(model, tokenizer, []) == []


def test_generation_is_seeded(model, tokenizer):
    prompts = [q.prompt for q in sample_questions(4, seed=0)]
    one, same, other = (
        [r.text for r in generate(model, tokenizer, prompts, temperature=1.0, max_new_tokens=8, seed=s)]
        for s in (0, 0, 1)
    )
    assert one == same != other
    with pytest.raises(ValueError, match="temperature must be 0"):
        generate(model, tokenizer, prompts, temperature=-1.0)


def test_evaluate_scores_a_model_that_knows_the_answer(model, tokenizer, monkeypatch):
    """Gold responses must score 1 at their closed-form cost, and wrong ones 0."""
    questions = sample_questions(24, seed=0, depths=range(1, 13))
    by_prompt = {q.prompt: q for q in questions}

    def speak_gold(model, tokenizer, prompts, **options):
        texts = [gold_response(by_prompt[p], ReasoningFormat.CODE) for p in prompts]
        return [Response(text, len(tokenizer(text).input_ids) + 1, False) for text in texts]

    monkeypatch.setattr(evaluation, "generate", speak_gold)
    rows = evaluation.evaluate(model, tokenizer, questions)
    assert rows["correct"].all() and not rows["truncated"].any()
    assert rows["tokens"].tolist() == [token_cost(ReasoningFormat.CODE, q.depth) for q in questions]
    rows = evaluation.evaluate(model, tokenizer, questions, read_answer=lambda text: "x")
    assert not rows["correct"].any()


def test_a_probe_reads_what_is_there_and_nothing_else():
    labels = list(TIERS) * 60
    signal = torch.eye(3)[torch.arange(180) % 3]
    noise = torch.randn(180, 8, generator=torch.Generator().manual_seed(0))
    assert evaluation.probe_accuracy(torch.cat([signal, noise], 1), labels) == 1
    assert evaluation.probe_accuracy(noise, labels) < 0.55
    with pytest.raises(ValueError, match="train_share"):
        evaluation.probe_accuracy(noise, labels, train_share=1.0)


def test_decision_states_do_not_depend_on_padding(model, tokenizer):
    prompts = [q.prompt for q in sample_questions(5, seed=0, depths=[1, 12, 4])]
    together = decision_states(model, tokenizer, prompts)
    alone = torch.cat([decision_states(model, tokenizer, [p]) for p in prompts])
    assert together.shape == (5, model.config.hidden_size)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_seed_interval_is_students():
    # mean 3, sample deviation sqrt(2.5), t(0.975, 4) = 2.7764
    half = 2.7764 * math.sqrt(2.5) / math.sqrt(5)
    assert intervals.seed_interval([1, 2, 3, 4, 5]) == pytest.approx((3, 3 - half, 3 + half), abs=1e-3)
    assert math.isnan(intervals.seed_interval([1])[1])


def test_policy_rows_and_their_summary():
    easy, hard = sample_questions(1, seed=0, depths=[1])[0], sample_questions(1, seed=0, depths=[9])[0]
    answers = [
        Answer(easy.answer, ReasoningFormat.DIRECT, "", 4, False),
        Answer("x", ReasoningFormat.CODE, "", 20, False),
        Answer(None, ReasoningFormat.LONG_COT, "", 60, True),
    ]
    rows = evaluation.policy_rows(answers, [easy, hard, hard])
    assert rows["format"].tolist() == ["direct", "code", "invalid"]
    assert rows["correct"].tolist() == [True, False, False]
    found = evaluation.policy_summary(rows)
    assert found["accuracy"] == pytest.approx(1 / 3) and found["mean_tokens"] == 28
    assert found["tiers"]["hard"]["format_share"]["code"] == 0.5
    assert found["tiers"]["easy"] == {
        "accuracy": 1.0,
        "mean_tokens": 4.0,
        "format_share": {"direct": 1.0, "short_cot": 0.0, "code": 0.0, "long_cot": 0.0, "invalid": 0.0},
    }
