"""Every measured number in notebooks 00 to 05, their lecturer's pages and the README is held.

`python tests/prose.py 03` lists them; CONTRIBUTING.md says how to quote one.
"""

import json
import re

import nbformat
import pytest
from prose import (
    NUMBERS,
    ROOT,
    fault,
    faults,
    filled,
    filled_page,
    look_up,
    notebook_faults,
    numbers_in,
    page_faults,
)

from lib.course.notebooks import find_notebooks

HELD = ("00", "01", "02", "03", "04", "05", "06")
PATHS = [path for path in find_notebooks() if path.stem[:2] in HELD]
PAGES = sorted((ROOT / "notebooks" / "lecturer").glob("[0-9][0-9]_*.md"))
LATER = ("Real models, on a processor", "Not run")  # points of the README
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_number_in_a_notebook_is_what_it_measured(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook_faults(notebook, path.stem[:2]) == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_changed_digit_is_caught(path):
    """The last digit of each measured number, one up."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        entries = cell.metadata.get("numbers", [])
        for number, entry in zip(numbers_in(cell.source), entries, strict=bool(entries)):
            if entry != "given" and not entry.startswith("paper: "):
                text = cell.source[: number.end - 1] + str((int(number.text[-1]) + 1) % 10)
                changed = text + cell.source[number.end :]
                assert faults(changed, entries, path.stem[:2]), f"{cell.id}: {number}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_number_of_a_lecturers_page_is_the_notebooks(page):
    assert page_faults(page.read_text()) == []


def test_every_number_of_the_readme_is_the_notebooks():
    """Of "What is shown and what is not" all but the points of LATER; elsewhere, where a comment stands."""
    before, shown, after = re.split(r"^(?=## What is shown|## What is where)", README, flags=re.MULTILINE)
    points = [f"- {point}" for point in shown.split("\n- ")[1:]]
    held = [point for point in points if not point.startswith(tuple(f"- **{name}" for name in LATER))]
    assert len(held) + len(LATER) == len(points)
    held += [block for block in (before + after).split("\n\n") if "<!--" in block]
    assert [what for block in held for what in page_faults(block)] == []


def test_what_is_quoted_is_used_or_at_least_a_number():
    for file in NUMBERS.glob("*.json"):
        assert file.stem in {path.stem for path in find_notebooks()}
        assert file.read_text() == json.dumps(json.loads(file.read_text()), indent=2, sort_keys=True) + "\n"


# ---- how numbers are found -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "It saves 31 % [27, 35] of 1,200 tokens.",
            ["31 %", "27 %", "35 %", "1,200 tokens"],
        ),
        (
            "1.1 [0.4, 1.8] points; 39.8 ± 3.8 % fewer",
            ["1.1 points", "0.4 points", "1.8 points", "39.8 %", "3.8 %"],
        ),
        ("22 to 28 % of all, between 24 and 31 per cent", ["22 %", "28 %", "24 per cent", "31 per cent"]),
        ("accuracy .96 and 31 % of tokens", [".96", "31 %"]),
        (".19/.22/.57 and 2.5e-4, 0.95 [0.9, 1]", [".19", ".22", ".57", "2.5e-4", "0.95", "0.9", "1"]),
        ("-0.7 points, from \u22120.5 to +0.3", ["-0.7 points", "-0.5", "+0.3"]),
        ("**31 %** [27, 35], **0.9** times", ["31 %", "27 %", "35 %", "0.9 times"]),
        (
            "3 and 5 tokens, a 64-token cap, 8 times, 2.5x",
            ["3 tokens", "5 tokens", "64 token", "8 times", "2.5"],
        ),
        ("| .96 | 12.5 |\n|---|---|\n", [".96", "12.5"]),
        ("a < 0.5 and 0.4 > b. It is 0.25.", ["0.5", "0.4", "0.25"]),
        ("80 updates, five seeds, depths 7-12, 200 of 200, 8 of 8 formats", []),
        ("Qwen2.5-3B, R1-Distill-1.5B, v5.18.1, arXiv 2505.20258, 4:47 minutes", []),
        ("sections 3.2 and 4.2 to 4.3, section 5.1; § 2.1", []),
        ("95 % intervals, the 95 % Wilson interval; Intervals are 95 %; 95 % of them", ["95 %"]),
        ("## Heading 0.6\n`0.3` $0.4$ $$0.5\n= 0.6$$ [x](a/0.5.md) <b>0.7</b>\n", ["0.7"]),
        ("```python\nx = 0.8\n```\n**Measured**: 4.5 MB\nand 0.9", ["0.9"]),
        ("[0.81 on average](a.md)", ["0.81"]),
    ],
)
def test_numbers_are_found(text, found):
    numbers = numbers_in(text)
    assert [str(number) for number in numbers] == found
    for number in numbers:
        assert text[number.start : number.end].replace("\u2212", "-") == number.text


@pytest.mark.parametrize(
    ("text", "kept", "right"),
    [
        ("31 %", 0.3149, True),
        ("31 %", 0.3151, False),
        ("31 %", 31, False),
        ("1.1 points", 0.0108, True),
        ("-0.7 points", -0.00652, True),
        ("-0.7 points", 0.00652, False),
        (".98", 0.9796, True),
        (".98", 0.986, False),
        ("0.980", 0.9796, True),
        ("0.98", 0.98, True),
        ("1,183 tokens", 1183.4, True),
        ("1,200 tokens", 1183.4, False),
        ("2.5e-4", 0.000251, True),
        ("2.5e-4", 0.00026, False),
        ("100 %", 0.9951, True),
        ("100.0 %", 0.9951, False),
    ],
)
def test_a_number_is_right_at_the_digits_that_are_shown(text, kept, right):
    [number] = numbers_in(text)
    assert number.is_rounded(kept) is right


# ---- how they are held ---------------------------------------------------------------------------


@pytest.fixture
def quoted(tmp_path):
    (tmp_path / "03_x.json").write_text('{"saving": {"all": 0.31, "low": 0.27}, "tokens": 41.5}')
    return tmp_path


TEXT = "It saves 31 % at a bonus of 0.3; ARM saves 30 %."
ENTRIES = ["saving.all", "given", "paper: Table 1"]


def test_what_is_right_passes(quoted):
    assert faults(TEXT, ENTRIES, "03", quoted) == []
    assert faults("It saves 31 %.", ["03:saving.all"], "04", quoted) == []


@pytest.mark.parametrize(
    ("text", "entries", "message"),
    [
        (TEXT.replace("31", "32"), ENTRIES, "the text says 32 %, but saving.all is 0.31, times 100 31"),
        (TEXT, ENTRIES[:2], "3 numbers in the text, 2 in metadata['numbers']: .*30 % <- NOTHING"),
        (TEXT, [*ENTRIES, "given"], "3 numbers in the text, 4 in .*; NOTHING <- given"),
        (TEXT, ["saving.some", *ENTRIES[1:]], "there is no saving.some: saving has all, low"),
        (TEXT, ["savings", *ENTRIES[1:]], "there is no savings: the file has saving, tokens"),
        (TEXT, ["saving", *ENTRIES[1:]], "saving is no number: it has all, low"),
        (TEXT, ["tokens.all", *ENTRIES[1:]], "tokens has a number and nothing below"),
        (TEXT, ["saving.all", "given", "paper:"], "'paper:', but"),
        (TEXT, ["02:saving.all", *ENTRIES[1:]], "data/numbers/02_.* the file has nothing"),
        ("No number.", ["given"], "0 numbers in the text, 1 in"),
    ],
)
def test_what_is_wrong_is_named(text, entries, message, quoted):
    [told] = faults(text, entries, "03", quoted)
    assert re.search(message.replace("[", r"\["), told)


def test_every_number_counts(quoted):
    """No digit of a measured number can change unseen."""
    text, entries = "31 % [27 %], 41.5 tokens", ["saving.all", "saving.low", "tokens"]
    assert faults(text, entries, "03", quoted) == []
    for place in (found.start() for found in re.finditer(r"\d", text)):
        for digit in set("0123456789") - {text[place]}:
            assert faults(text[:place] + digit + text[place + 1 :], entries, "03", quoted)


PAGE = (
    "It saves 31 %<!--03:saving.all--> [27<!--03:saving.low-->, 35<!--given-->] of\n"
    "its 41.5<!--03:tokens--> tokens."
)


def test_a_page_says_it_in_comments(quoted):
    assert page_faults(PAGE, quoted) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("31", "32", "line 1: the text says 32 %, but 03:saving.all is 0.31"),
        ("41.5", "41.6", "line 2: the text says 41.6 tokens, but"),
        ("<!--given-->", "", r"line 1: 35 % needs one comment .* has \[\]"),
        ("<!--given-->", "<!--given--><!--given-->", r"has \['given', 'given'\]"),
        ("It saves", "It<!--given--> saves", "no number stands before the comment 'given'"),
        (
            "<!--given-->",
            "<!--saving.all-->",
            "said to be 'saving.all'; write NN:key, given, or paper: where",
        ),
    ],
)
def test_a_page_is_held_in_the_same_way(old, new, message, quoted):
    [told] = page_faults(PAGE.replace(old, new), quoted)
    assert re.search(message, told)


def test_a_key_leads_to_a_number():
    assert look_up({"a": {"b": 1}}, "a.b") == 1
    [number] = numbers_in("2 times")
    assert (
        fault(number, "x", "00")
        == ("2 times is said to be 'x', but in data/numbers/00_*.json there is no x: the file has nothing")
        or (NUMBERS / "00_the_dial_world.json").exists()
    )


# ---- how they are written into the text ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept", "new"),
    [
        ("31 %", 0.2849, "28"),
        ("1.1 points", 0.02, "2.0"),
        (".98", 0.9549, ".95"),
        ("-.98", -0.9549, "-.95"),
        ("0.98", 1.0, "1.00"),
        ("1,183 tokens", 12345.6, "12,346"),
        ("996 tokens", 1183.2, "1,183"),
        ("+0.3", 0.26, "+0.3"),
    ],
)
def test_a_number_is_written_as_it_stood(text, kept, new):
    [number] = numbers_in(text)
    assert number.rounded(kept) == new


def test_a_changed_run_is_filled_in(quoted):
    text, entries = "It saves **32 %** at 0.3, 9.5 tokens.", ["saving.all", "given", "tokens"]
    new, changed = filled(text, entries, "03", quoted)
    assert new == "It saves **31 %** at 0.3, 41.5 tokens." and len(changed) == 2
    assert faults(new, entries, "03", quoted) == [] and filled(new, entries, "03", quoted) == (new, [])
    old = PAGE.replace("31 %", "9 %").replace("41.5", "141.5")
    assert filled_page(old, quoted)[0] == PAGE


# ---- the lecturer's pages ------------------------------------------------------------------------

PARTS = ["Plan by minutes", "Polls", "Misconceptions", "Discussion", "In 45 minutes", "What can go wrong"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_lecturers_page_has_its_parts_and_is_read_in_five_minutes(page):
    text = page.read_text()
    assert page.stem in [path.stem for path in PATHS]
    assert re.match(rf"# {page.stem[:2]} · .+", text)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == PARTS
    assert "\n|" in text.split("## Polls")[0]  # the plan is a table
    assert 500 <= len(re.sub(r"<!--.*?-->", "", text).split()) <= 1200
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_every_notebook_has_its_lecturers_page():
    assert [page.stem for page in PAGES] == [path.stem for path in PATHS]
