from dataclasses import replace

import pytest

from lib.dial import dial_task, dial_tokenizer, gold_response, new_dial_model, sample_questions, token_cost
from lib.engines import ask
from lib.engines.ask import Response
from lib.engines.base import Completion, Sampling
from lib.engines.local import TransformersEngine
from lib.formats import ReasoningFormat, render_response
from lib.measure.modes import answer, consensus, majority_vote
from lib.studies.budgets import close_response, cut_and_close
from lib.verify import is_correct

D, S, C, L = ReasoningFormat


@pytest.fixture(scope="module")
def policy():
    return new_dial_model(seed=0).eval(), dial_tokenizer()


@pytest.fixture
def asked(monkeypatch):
    """Replace generation by set responses; gives what was asked for."""
    calls = []

    def speak(responses):
        def respond(policy, prompts, *, keys, **options):
            calls.append({"prompts": list(prompts), **options})
            return responses

        monkeypatch.setattr(ask, "respond", respond)
        return calls

    return speak


def test_the_strict_parse_decides_what_the_answer_is(asked):
    [question] = sample_questions(1, seed=0, depths=[5])
    texts = {
        gold_response(question, C): (question.answer, C),
        gold_response(question, D): (question.answer, D),
        gold_response(question, S) + " and more": (None, S),
        "<LONG_COT>\nOkay, let me think": (None, L),
        "It shows 3.": (None, None),
    }
    asked([Response(text, 7, text.startswith("<LONG")) for text in texts])
    answers = answer((None, None), [dial_task(question)] * len(texts))
    assert [(a.answer, a.format) for a in answers] == list(texts.values())
    assert [a.text for a in answers] == list(texts)
    assert [a.truncated for a in answers] == [False, False, False, True, False]
    assert [a.correct for a in answers] == [True, True, False, False, False]
    assert all(a.tokens == 7 and a.agreed is None for a in answers)


@pytest.mark.parametrize(
    ("mode", "prefix"),
    [
        ("adaptive", ""),
        ("direct", "<ANSWER>\n"),
        ("short_cot", "<COT>\n"),
        ("code", "<CODE>\n"),
        ("long_cot", "<LONG_COT>\n"),
    ],
)
def test_each_mode_forces_its_tag_and_every_option_arrives(asked, mode, prefix):
    [question] = sample_questions(1, seed=0)
    calls = asked([Response("x", 1, False)] * 2)
    found = answer((None, None), [question, "Why?"], mode, max_new_tokens=9, temperature=0.5, seed=3)
    assert [(a.mode, a.seed, a.correct) for a in found] == [(mode, 3, None)] * 2  # no answer to compare with
    assert calls == [
        {
            "prompts": [question.prompt, "Human: Why?\nAssistant:"],
            "prefix": prefix,
            "max_new_tokens": 9,
            "sampling": Sampling(0.5, seed=3),
        }
    ]


def test_a_question_as_text_and_as_an_object_is_the_same_question(policy):
    questions = sample_questions(6, seed=0, depths=[9, 1, 5])
    ways = ([dial_task(q) for q in questions], questions, [q.text for q in questions])
    found = [answer(policy, way, "code", max_new_tokens=6) for way in ways]
    assert len({tuple((a.text, a.answer, a.format, a.tokens) for a in answers) for answers in found}) == 1


def test_order_is_kept_the_prefix_counted_and_truncation_flagged(policy):
    questions = sample_questions(7, seed=0, depths=[12, 1, 5])
    together = answer(TransformersEngine(*policy, batch_size=3), questions, "long_cot", max_new_tokens=5)
    assert together == [answer(policy, [q], "long_cot", max_new_tokens=5)[0] for q in questions]
    assert len({a.text for a in together}) > 1  # else any order would do
    for found in together:  # an untrained model does not end within 5 tokens
        assert found.text.startswith("<LONG_COT>\n") and found.format is L
        assert found.truncated and found.answer is None
        assert found.tokens == 1 + 5


class Reciter:
    """An engine that knows by heart how each start goes on."""

    def __init__(self, tokenizer, known):
        self.tokenizer, self.known = tokenizer, known

    def generate(self, requests, sampling):
        drawn = [self.known[r.prompt_ids + r.forced_ids][: r.max_new_tokens] for r in requests]
        return [
            Completion(r.forced_ids + tuple(ids), truncated=ids[-1] != self.tokenizer.eos_token_id)
            for r, ids in zip(requests, drawn, strict=True)
        ]


def test_a_gold_response_costs_its_tags_and_its_end_token():
    """The engine continues a forced prefix with the gold response: the closed form must come out."""
    tokenizer, questions = dial_tokenizer(), sample_questions(6, seed=0, depths=[12, 1, 6])
    for mode in ReasoningFormat:
        gold = {
            tuple(tokenizer(q.prompt + mode.prefix).input_ids): [
                *tokenizer(gold_response(q, mode)).input_ids[1:],
                tokenizer.eos_token_id,
            ]
            for q in questions
        }
        found = answer(Reciter(tokenizer, gold), questions, mode.value)
        assert [a.answer for a in found] == [q.answer for q in questions]
        assert [a.tokens for a in found] == [token_cost(mode, q.depth) for q in questions]
        assert not any(a.truncated for a in found)


# ---- several responses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("short", "expected"),
    [
        (("3", "3", "3"), ("3", False)),
        (("3", "3", "4"), ("8", True)),  # two of three are not enough
        (("3", None, "3"), ("8", True)),  # what cannot be read agrees with nothing
        ((None, None, None), ("8", True)),
        (("3", "3.0", "3"), ("8", True)),
    ],
)
def test_consensus(short, expected):
    assert consensus(*short, "8") == expected


def test_consensus_may_be_wrong_unreadable_or_mathematical():
    assert consensus("3", "4", "5", None) == (None, True)
    assert consensus("3", "3.0", "3", "8", equal=is_correct) == ("3", False)


def test_a_majority_is_what_most_others_equal():
    assert majority_vote(["1", "2", "2", None, None, None]) == "2"
    assert majority_vote(["1", "2", "2", "1"]) == "1"  # the first wins a tie
    assert majority_vote(["2", "0.5", "1/2"], equal=is_correct) == "0.5"
    assert majority_vote([None, None]) is None


@pytest.fixture
def table(monkeypatch):
    """Responses from a table: question and prefix -> responses in turn, with 10 tokens each."""

    def use(rows):
        calls = []

        def respond(policy, prompts, *, prefix="", **options):
            calls.append((prefix, len(prompts)))
            turns = {}
            for prompt in prompts:
                turns.setdefault(prompt, []).append(
                    rows[prompt.split()[1], prefix][len(turns.get(prompt, []))]
                )
            return [Response(turns[prompt].pop(0), 10, False) for prompt in prompts]

        monkeypatch.setattr(ask, "respond", respond)
        return calls

    return use


def tagged(format, answer):
    return render_response(format, "" if format is D else "Jot 1", answer)


def test_consensus_asks_long_cot_only_where_it_must_and_sums_the_tokens(table):
    short = {"a?": "333", "b?": "334", "c?": "33x"}
    rows = {
        (q, f.prefix): [tagged(f, x) if x != "x" else "<CODE>\n"]
        for q, answers in short.items()
        for f, x in zip((D, S, C), answers, strict=True)
    }
    rows |= {("b?", L.prefix): [tagged(L, "7")], ("c?", L.prefix): [tagged(L, "8")]}
    calls = table(rows)
    found = answer((None, None), ["a?", "b?", "c?"], "consensus")
    assert [(a.answer, a.tokens, a.agreed, a.format) for a in found] == [
        ("3", 30, True, D),
        ("7", 40, False, L),
        ("8", 40, False, L),
    ]
    assert calls == [(D.prefix, 3), (S.prefix, 3), (C.prefix, 3), (L.prefix, 2)]


def test_a_vote_over_samples(table):
    rows = {("a?", ""): [tagged(D, "1"), tagged(L, "2"), tagged(S, "2")], ("b?", ""): [tagged(C, "5")] * 3}
    table(rows)
    first, second = answer((None, None), ["a?", "b?"], "majority", samples=3, temperature=0.7)
    assert (first.answer, first.format, first.tokens, first.agreed) == ("2", L, 30, False)
    assert (second.answer, second.tokens, second.agreed) == ("5", 30, True)


# ---- a budget ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<LONG_COT>\nOkay, 3 +4 = 7\n7", "<LONG_COT>\nOkay, 3 +4 = 7\n7\n</LONG_COT>\n<ANSWER>\n"),
        ("<COT>\nJot 3\n</COT>", "<COT>\nJot 3\n</COT>\n<ANSWER>\n"),
        ("<COT>\nJot 3\n</COT>\n<ANSWER>\n", "<COT>\nJot 3\n</COT>\n<ANSWER>\n"),
        ("<ANSWER>\n4", "<ANSWER>\n4"),
        ("So", "So"),
    ],
)
def test_how_a_response_is_closed(text, expected):
    assert close_response(text) == expected


def test_the_answer_is_forced_after_the_budget():
    """Cut after 9 tokens, a long response is closed; a budget that is not reached changes nothing."""
    tokenizer = dial_tokenizer()
    [question] = sample_questions(1, seed=0, depths=[8])
    gold = [*tokenizer(gold_response(question, L)).input_ids, tokenizer.eos_token_id]
    closing = tokenizer("\n</LONG_COT>\n<ANSWER>\n").input_ids
    end = [*tokenizer(f"{question.answer}\n</ANSWER>").input_ids, tokenizer.eos_token_id]
    prompt = tokenizer(question.prompt).input_ids
    engine = Reciter(tokenizer, {tuple(prompt): gold, tuple(prompt + gold[:9] + closing): end})
    tasks, whole = [dial_task(question)], answer(engine, [dial_task(question)])
    [found] = cut_and_close(engine, tasks, whole, 9, Sampling())
    assert found.answer == question.answer and found.format is L and found.correct and not found.truncated
    assert found.tokens == 9 + len(closing) + len(end)
    [same] = cut_and_close(engine, tasks, whole, len(gold), Sampling())
    assert same == replace(whole[0], mode=same.mode)
    with pytest.raises(ValueError, match="budget must be 1 token or more"):
        cut_and_close(engine, tasks, whole, 0, Sampling())


def test_what_cannot_be_asked(policy):
    with pytest.raises(
        ValueError, match="unknown mode 'fast'; there are adaptive, direct, short_cot, code, long"
    ):
        answer(policy, ["Why?"], "fast")
    with pytest.raises(TypeError, match="questions must be a list"):
        answer(policy, "Why?")
    with pytest.raises(ValueError, match="greedy votes are equal"):
        answer(policy, ["Why?"], "majority")
    assert answer(policy, []) == []
