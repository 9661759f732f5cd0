import itertools
import random
import time

import pytest

from lib import dial
from lib.dial import (
    TIERS,
    UNTAGGED_PREFIX,
    WORLDS,
    Question,
    gold_response,
    oracle_format,
    parse_question,
    program,
    rationale,
    reach,
    sample_questions,
    statement_sizes,
    token_cost,
    untagged_answer,
    untagged_response,
)
from lib.formats import ReasoningFormat, parse_response

D, S, C, L = ReasoningFormat


@pytest.fixture(scope="module")
def tokenizer():
    return dial.dial_tokenizer()


@pytest.fixture(scope="module")
def questions():
    return sample_questions(600, seed=3, depths=range(1, 13))


def by_arithmetic(question: Question) -> str:
    """The answer of a dial question, computed another way: as one affine map modulo 10."""
    factor, shift = 1, 0
    for operation in question.operations:
        number = int(operation[1:])
        if operation[0] == "+":
            shift += number
        else:
            factor, shift = factor * number, shift * number
    return str((factor * int(question.start) + shift) % 10)


def test_a_question_worked_by_hand():
    question = parse_question("The red dial shows 3. Turn it +4 x7 +1. Now?")
    assert question.values == ("7", "9", "0")  # 3+4=7, 7*7=49, 9+1=10
    assert (question.answer, question.depth, question.tier) == ("0", 3, "medium")
    assert rationale(question, S) == "Jot 9"
    assert rationale(question, C).splitlines() == [
        "d = 3",
        "d += 4; d *= 7; d %= 10  # 9",
        "d += 1; d %= 10  # 0",
        "answer = d",
    ]


def test_a_question_pauses_where_one_would_jot():
    question = Question("3", ("+4", "x7", "+1", "x9", "+2"))
    assert question.text == "The red dial shows 3. Turn it +4 x7 then +1 x9 later +2. Now?"
    assert parse_question(question.text) == question
    assert parse_question("The red dial shows 3. Turn it +4 x7 +1 x9 +2. Now?") == question
    assert rationale(question, S) == "Jot 9 then 0"  # after x7 and after x9
    assert Question("3", ("+4", "x7")).text.count("then") == 0


def test_answers_agree_with_arithmetic(questions):
    assert all(question.answer == by_arithmetic(question) for question in questions)


@pytest.mark.parametrize("world", WORLDS)
def test_programs_run_to_the_answer_and_their_comments_are_the_values(world):
    for question in sample_questions(60, seed=0, depths=range(1, 16), world=world):
        seen, names = [], {}
        for line in program(question).splitlines():
            exec(line, names)
            if "#" in line:
                seen.append(line.split("#")[1].strip())
                assert seen[-1] == str(names["d"])
        assert str(names["answer"]) == question.answer == seen[-1]
        assert len(seen) <= dial.MAX_STATEMENTS


def test_statements_hold_two_operations_as_far_as_four_statements_go():
    assert [statement_sizes(depth) for depth in (1, 2, 5, 8, 9, 12)] == [
        [1],
        [2],
        [2, 2, 1],
        [2, 2, 2, 2],
        [3, 2, 2, 2],
        [3, 3, 3, 3],
    ]
    assert all(sum(statement_sizes(depth)) == depth for depth in range(1, 40))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("format", ReasoningFormat)
def test_gold_responses_are_valid_and_right(world, format):
    for question in sample_questions(30, seed=1, depths=range(1, 16), world=world):
        parsed = parse_response(gold_response(question, format))
        assert parsed.is_valid and parsed.answer == question.answer and parsed.format is format


def test_untagged_responses_carry_the_same_answer_and_no_tag(questions):
    for question, format in itertools.product(questions, ReasoningFormat):
        text = untagged_response(question, format)
        assert untagged_answer(text) == question.answer
        assert text.startswith(UNTAGGED_PREFIX[format]) and "<" not in text


def test_token_cost_is_what_the_tokenizer_counts(questions, tokenizer):
    for question, format in itertools.product(questions, ReasoningFormat):
        counted = len(tokenizer(gold_response(question, format)).input_ids) + 1  # the end token
        assert counted == token_cost(format, question.depth)


def test_the_design_of_the_costs():
    depths = range(1, 13)
    for depth in depths:
        costs = [token_cost(format, depth) for format in ReasoningFormat]
        assert costs == sorted(costs) and len(set(costs)) == 4  # each format strictly dearer
    assert max(token_cost(S, depth) for depth in depths) == 10
    assert token_cost(L, 1) >= 25
    assert {token_cost(L, d + 1) - token_cost(L, d) for d in range(1, 12)} <= set(range(6, 11))


def test_reach_and_oracle():
    assert [reach(format) for format in ReasoningFormat] == [2, 6, 8, 12]
    assert [oracle_format(depth) for depth in range(1, 14)] == [D] * 2 + [S] * 4 + [C] * 2 + [L] * 4 + [None]


def test_the_tokenizer_gives_the_text_back(questions, tokenizer):
    for question, format in itertools.product(questions[:200], ReasoningFormat):
        for text in (question.prompt, gold_response(question, format), untagged_response(question, format)):
            ids = tokenizer(text).input_ids
            assert tokenizer.decode(ids) == text
            assert tokenizer.unk_token_id not in ids


def test_a_prompt_is_a_token_prefix_of_prompt_and_response(questions, tokenizer):
    for question, format in itertools.product(questions[:50], ReasoningFormat):
        prompt, response = question.prompt, gold_response(question, format)
        joined = tokenizer(prompt + response).input_ids
        assert joined == tokenizer(prompt).input_ids + tokenizer(response).input_ids


def test_an_unknown_word_is_seen_and_not_dropped(tokenizer):
    assert tokenizer.unk_token_id in tokenizer("The dog shows 3.").input_ids
    assert tokenizer.unk_token_id in tokenizer("Turn it +0.").input_ids


def test_splits_cannot_overlap_even_up_to_colour():
    drawn = {
        split: {(q.start, q.operations) for q in sample_questions(2000, seed=5, split=split)}
        for split in dial.SPLITS
    }
    for one, other in itertools.combinations(drawn.values(), 2):
        assert not one & other
    question = Question("3", ("+4",))
    assert {Question("3", ("+4",), colour).split for colour in dial.COLOURS} == {question.split}


def test_the_test_split_holds_two_hundred_questions_at_every_depth():
    for depth in range(1, 13):
        assert len(set(sample_questions(200, seed=0, split="test", depths=[depth], distinct=True))) == 200


def test_asking_for_more_questions_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="depth 1 of the dial world holds no"):
        sample_questions(5000, seed=0, split="test", depths=[1], distinct=True)


def test_sampling_is_seeded_and_balanced_over_tiers():
    assert sample_questions(50, seed=1) == sample_questions(50, seed=1) != sample_questions(50, seed=2)
    tiers = [question.tier for question in sample_questions(300, seed=0)]
    assert {tier: tiers.count(tier) for tier in TIERS} == dict.fromkeys(TIERS, 100)


def test_ten_thousand_questions_with_all_rationales_in_two_seconds():
    begun = time.process_time()
    for question in sample_questions(10_000, seed=0):
        for format in ReasoningFormat:
            rationale(question, format)
    assert time.process_time() - begun < 2


def test_additions_commute_and_dial_turns_do_not():
    rng = random.Random(0)

    def changed_by_shuffling(world: str) -> int:
        count = 0
        for question in sample_questions(100, seed=0, depths=[6], world=world):
            shuffled = tuple(rng.sample(question.operations, 6))
            count += Question(question.start, shuffled, world=world).answer != question.answer
        return count

    assert changed_by_shuffling("additions") == 0
    assert changed_by_shuffling("dial") > 40


@pytest.mark.parametrize("world", WORLDS)
def test_questions_of_every_world_are_read_back(world):
    for question in sample_questions(20, seed=0, depths=range(1, 15), world=world):
        parsed = parse_question(question.text)
        assert (parsed.start, parsed.operations, parsed.answer) == (
            question.start,
            question.operations,
            question.answer,
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("The red dial shows 3. Turn it +4 x8. Now?", "unknown operation 'x8'.*use \\+1"),
        ("The red dial shows 3. Turn it . Now?", "depth must be 1 or more, got 0"),
        ("The red dial shows 12. Turn it +4. Now?", "unknown start '12'"),
        ("The tall dial shows 3. Turn it +4. Now?", "unknown colour 'tall'"),
        ("What is 3 plus 4?", "not a question about a dial"),
    ],
)
def test_a_bad_question_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_question(text)


def test_bad_requests_are_named():
    with pytest.raises(ValueError, match="depth must be 1 or more, got 0"):
        sample_questions(1, seed=0, depths=[0])
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        sample_questions(1, seed=0, split="dev")
    with pytest.raises(ValueError, match="unknown world 'clock'"):
        Question("3", ("+4",), world="clock")
    with pytest.raises(ValueError, match="got -1"):
        dial.tier(-1)
