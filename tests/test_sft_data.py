"""The SFT set: what is kept, what is dropped and why; teachers; the card; determinism and resuming."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from chat_server import completion, serving

from lib.dial import Question, dial_task, gold_response, rl_questions, sample_questions
from lib.engines.server import ChatServer
from lib.formats import ReasoningFormat, parse_response, render_response
from lib.policies.load import load_policy, load_tokenizer
from lib.runs import digest
from lib.sources.loading import read_rows
from lib.studies.sft_set import (
    build_sft_set,
    card_markdown,
    check_form,
    check_response,
    dial_sft_set,
    thread_rows,
)
from lib.studies.teachers import (
    Reply,
    base_teacher,
    chat_teacher,
    dataset_teacher,
    dial_teacher,
    lay_out,
    teacher_prompt,
)
from lib.tasks import stage

DIRECT, SHORT, CODE, LONG = ReasoningFormat


@pytest.fixture(autouse=True)
def loopback_without_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def dial_set(count=12, **options):
    questions = sample_questions(count, seed=3, distinct=True)
    teachers = dict.fromkeys(ReasoningFormat, options.pop("teacher", dial_teacher))
    return build_sft_set([dial_task(question) for question in questions], teachers, **options)


def math_examples():
    rows = [
        {"question": f"What is {n} plus {n}?", "answer": f"It is {n} + {n} = {2 * n}.\n#### {2 * n}"}
        for n in range(10)
    ]
    return read_rows("gsm8k", enumerate(rows, 1), split="train").examples


# ---- the dial world ----------------------------------------------------------------------------


def test_the_exact_teacher_loses_nothing_and_balances_formats_and_tiers():
    built = dial_set(24)
    assert len(built.rows) == 96 and not built.drops
    assert Counter((row["tier"], row["format"]) for row in built.rows) == {
        (tier, str(format)): 8 for tier in ("easy", "medium", "hard") for format in ReasoningFormat
    }
    for row in built.rows:
        assert list(row) == ["prompt", "completion", "format", "tier", "source", "id", "answer"]
        parsed = parse_response(row["completion"])
        assert parsed.is_valid and str(parsed.format) == row["format"] and parsed.answer == row["answer"]
        assert row["prompt"].startswith("Human: The ") and row["prompt"].endswith("\nAssistant:")


def test_the_same_seed_gives_the_same_set_and_another_seed_another_order(tmp_path):
    for name in ("a", "b"):
        dial_set(seed=5).save(tmp_path / name)
    for file in ("sft.jsonl", "card.json", "README.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    one, other = dial_set(seed=5).rows, dial_set(seed=6).rows
    assert one != other and sorted(map(str, one)) == sorted(map(str, other))


def test_notebooks_01_and_02_have_the_same_rows_to_the_byte(tmp_path, private_runs):
    given = [dial_task(question) for question in sample_questions(60, seed=2)]
    checked = build_sft_set(given, dict.fromkeys(ReasoningFormat, dial_teacher), seed=2, sft_share=0.7)
    same = dial_sft_set(60, seed=2, sft_share=0.7)
    assert same.rows == checked.rows and same.card == checked.card
    drawn = {"questions": 60, "seed": 2, "sft_share": 0.7}
    assert thread_rows("cpu", **drawn) == (same.rows, "built as notebook 01 builds them")
    dial_sft_set(60, seed=3).save(private_runs / "cpu" / "01_data_formatting" / "sft_set")
    rows, where = thread_rows("cpu", **drawn)
    assert rows == dial_sft_set(60, seed=3).rows and "saved by notebook 01" in where


def test_the_rows_that_notebook_02_trains_on_stay_as_they_are():
    built = dial_sft_set()
    assert len(built.rows) == 2172 and digest(built.rows) == "58dc660f2014"


def set_and_card() -> str:
    examples = [dial_task(question) for question in sample_questions(60, seed=1, depths=[2, 2, 3, 9])]
    built = build_sft_set(examples, {DIRECT: dial_teacher, LONG: dial_teacher}, sft_share=0.8)
    return json.dumps([built.rows, built.card, [vars(drop) for drop in built.drops]])


@pytest.mark.slow
def test_another_process_builds_the_same_set_and_card():
    """With another seed for the hashes of strings, which order sets."""
    here = str(Path(__file__).parent)
    program = f"import sys; sys.path.insert(0, {here!r}); import test_sft_data as t; print(t.set_and_card())"
    other = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == set_and_card() and "left out for balance" in other.stdout


def test_what_is_saved_is_read_back(tmp_path):
    built = dial_set()
    built.save(tmp_path)
    built.save(tmp_path)  # over an older one
    lines = [json.loads(line) for line in (tmp_path / "sft.jsonl").read_text().splitlines()]
    assert lines == built.rows == list(datasets.load_from_disk(tmp_path / "dataset"))
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["rows"] == 48 and re.fullmatch("[0-9a-f]{64}", card["sha256"])
    assert "| medium | 4 | 4 | 4 | 4 |" in (tmp_path / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "card.json",
        "dataset",
        "sft.jsonl",
    ]


@pytest.mark.parametrize("world", ["dial", "additions"])
@pytest.mark.parametrize("depth", [1, 2, 5, 8, 12])
def test_gold_programs_run_to_the_values_they_claim(world, depth):
    (question,) = sample_questions(1, seed=depth, depths=[depth], world=world)
    assert check_response(dial_task(question), CODE, gold_response(question, CODE)) is None


def test_every_wrong_digit_in_a_gold_program_is_found():
    (question,) = sample_questions(1, seed=1, depths=[8])
    response = gold_response(question, CODE)
    claims = list(re.finditer(r"# (\d)", response))
    assert len(claims) == 4
    for claim in claims:
        wrong = str((int(claim[1]) + 1) % 10)
        changed = response[: claim.start(1)] + wrong + response[claim.end(1) :]
        reason, detail = check_response(dial_task(question), CODE, changed)
        assert reason == "code claims another value" and f"'{wrong}' instead of '{claim[1]}'" in detail


def test_questions_that_differ_in_colour_only_are_duplicates():
    examples = [dial_task(Question("3", ("+4", "x7"), colour)) for colour in ("red", "blue", "green")]
    examples = [replace(example, split="train") for example in examples]
    built = build_sft_set(examples, {DIRECT: dial_teacher})
    assert len(built.rows) == 1
    assert built.card["dropped"] == {"duplicate question": {"question": 2}}


# ---- checks ------------------------------------------------------------------------------------

EGGS = math_examples()[3]  # 3 + 3
PROGRAM = (
    "def eggs():\n    first = 3\n    share = first / 9\n"
    "    return {'first': first, 'share': share, 'answer': first + 3}\n\n"
    ">>> eggs()\n\noutput = {\n    'first': 3,\n    'share': 0.33333333,\n    'answer': 6\n}"
)


@pytest.mark.parametrize(
    ("format", "text", "reason"),
    [
        (DIRECT, "<ANSWER>\n6\n</ANSWER>", None),
        (DIRECT, "<ANSWER>\n7\n</ANSWER>", "wrong answer"),
        (DIRECT, "6", "not a valid response"),
        (DIRECT, "<COT>\nx\n</COT>\n<ANSWER>\n6\n</ANSWER>", "another format"),
        (SHORT, "<COT>\nx\n</COT>\n<ANSWER>\n6\n</ANSWER> or 7", "not a valid response"),
        (CODE, PROGRAM, None),
        (CODE, PROGRAM.replace("'first': 3,\n", "'first': 4,\n"), "code claims another value"),
        (CODE, PROGRAM.replace("0.33333333", "0.34"), "code claims another value"),
        (CODE, PROGRAM.replace("'first': 3,\n", "'second': 3,\n"), "code claims another value"),
        (CODE, PROGRAM.replace("first + 3", "first + 4"), "code computes another answer"),
        (CODE, PROGRAM.replace("    'answer': 6", "    'answer': 5"), "code claims another value"),
        (CODE, PROGRAM.replace("'answer': first + 3", "'result': 6"), "code has no answer"),
        (CODE, PROGRAM.replace("    'answer': 6", "    'result': 6"), "code cannot be read"),
        (CODE, PROGRAM.replace("first / 9", "first / 0"), "code fails"),
        (CODE, PROGRAM.replace("def eggs():", "def eggs("), "code fails"),
        (CODE, PROGRAM.replace("0.33333333", "first / 9"), "code cannot be read"),
        (CODE, PROGRAM.partition("output")[0], "code cannot be read"),
        (CODE, "answer = 6", "code cannot be read"),
        (CODE, "a = 3  # 3\na += 3  # 6\nanswer = a", None),
        (CODE, "a = 3  # 3\na += 3  # 6\nanswer = a + 1", "code computes another answer"),
        (CODE, "a = 3  # 3\na += 3  # 6", "code fails"),
        (CODE, "a = 3  # three of them\nanswer = 2 * a  # 6", None),
    ],
)
def test_a_response_is_kept_only_if_all_of_it_is_right(format, text, reason):
    if format is CODE:
        text = render_response(CODE, text, "6")
    problem = check_response(EGGS, format, text)
    assert (problem and problem[0]) == reason


# ---- what is chosen, counted and balanced ------------------------------------------------------


def test_the_dataset_teaches_direct_and_its_own_rationale_only():
    built = build_sft_set(math_examples(), dict.fromkeys(ReasoningFormat, dataset_teacher), balance=False)
    assert Counter(row["format"] for row in built.rows) == {"direct": 10, "short_cot": 10}
    assert built.card["dropped"] == {"no response": {"code": 10, "long_cot": 10}}
    row = next(row for row in built.rows if row["format"] == "short_cot" and row["answer"] == "6")
    assert row["completion"] == "<COT>\nIt is 3 + 3 = 6.\n</COT>\n<ANSWER>\n6\n</ANSWER>"


def test_a_set_that_is_written_in_four_formats_keeps_all_four():
    texts = {
        DIRECT: "",
        SHORT: "3 + 3 = 6.",
        CODE: PROGRAM,
        LONG: "Okay. 3 + 3 is 6. Wait, yes.",
    }
    rows = [
        {"instruction": "What is 3 plus 3?", "output": render_response(format, text, "6")}
        for format, text in [*texts.items(), (SHORT, "Six.")]
    ]
    examples = read_rows("arm_sft", enumerate(rows, 1), split="train").examples
    built = build_sft_set(examples, dict.fromkeys(ReasoningFormat, dataset_teacher))
    assert {row["format"]: row["completion"] for row in built.rows} == {
        str(format): render_response(format, text, "6") for format, text in texts.items()
    }
    assert built.card["dropped"] == {"duplicate question": {"question": 1}}


def test_what_is_too_long_to_train_on_goes_before_balancing():
    tokenizer = load_tokenizer("dial-base")
    given = [dial_task(q) for q in sample_questions(24, seed=3, distinct=True)]
    teachers = dict.fromkeys(ReasoningFormat, dial_teacher)
    built = build_sft_set(given, teachers, tokenizer=tokenizer, max_length=120)
    dropped, left = built.card["dropped"]["too long to train on"], built.card["counts"]["hard"]
    assert list(dropped) == ["long_cot"] and set(left.values()) == {8 - dropped["long_cot"]}


def test_without_its_other_factors_the_check_lets_a_wrong_answer_pass():
    wrong = lambda tasks: [Reply(render_response(f, "x", "99")) for _, f in tasks]  # noqa: E731
    assert len(build_sft_set(math_examples(), {SHORT: wrong}, balance=False, check=check_form).rows) == 10
    assert not build_sft_set(math_examples(), {SHORT: wrong}, balance=False).rows


def test_the_base_teaches_what_it_can_and_says_where_it_has_no_answer():
    given = [dial_task(q) for q in sample_questions(4, seed=3, depths=[1, 2])]
    teach = base_teacher(load_policy("dial-base"), temperature=1.0, seed=0)
    tasks = [(task, format) for task in given for format in ReasoningFormat]
    assert all(
        check_response(*task, reply.text) is None for task, reply in zip(tasks, teach(tasks), strict=True)
    )
    assert lay_out(LONG, "Okay, let me think.").problem == "no answer in the response"
    assert lay_out(DIRECT, "Jot 4\nIt shows 4.").text is None


def test_everything_given_is_kept_or_counted_with_its_reason():
    examples = math_examples()
    rl = [example for example in examples if stage(example.key, 0.5) == "rl"]
    assert 0 < len(rl) < 10
    sft = [example for example in examples if example not in rl]
    given = [
        *examples,
        sft[0],  # a duplicate
        replace(sft[1], answer="99"),  # the same question with another answer
        replace(sft[2], split="test", id="gsm8k/other"),
    ]
    built = build_sft_set(given, {DIRECT: dataset_teacher}, sft_share=0.5, exclude=[sft[-1]], balance=False)
    assert {reason: counts["question"] for reason, counts in built.card["dropped"].items()} == {
        "kept for RL": len(rl),
        "in a set to keep apart": 1,
        "duplicate question": 1,
        "duplicates contradict each other": 2,
        "not a training question": 1,
    }
    assert built.card["questions_given"] == 13 == built.card["questions_asked"] + len(built.drops)
    assert {row["id"] for row in built.rows} == {e.id for e in sft} - {sft[1].id, sft[-1].id}


def test_stages_never_change_and_never_overlap():
    keys = [example.key for example in math_examples()]
    assert [stage(key, 0.5) for key in keys] == [stage(key, 0.5) for key in keys]
    assert {stage(key, 1.0) for key in keys} == {"sft"} and {stage(key, 0.0) for key in keys} == {"rl"}
    many = [stage(str(number), 0.3) for number in range(4000)]
    assert 0.27 < many.count("sft") / 4000 < 0.33


def test_questions_for_rl_are_balanced_and_never_those_of_sft():
    found = rl_questions(90, seed=0, sft_share=0.7)
    assert {q.tier for q in found[:3]} == {"easy", "medium", "hard"} and len(found) == 90
    assert {sum(q.tier == tier for q in found) for tier in ("easy", "medium", "hard")} == {30}
    assert all(stage(dial_task(q).key, 0.7) == "rl" for q in found)
    hard = rl_questions(12, seed=0, sft_share=0.7, depths=[9, 12])
    assert {q.depth for q in hard} == {9, 12} and len(hard) == 12


def test_balance_prefers_questions_that_are_right_in_every_format():
    def teacher(tasks):
        # Code is written for every second question only.
        return [
            Reply(None, "no idea")
            if format is CODE and int(example.answer) % 4 and example.answer != "2"
            else Reply(
                render_response(format, PROGRAM_OF[example.answer] if format is CODE else "", example.answer)
            )
            for example, format in tasks
        ]

    PROGRAM_OF = {  # noqa: N806
        str(2 * n): f"a = {n}  # {n}\na += {n}  # {2 * n}\nanswer = a" for n in range(10)
    }
    built = build_sft_set(math_examples(), {DIRECT: teacher, CODE: teacher})
    by_format = {
        format: {r["id"] for r in built.rows if r["format"] == format} for format in ("direct", "code")
    }
    assert by_format["direct"] == by_format["code"] and len(by_format["code"]) == 6
    assert built.card["dropped"] == {"no response": {"code": 4}, "left out for balance": {"direct": 4}}
    assert built.card["responses_asked"] == 20 == len(built.rows) + len(built.drops)


def test_tiers_are_balanced_too():
    questions = sample_questions(20, seed=1, depths=[2, 2, 2, 3, 9], distinct=True)
    built = build_sft_set([dial_task(q) for q in questions], {LONG: dial_teacher, DIRECT: dial_teacher})
    assert built.card["counts"] == {tier: {"long_cot": 4, "direct": 4} for tier in ("easy", "medium", "hard")}
    assert built.card["dropped"] == {"left out for balance": {"long_cot": 8, "direct": 8}}


def test_a_cell_without_any_response_is_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match=r"no response passed in medium/code: .*balance=False"):
        build_sft_set(math_examples(), {DIRECT: dataset_teacher, CODE: dataset_teacher})


def test_the_card_shows_reasons_with_examples():
    def wrong(tasks):
        return [
            Reply(f"<ANSWER>\n{int(e.answer) + 1}\n</ANSWER>" if e.answer != "0" else None, "?")
            for e, _ in tasks
        ]

    built = build_sft_set(math_examples(), {DIRECT: wrong}, balance=False)
    assert built.rows == []
    assert built.card["dropped"] == {"no response": {"direct": 1}, "wrong answer": {"direct": 9}}
    assert len(built.card["drop_examples"]["wrong answer"]) == 3
    page = card_markdown(built.card)
    assert "| wrong answer | 0 | 9 |" in page and ": 3 instead of 2" in page


# ---- a chat server as teacher ------------------------------------------------------------------


def write_like_a_model(prompt, attempt):
    """Right in every format for most questions; wrong, late, broken or refused for the others."""
    number = int(re.search(r"What is (\d+) plus", prompt)[1])
    answer = 2 * number + (number == 7)  # seven is too hard for it
    if number == 1 and attempt == 1:
        return 429, {"error": "slow down"}, ("Retry-After", "0")
    if number == 2 and attempt == 1:
        return 500, b"oops"
    if number == 3 and attempt == 1:
        return 200, b"{not JSON"
    if number == 4 and attempt == 1:
        time.sleep(1.5)
    if number == 5:
        return 500, b"always"
    if "<COT>" in prompt:
        return 200, completion(f"<COT>\nTwice {number}.\n</COT>\n<ANSWER>\n{answer}\n</ANSWER>")
    if "<CODE>" in prompt:
        claimed = number + (number == 6)  # six: a wrong value on the way, and the right answer
        program = (
            f"def f():\n    a = {number}\n    return {{'a': a, 'answer': a + a + {answer - 2 * number}}}"
        )
        shown = f">>> f()\n\noutput = {{\n    'a': {claimed},\n    'answer': {answer}\n}}"
        return 200, completion(
            f"<CODE>\n```python\n{program}\n\n{shown}\n```\n</CODE>\n<ANSWER>\n{answer}\n</ANSWER>"
        )
    if "without any reasoning" in prompt:
        return 200, completion(f"<ANSWER>\n{answer}\n</ANSWER>" if number != 8 else f"It is {answer}.")
    if number % 2:
        body = completion(f"So:\n<ANSWER>{answer}</ANSWER>")
        body["choices"][0]["message"]["reasoning_content"] = f"Hm, twice {number}."
        return 200, body
    return 200, completion(f"<think>\nHm, twice {number}.\n</think>\n\n<ANSWER>{answer}</ANSWER>")


def chat(url, folder, show=lambda line: None, **options):
    server = ChatServer(url, "m", folder, **{"backoff": 0.01, "timeout": 0.7, "retries": 2, **options})
    return chat_teacher(server, show=show)


def test_a_chat_server_teaches_and_its_mistakes_are_dropped(tmp_path):
    with serving(write_like_a_model) as (url, calls, _):
        shown = []
        teacher = chat(url, tmp_path, shown.append)
        built = build_sft_set(math_examples(), dict.fromkeys(ReasoningFormat, teacher), balance=False)
        assert built.card["dropped"] == {
            "no response": {"direct": 1, "short_cot": 1, "code": 1, "long_cot": 1},
            "wrong answer": {"direct": 1, "short_cot": 1, "code": 1, "long_cot": 1},
            "code claims another value": {"code": 1},
            "not a valid response": {"direct": 1},
        }
        assert "40 requests to send" in shown[0]
        long = {r["answer"]: r["completion"] for r in built.rows if r["format"] == "long_cot"}
        for number in (8, 9):  # thinking in the text, and in a field of its own
            assert (
                long[str(2 * number)]
                == f"<LONG_COT>\nHm, twice {number}.\n</LONG_COT>\n<ANSWER>\n{2 * number}\n</ANSWER>"
            )
        before = sum(calls.values())
        again = build_sft_set(math_examples(), dict.fromkeys(ReasoningFormat, teacher), balance=False)
        assert again == built and sum(calls.values()) - before == 4 * 3  # only number five, three tries each


def test_the_reference_answer_is_not_shown_to_the_teacher():
    example = replace(EGGS, answer="424242")
    for format in ReasoningFormat:
        prompt = teacher_prompt(example, format)
        assert "424242" not in prompt and example.question in prompt


def test_the_code_prompt_shows_a_program_that_passes_its_own_check():
    shown = teacher_prompt(EGGS, CODE).partition("\n\n<CODE>\n")[2].partition("\n</CODE>")[0]
    assert ast.literal_eval(shown.partition("output = ")[2]) == {"first": 6, "answer": 7}
    seven = replace(EGGS, answer="7")
    assert check_response(seven, CODE, render_response(CODE, shown, "7")) is None


@pytest.mark.parametrize(
    "text", ["It is 6.", "<ANSWER>6</ANSWER> I am sure", "<think></think><ANSWER>6</ANSWER>"]
)
def test_a_long_reply_without_thought_or_closing_answer_is_no_response(text, tmp_path):
    with serving(lambda *_: (200, completion(text))) as (url, *_):
        (reply,) = chat(url, tmp_path)([(EGGS, LONG)])
        assert reply.text is None and reply.problem


def test_building_resumes_after_a_kill_in_the_middle(tmp_path):
    def answer(prompt, attempt):
        time.sleep(0.05)
        number = int(re.search(r"What is (\d+) plus", prompt)[1])
        return 200, completion(f"<ANSWER>\n{2 * number}\n</ANSWER>")

    with serving(answer) as (url, calls, _):
        program = (
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "import test_sft_data as t\n"
            "from pathlib import Path\n"
            "t.chat(sys.argv[2], Path(sys.argv[3]), workers=1)([(e, t.DIRECT) for e in t.math_examples()])"
        )
        arguments = [str(Path(__file__).parent), url, str(tmp_path)]
        run = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.DEVNULL)
        try:
            while len(list(tmp_path.glob("*.json"))) < 3:
                assert run.poll() is None, "the run ended before it could be killed"
                time.sleep(0.005)
            os.kill(run.pid, signal.SIGKILL)
        finally:
            run.kill()
            run.wait()
        saved = len(list(tmp_path.glob("*.json")))
        assert 3 <= saved < 10
        time.sleep(0.2)
        before = sum(calls.values())
        shown = []
        built = build_sft_set(math_examples(), {DIRECT: chat(url, tmp_path, shown.append)})
        assert len(built.rows) == 10 and not built.drops
        assert sum(calls.values()) - before == 10 - saved
        assert f"{10 - saved} requests to send ({saved} more are cached)" in shown[0]
