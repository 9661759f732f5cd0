"""Adapters on rows in their original shapes (invented here), broken rows, duplicates, and real files."""

import json
import os
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import datasets
import pandas as pd
import pytest

from lib import dial
from lib.formats import ReasoningFormat
from lib.sources import fits_in, load_tasks, loading
from lib.sources.catalogue import SOURCES
from lib.sources.loading import DataError, Loaded, load, read_rows
from lib.sources.readers import last_boxed
from lib.studies.overlap import duplicates, overlap, report

PETS = "What barks?\n(A)a cat  (B)a dog  (C)a (very) small fish"
REAL = os.environ.get("REAL_DATA_DIR")
needs_real = pytest.mark.skipif(not REAL, reason="REAL_DATA_DIR names no folder with the real files")

# source, row as the hub or a repository has it, and what must come of it
ROWS = [
    (
        "csqa",
        {
            "id": "1",
            "question": "What barks?",
            "question_concept": "bark",
            "choices": {"label": ["A", "B", "C"], "text": ["a cat", "a dog", "a (very) small fish"]},
            "answerKey": "B",
        },
        {"question": PETS, "answer": "B", "kind": "choice", "tier": "easy"},
    ),
    ("csqa", {"question": PETS, "answer": "B"}, {"question": PETS, "answer": "B", "kind": "choice"}),
    (
        "openbookqa",
        {
            "id": "7-1",
            "question_stem": "What barks?",
            "choices": {"text": ["a cat", "a dog", "a (very) small fish"], "label": ["A", "B", "C"]},
            "answerKey": "B",
        },
        {"question": PETS, "answer": "B", "tier": "easy"},
    ),
    (
        "mmlu",
        {
            "question": "What barks?",
            "subject": "zoology",
            "choices": ["a cat", "a dog", "a (very) small fish"],
            "answer": 1,
        },
        {"question": PETS, "answer": "B", "topic": "zoology", "kind": "choice", "tier": "medium"},
    ),
    (
        "aqua_rat",
        {
            "question": "Twice 12.5?",
            "options": ["A)20", "B)25", "C)30"],
            "rationale": "2 x 12.5 = 25",
            "correct": "B",
        },
        {
            "question": "Twice 12.5?\n(A)20  (B)25  (C)30",
            "answer": "B",
            "options": ("20", "25", "30"),
            "rationale": "2 x 12.5 = 25",
            "format": ReasoningFormat.SHORT_COT,
        },
    ),
    (
        "gsm8k",
        {"question": "Half of 2,400?", "answer": "It is 2400/2 = <<2400/2=1200>>1200.\n#### 1,200"},
        {
            "answer": "1200",
            "kind": "number",
            "tier": "medium",
            "rationale": "It is 2400/2 = 1200.",
            "format": ReasoningFormat.SHORT_COT,
        },
    ),
    ("gsm8k", {"problem": "Half of 4,250?", "answer": "2,125"}, {"answer": "2125", "rationale": None}),
    ("gsm8k", {"question": "Less?", "ground_truth": "-10"}, {"answer": "-10"}),
    (
        "math",
        {
            "problem": "Find $x$.",
            "level": "Level 5",
            "type": "Counting & Probability",
            "solution": "First \\boxed{1}, then $\\boxed{\\frac{1}{\\sqrt{2}}}$.",
        },
        {
            "question": "Find $x$.",
            "answer": "\\frac{1}{\\sqrt{2}}",
            "kind": "latex",
            "tier": "medium",
            "topic": "counting_and_probability",
            "depth": 5,
        },
    ),
    ("math", {"problem": "Two?", "answer": "2", "difficulty": 2.0}, {"depth": 2}),
    ("math", {"question": "How many?", "answer": "$\\boxed{2}$"}, {"answer": "2", "rationale": None}),
    (
        "math500",
        {"problem": "P?", "answer": "(3, \\pi)", "difficulty": 2.0, "unique_id": "test/number_theory/8.json"},
        {"answer": "(3, \\pi)", "topic": "number_theory", "tier": "medium"},
    ),
    (
        "svamp",
        {
            "ID": "chal-1",
            "Body": "Ann has 8 nuts.",
            "Question": "How many?",
            "Equation": "8",
            "Answer": "8.0",
        },
        {"question": "Ann has 8 nuts. How many?", "answer": "8", "kind": "number", "tier": "medium"},
    ),
    ("svamp", {"question": "Ann has 8 nuts. How many?", "answer": "8"}, {"answer": "8"}),
    (
        "aime2024",
        {"id": 1, "problem": "P?", "solution": "So 25.", "answer": "025", "url": "u", "year": "2024"},
        {"answer": "25", "tier": "hard", "kind": "number", "rationale": "So 25."},
    ),
    ("aime2025", {"question": "P?", "answer": "336^\\circ"}, {"answer": "336", "tier": "hard"}),
    (
        "bbh",
        {"input": "Which?\nOptions:\n(A) red\n(B) a (B) blue", "target": "(B)"},
        {"answer": "B", "kind": "choice", "tier": "medium"},
    ),
    (
        "bbh",
        {"input": "Is it so?\nOptions:\n- Yes\n- No", "target": "No", "task": "navigate"},
        {"answer": "No", "kind": "text", "options": ("Yes", "No"), "topic": "navigate"},
    ),
    ("bbh", {"input": "((2 + 3)) =", "target": "5"}, {"answer": "5", "kind": "number"}),
    ("bbh", {"question": "Close: ( [", "answer": "] )"}, {"answer": "] )", "kind": "text", "options": ()}),
    (
        "deepscaler",
        {"problem": "P?", "answer": "-\\frac{2}{3}", "solution": ""},
        {"answer": "-\\frac{2}{3}", "tier": "hard", "rationale": None, "format": None},
    ),
    (
        "arm_sft",
        {
            "instruction": PETS,
            "input": "",
            "output": "<COT>\nDogs do.\nThe answer is B\n</COT>\n<ANSWER>\nB\n</ANSWER>",
        },
        {
            "question": PETS,
            "answer": "B",
            "kind": "choice",
            "rationale": "Dogs do.\nThe answer is B",
            "format": ReasoningFormat.SHORT_COT,
        },
    ),
    (
        "arm_sft",
        {"instruction": "Add:", "input": "2 + 3", "output": "<ANSWER>\n5\n</ANSWER>"},
        {"question": "Add:\n2 + 3", "answer": "5", "kind": "number", "format": ReasoningFormat.DIRECT},
    ),
    (
        "adareasoner",
        {
            "question": "For the logical question, please select the most likely answer: All 1) is noise. "
            "Who? 1) Ann 2) Bo 3) Cy 4) Di",
            "answer": "Cy",
        },
        {"answer": "C", "options": ("Ann", "Bo", "Cy", "Di"), "topic": "logiqa", "kind": "choice"},
    ),
    (
        "adareasoner",
        {
            "question": "For the following question, please select the most likely answer: Where? "
            "Options: A: Here. B: There. ",
            "answer": " There.",
            "source": "TruthfulQA",
        },
        {
            "question": "For the following question, please select the most likely answer: Where?\n"
            "(A)Here.  (B)There.",
            "answer": "B",
            "topic": "truthfulqa",
            "tier": "easy",
        },
    ),
    (
        "adareasoner",
        {
            "question": "For this math question, which is it: x? Options: A: 1 B: 2 C: 4 D: 0",
            "answer": " 2",
            "source": "mmlu",
        },
        {"answer": "B", "topic": "mmlu_math", "tier": "medium"},
    ),
    (
        "adareasoner",
        {
            "question": "For the following context sentence, is <b>it</b> suitable?\nContext: <b>it</b>",
            "answer": "no",
        },
        {"answer": "no", "options": ("yes", "no"), "kind": "text", "topic": "metaphor"},
    ),
]


def one(source, row):
    return read_rows(source, enumerate([row], 1)).examples[0]


@pytest.mark.parametrize(("source", "row", "expected"), ROWS)
def test_every_original_shape_is_understood(source, row, expected):
    example = one(source, row)
    assert {name: getattr(example, name) for name in expected} == expected
    assert example.prompt == f"Human: {example.question}\nAssistant:"
    assert example.source == source and example.id.startswith(f"{source}/")


def test_every_source_is_tested():
    assert {source for source, *_ in ROWS} == set(SOURCES)


def test_the_hub_and_the_papers_files_give_the_same_example():
    hub, arm = (one("csqa", row) for source, row, _ in ROWS if source == "csqa")
    assert hub == arm


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_a_local_file_gives_what_the_hubs_rows_give(source, suffix, tmp_path):
    # One shape only: a table has one set of columns.
    row = next(row for name, row, _ in ROWS if name == source)
    table = datasets.Dataset.from_list([row, row])
    path = tmp_path / f"file.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
    elif suffix == "json":
        path.write_text(json.dumps(list(table), indent=4))
    elif suffix == "csv":
        nested = {name: json.dumps(value) for name, value in row.items() if isinstance(value, dict | list)}
        pd.DataFrame([row | nested] * 2).to_csv(path, index=False)
    else:
        table.to_parquet(path)
    expected = read_rows(source, enumerate(table, 1)).examples
    assert load(source, path).examples == expected == [one(source, row)] * 2


def test_the_hub_is_asked_for_the_pinned_commit(monkeypatch):
    asked = []

    def load_dataset(name, config, *, split, revision):
        asked.append((name, config, split, revision))
        return datasets.Dataset.from_list([{"question": PETS, "answer": "B"}])

    monkeypatch.setattr(loading.datasets, "load_dataset", load_dataset)
    loaded = load("csqa", split="test")
    assert asked == [("tau/commonsense_qa", "default", "validation", SOURCES["csqa"].revision)]
    assert loaded.examples == [one("csqa", {"question": PETS, "answer": "B"})]


def test_without_a_network_the_error_names_the_way_out(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub")

    monkeypatch.setattr(loading.datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"Couldn't reach 'openai/gsm8k'.*give path= a local file"):
        load("gsm8k")


def test_every_task_of_bbh_is_loaded_and_named(monkeypatch):
    monkeypatch.setattr(
        loading.datasets,
        "load_dataset",
        lambda name, config, **_: datasets.Dataset.from_list([{"input": f"{config}?", "target": "True"}]),
    )
    tasks = [example.topic for example in load("bbh").examples]
    assert len(tasks) == 27 and tasks[0] == "boolean_expressions" and tasks[-1] == "word_sorting"


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("arm_sft", {}, "no hub repository is known"),
        ("arm_sft", {"hub": "arm-team/x", "split": "train"}, "must be pinned"),
        ("gsm8k", {"revision": "main"}, "must be pinned"),
        ("math500", {"split": "train"}, "no split 'train'"),
        ("nonsense", {}, "unknown source"),
    ],
)
def test_nothing_is_loaded_unpinned_or_unknown(source, options, message, monkeypatch):
    monkeypatch.setattr(loading.datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(DataError, match=message):
        load(source, **options)


def test_every_source_says_its_licence_and_pin():
    assert all(len(source.licence) > 2 for source in SOURCES.values())
    pins = [str(source.revision) for source in SOURCES.values() if source.hub]
    assert all(re.fullmatch("[0-9a-f]{40}", pin) for pin in pins) and len(set(pins)) == len(pins)
    assert [name for name, source in SOURCES.items() if not source.hub] == ["arm_sft", "adareasoner"]


# ---- broken rows -------------------------------------------------------------------------------

GOOD = [{"question": f"How many, {name}?", "answer": "4"} for name in "abcd"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"question": "x?"}', "the field answer or ground_truth is missing; there are question"),
        (b'{"question": "x?", "answer": " "}', "the field answer is empty"),
        (b'{"question": "x?", "answer": null}', "the field answer or ground_truth is missing"),
        (b'{"question": "x?", "answer": "four"}', "is not a number"),
        (b'{"question": "x?", "answer": ["4"]}', "the field answer is not text but list"),
        (b'{"question": "x?", "answer": "4"', "not JSON"),
        (b'{"question": "x?", "answer": "4}', "not JSON"),
        (b'["x?", "4"]', "the row is not an object but list"),
        (b'{"question": "x?", "answer": ' + b"4" * 5000 + b"}", "not JSON: .*digits"),
        (b"[" * 200_000, "not JSON: .*recursion"),
        ('{"question": "Wie groß?", "answer": "4"}'.encode("latin-1"), "not UTF-8 text.*byte 0xdf"),
        (
            '{"question": "Wie gro\ufffd?", "answer": "4"}'.encode(),
            "decoded wrongly before: character U\\+FFFD",
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_broken_row_names_file_place_and_reason_and_the_rest_loads(bad, reason, suffix, tmp_path):
    rows = [json.dumps(row).encode() for row in GOOD]
    rows.insert(2, bad)
    path = tmp_path / f"file.{suffix}"
    path.write_bytes(b"\n".join(rows) if suffix == "jsonl" else b"[\n" + b",\n".join(rows) + b"\n]\n")
    if suffix == "json" and reason.startswith("not JSON"):  # a list is whole or broken
        said = reason.partition(".*")[2] or ": line [45] column"
        with pytest.raises(DataError, match=rf"{path}: not a readable json file .*{said}"):
            load("gsm8k", path, keep_going=True)
        return
    with pytest.raises(DataError, match=rf"{path}, {'line' if suffix == 'jsonl' else 'row'} 3: .*{reason}"):
        load("gsm8k", path)
    loaded = load("gsm8k", path, keep_going=True)
    assert [example.question for example in loaded.examples] == [row["question"] for row in GOOD]
    (problem,) = loaded.problems
    assert problem.startswith(f"{path}, {'line' if suffix == 'jsonl' else 'row'} 3: ")


@pytest.mark.parametrize(
    ("source", "row", "reason"),
    [
        ("csqa", {"question": "No options?", "answer": "A"}, "has no options"),
        ("csqa", {"question": PETS, "answer": "D"}, "none of the options A to C"),
        ("csqa", {"question": "Q?", "choices": 3, "answerKey": "A"}, "unknown shape"),
        ("csqa", {"question": PETS, "answerKey": ""}, "answerKey is empty"),  # the hub's test split
        ("mmlu", {"question": "Q?", "choices": ["x", "y"], "answer": 2}, "none of the options A to B"),
        ("math", {"problem": "P?", "solution": "It is 2."}, "no \\\\boxed answer"),
        ("aime2024", {"problem": "P?", "answer": "1000"}, "not an integer from 0 to 999"),
        ("svamp", {"Body": "B.", "Answer": "8.0"}, "the field Question is missing"),
        ("bbh", {"input": "Q?\nOptions:\n(A) x\n(B) y", "target": "(C)"}, "none of its 2 options"),
        ("arm_sft", {"instruction": "Q?", "output": "<COT>\nx\n<ANSWER>\n1\n</ANSWER>"}, "</COT> is missing"),
        ("adareasoner", {"question": "Which? Options: A: 1 B: 2", "answer": "1"}, "none of the four types"),
        (
            "adareasoner",
            {"question": "For this math question, x? Options: A: 1 B: 2", "answer": "3"},
            "none of the 2 options",
        ),
    ],
)
def test_a_row_that_makes_no_sense_is_refused_with_its_reason(source, row, reason):
    with pytest.raises(DataError, match=f"rows, row 1: .*{reason}"):
        read_rows(source, enumerate([row], 1))


def test_broken_csv_rows_are_found(tmp_path):
    path = tmp_path / "file.csv"
    path.write_text('question,answer\n"a, or\nb?",4\nshort\nc?,4,5\n"d?",6\n')
    loaded = load("gsm8k", path, keep_going=True)
    assert [(e.question, e.answer) for e in loaded.examples] == [("a, or\nb?", "4"), ("d?", "6")]
    assert len(loaded.problems) == 2 and all("not as many cells" in problem for problem in loaded.problems)
    assert "line 4: " in loaded.problems[0] and "line 5: " in loaded.problems[1]


def test_a_parquet_row_is_named_by_its_number(tmp_path):
    path = tmp_path / "file.parquet"
    pd.DataFrame({"question": ["a?", "b?"], "answer": ["4", None]}).to_parquet(path)
    with pytest.raises(DataError, match=r"file\.parquet, row 2: the field answer"):
        load("gsm8k", path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.xlsx", b"x", "cannot read .xlsx"),
        ("rows.jsonl", b"\n", "holds no rows"),
        ("rows.parquet", b"PAR1 not really", "not a readable parquet file"),
        ("rows.json", None, "no such file"),
        ("rows.json", json.dumps(GOOD)[:-2].encode(), "not a readable json file .*line 1 column"),
        ("rows.csv", b'question,answer\n"a?,4\n', "not a readable csv file .*unexpected end of data"),
    ],
)
def test_a_file_that_cannot_be_read_says_so(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load("gsm8k", tmp_path / name)


def test_separators_inside_a_question_do_not_end_a_row(tmp_path):
    question = "one\u2028two\u0085three\x0bfour?"
    path = tmp_path / "file.jsonl"
    path.write_text(
        "\ufeff" + json.dumps({"question": question, "answer": "4"}, ensure_ascii=False) + "\r\n", "utf-8"
    )
    assert [example.question for example in load("gsm8k", path).examples] == [question]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{a{b}c} and \\boxed{\\text{no}}", "\\text{no}"),
        ("$\\boxed 2$", "2"),
        ("\\boxed{1", None),
        ("none", None),
        ("\\boxed{}", None),
    ],
)
def test_the_last_box_is_read_with_its_braces(text, answer):
    assert last_boxed(text) == answer


# ---- duplicates and overlap --------------------------------------------------------------------


def test_duplicates_and_overlap_look_through_case_spacing_and_source():
    train = read_rows(
        "gsm8k",
        enumerate(
            [
                {"question": "How many  eggs?", "answer": "4"},
                {"question": "how many eggs?", "answer": "5"},
                {"question": "How many eggs!", "answer": "4"},
            ],
            1,
        ),
        split="train",
    )
    test = read_rows("svamp", enumerate([{"question": "HOW MANY EGGS?\n", "answer": "4"}], 1))
    (group,) = duplicates(train.examples)
    assert [example.answer for example in group] == ["4", "5"]
    ((left, right),) = overlap(train.examples, test.examples)
    assert (left.source, right.source) == ("gsm8k", "svamp") and left.key == right.key
    table = report({"train": train, "test": test, "empty": Loaded([], [])})
    assert table.loc["train"].to_dict() == {
        "rows": 3,
        "examples": 3,
        "broken": 0,
        "duplicates": 1,
        "contradictions": 1,
        "shared with": "test (1)",
    }
    assert table.loc["empty", "shared with"] == "none"


def test_a_sign_makes_another_question():
    rows = [{"question": f"What is 3 {sign} 2?", "answer": "1"} for sign in "+-"]
    assert duplicates(read_rows("gsm8k", enumerate(rows, 1)).examples) == []


# ---- real files --------------------------------------------------------------------------------

REAL_FILES = [
    ("gsm8k", "gsm8k_test.jsonl", 1319),
    ("gsm8k", "adaptthink_gsm8k.json", 1319),
    ("csqa", "csqa_test.jsonl", 1221),
    ("svamp", "svamp_test.jsonl", 300),
    ("openbookqa", "openbookqa_test.jsonl", 500),
    ("aime2025", "aime2025_test.jsonl", 30),
    ("aime2024", "aime2024.json", 30),
    ("math500", "math500.json", 500),
    ("adareasoner", "adareasoner_source.json", 1000),
    ("csqa", "arm_3b_csqa.jsonl", 1221),
    ("openbookqa", "arm_3b_openbookqa.jsonl", 500),
    ("svamp", "arm_3b_svamp.jsonl", 300),
    ("aime2025", "arm_3b_aime2025.jsonl", 30),
]


def raw(name):
    text = (Path(REAL) / name).read_text(encoding="utf-8")
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]


@needs_real
@pytest.mark.parametrize(("source", "name", "count"), REAL_FILES)
def test_no_real_row_is_lost(source, name, count):
    loaded = load(source, Path(REAL) / name)
    rows = raw(name)
    assert len(loaded.examples) == len(rows) == count and not loaded.problems
    tiers = {example.tier for example in loaded.examples}
    assert source == "adareasoner" or tiers == {SOURCES[source].tier}
    if source != "adareasoner":  # its options are brought to ARM's layout
        assert [e.question for e in loaded.examples] == [
            (row.get("question") or row.get("problem")).strip() for row in rows
        ]
    if source in ("csqa", "openbookqa"):
        assert {len(example.options) for example in loaded.examples} == {5 if source == "csqa" else 4}
        assert all(
            e.answer == row.get("answer", row.get("ground_truth"))
            for e, row in zip(loaded.examples, rows, strict=True)
        )


@needs_real
def test_adareasoners_four_types_and_six_duplicates():
    examples = load("adareasoner", Path(REAL) / "adareasoner_source.json").examples
    assert Counter(e.topic for e in examples) == dict.fromkeys(
        ["logiqa", "truthfulqa", "mmlu_math", "metaphor"], 250
    )
    rows = raw("adareasoner_source.json")
    for example, row in zip(examples, rows, strict=True):
        chosen = (
            example.answer
            if example.kind == "text"
            else example.options["ABCDEFGHIJKLM".index(example.answer)]
        )
        assert chosen == row["answer"].strip()
    assert {len(e.options) for e in examples if e.topic in ("logiqa", "mmlu_math")} == {4}
    groups = duplicates(examples)
    assert len(groups) == 6 and {example.topic for group in groups for example in group} == {"metaphor"}
    assert len(overlap(examples[:100], examples[100:])) == 2  # across the paper's own split


@needs_real
def test_both_gsm8k_files_hold_the_same_questions_and_answers():
    arm = load("gsm8k", Path(REAL) / "gsm8k_test.jsonl").examples
    adaptthink = load("gsm8k", Path(REAL) / "adaptthink_gsm8k.json").examples
    assert arm == adaptthink


# ---- one call for both worlds -------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name, count in (("gsm8k", 40), ("svamp", 6)):
        rows = [{"question": f"{name} {n}?", "answer": str(n)} for n in range(count)]
        (tmp_path / f"{name}_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_tasks_of_datasets_are_a_seeded_sample(folder):
    one, same, other = (
        load_tasks(["gsm8k", "svamp"], count=15, seed=seed, folder=folder) for seed in (0, 0, 1)
    )
    assert one == same != other
    assert Counter(task.source for task in one) == {"gsm8k": 8, "svamp": 6}  # svamp holds no more
    assert len(set(one)) == 14 and [t.question for t in one[:8]] != [f"gsm8k {n}?" for n in range(8)]
    assert len(load_tasks(["gsm8k"], folder=folder)) == 40
    assert load_tasks(["gsm8k"], folder=folder / "gsm8k_test.jsonl") == load_tasks(["gsm8k"], folder=folder)


def test_validation_is_apart_from_training_and_the_same_in_every_run(folder):
    (folder / "gsm8k_test.jsonl").rename(folder / "gsm8k_train.jsonl")
    train, held_out = (load_tasks(["gsm8k"], split=split, folder=folder) for split in ("train", "validation"))
    assert (len(train), len(held_out)) == (38, 2)
    assert not {task.key for task in train} & {task.key for task in held_out}
    assert {task.split for task in held_out} == {"validation"}
    lines = (folder / "gsm8k_train.jsonl").read_text().splitlines()
    (folder / "gsm8k_train.jsonl").write_text("\n".join(reversed(lines)))
    again = load_tasks(["gsm8k"], split="validation", folder=folder)
    assert sorted(task.key for task in again) == sorted(task.key for task in held_out)


def test_a_prompt_that_is_too_long_is_left_out(folder):
    def tokenizer(text):
        return SimpleNamespace(input_ids=text.split())

    long = {"question": "one two three four?", "answer": "1"}
    with (folder / "svamp_test.jsonl").open("a") as file:
        file.write(json.dumps(long) + "\n")
    fits = fits_in(tokenizer, 5)  # Human: svamp 1? Assistant:
    assert len(load_tasks(["svamp"], folder=folder, fits=fits)) == 6


def test_what_cannot_be_loaded_is_named(folder):
    with pytest.raises(DataError, match=r"unknown source 'gsm9k'; there are dial, csqa.*adareasoner"):
        load_tasks(["gsm8k", "gsm9k"], folder=folder)
    with pytest.raises(DataError, match="must be a list of names, got 'dial'"):
        load_tasks("dial", count=3)
    with pytest.raises(DataError, match="say how many"):
        load_tasks(["dial"])
    with pytest.raises(DataError, match="count must be 2 or more"):
        load_tasks(["gsm8k", "svamp"], count=1)


def test_the_dial_world_is_a_source_like_any_other(folder):
    depths = {"depths": range(1, 13), "distinct": True}
    drawn = dial.sample_questions(24, seed=3, split="test", **depths)
    assert load_tasks(["dial"], count=24, seed=3, **depths) == [dial.dial_task(q) for q in drawn]
    for_rl = dial.rl_questions(12, seed=1, sft_share=0.7)
    tasks = load_tasks(["dial"], split="train", count=12, seed=1, sft_share=0.7)
    assert tasks == [dial.dial_task(q) for q in for_rl] and all(task.depth for task in tasks)
    both = load_tasks(["dial", "gsm8k"], count=7, folder=folder)
    assert [task.source for task in both] == ["dial"] * 4 + ["gsm8k"] * 3
