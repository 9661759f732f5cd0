import pytest
import torch

from lib import inference
from lib.dial import dial_tokenizer, gold_response, sample_questions, token_cost
from lib.formats import ReasoningFormat
from lib.inference import Response, answer
from lib.models import new_dial_model

D, S, C, L = ReasoningFormat


@pytest.fixture(scope="module")
def policy():
    return new_dial_model(seed=0).eval(), dial_tokenizer()


@pytest.fixture
def asked(monkeypatch):
    """Replace generation by set responses; gives what was asked for."""
    calls = []

    def speak(responses):
        def generate(model, tokenizer, prompts, **options):
            calls.append({"prompts": list(prompts), **options})
            return responses

        monkeypatch.setattr(inference, "generate", generate)
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
    answers = answer((None, None), [question] * len(texts))
    assert [(a.answer, a.format) for a in answers] == list(texts.values())
    assert [a.text for a in answers] == list(texts)
    assert [a.is_truncated for a in answers] == [False, False, False, True, False]
    assert all(a.num_tokens == 7 and a.agreed is None for a in answers)


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
    calls = asked([])
    answer((None, None), [question, "Why?"], mode, max_new_tokens=9, temperature=0.5, seed=3, batch_size=2)
    assert calls == [
        {
            "prompts": [question.prompt, "Human: Why?\nAssistant:"],
            "prefix": prefix,
            "max_new_tokens": 9,
            "temperature": 0.5,
            "seed": 3,
            "batch_size": 2,
        }
    ]


def test_a_question_as_text_and_as_an_object_is_the_same_question(policy):
    questions = sample_questions(6, seed=0, depths=[9, 1, 5])
    as_objects = answer(policy, questions, "code", max_new_tokens=6)
    assert answer(policy, [q.text for q in questions], "code", max_new_tokens=6) == as_objects


def test_order_is_kept_the_prefix_counted_and_truncation_flagged(policy):
    questions = sample_questions(7, seed=0, depths=[12, 1, 5])
    together = answer(policy, questions, "long_cot", max_new_tokens=5, batch_size=3)
    assert together == [answer(policy, [q], "long_cot", max_new_tokens=5)[0] for q in questions]
    assert len({a.text for a in together}) > 1  # else any order would do
    for found in together:  # an untrained model does not end within 5 tokens
        assert found.text.startswith("<LONG_COT>\n") and found.format is L
        assert found.is_truncated and found.answer is None
        assert found.num_tokens == 1 + 5


def test_a_gold_response_costs_its_tags_and_its_end_token(policy, monkeypatch):
    """The model is made to continue a forced prefix with the gold response: the closed form must come out."""
    model, tokenizer = policy
    questions = sample_questions(6, seed=0, depths=[12, 1, 6])
    for mode in ReasoningFormat:
        gold = {
            q.prompt + mode.prefix: [*tokenizer(gold_response(q, mode)).input_ids[1:], tokenizer.eos_token_id]
            for q in questions
        }
        monkeypatch.setattr(model, "generate", lambda gold=gold, **inputs: recite(tokenizer, gold, **inputs))
        found = answer(policy, questions, mode.value)
        assert [a.answer for a in found] == [q.answer for q in questions]
        assert [a.num_tokens for a in found] == [token_cost(mode, q.depth) for q in questions]
        assert not any(a.is_truncated for a in found)


def recite(tokenizer, gold, *, input_ids, attention_mask, **options):
    """What a model would return that knows each continuation by heart, padded on the right."""
    by_ids = {tuple(tokenizer(prompt).input_ids): ids for prompt, ids in gold.items()}
    rows = [
        by_ids[tuple(row[mask.bool()].tolist())] for row, mask in zip(input_ids, attention_mask, strict=True)
    ]
    width = max(map(len, rows))
    padded = input_ids.new_tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids in rows])
    return torch.cat([input_ids, padded], dim=1)


def test_sampling_is_seeded(policy):
    questions = sample_questions(4, seed=0)
    one, same, other = (
        answer(policy, questions, temperature=1.0, max_new_tokens=8, seed=seed) for seed in (0, 0, 1)
    )
    assert one == same != other


def test_what_cannot_be_asked(policy):
    with pytest.raises(
        ValueError, match="unknown mode 'fast'; there are adaptive, direct, short_cot, code, long"
    ):
        answer(policy, ["Why?"], "fast")
    with pytest.raises(TypeError, match="questions must be a list"):
        answer(policy, "Why?")
    assert answer(policy, []) == []
