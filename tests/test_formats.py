import pytest

from lib.formats import (
    ReasoningFormat,
    detect_format,
    find_answer_like_arm,
    parse_response,
    parse_response_like_arm,
    render_response,
)

RATIONALE = {
    ReasoningFormat.DIRECT: "",
    ReasoningFormat.SHORT_COT: "3 +4 = 7",
    ReasoningFormat.CODE: "x = 3 + 4\nif x < 10 and x > 0:\n    answer = x",
    ReasoningFormat.LONG_COT: "Okay, let me see.\n\nWait, is it 7?",
}


@pytest.mark.parametrize("format", ReasoningFormat)
def test_what_is_rendered_is_read_back(format):
    parsed = parse_response(render_response(format, RATIONALE[format], "7"))
    assert parsed.is_valid and parsed.problem is None
    assert (parsed.format, parsed.rationale, parsed.answer) == (format, RATIONALE[format], "7")


def test_the_layout_is_the_papers():
    assert render_response("direct", "", "C") == "<ANSWER>\nC\n</ANSWER>"
    assert render_response("short_cot", "Because.", "C") == "<COT>\nBecause.\n</COT>\n<ANSWER>\nC\n</ANSWER>"


def test_values_are_the_contract_and_prefixes_the_papers():
    assert [str(format) for format in ReasoningFormat] == ["direct", "short_cot", "code", "long_cot"]
    assert [format.prefix for format in ReasoningFormat] == [
        "<ANSWER>\n",
        "<COT>\n",
        "<CODE>\n",
        "<LONG_COT>\n",
    ]


@pytest.mark.parametrize(
    ("text", "format"),
    [
        ("<LONG_COT>\nhm\n</LONG_COT>\n<ANSWER>\n7\n</ANSWER>", ReasoningFormat.LONG_COT),
        ("\n <ANSWER>7</ANSWER>", ReasoningFormat.DIRECT),
        ("<COT>", ReasoningFormat.SHORT_COT),
        ("The <ANSWER>7</ANSWER>", None),
        ("</COT>7", None),
        ("<cot>7</cot>", None),
        ("", None),
    ],
)
def test_only_the_start_decides_the_format(text, format):
    assert detect_format(text) is format


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("7", "no format tag at the start"),
        ("It is <ANSWER>7</ANSWER>", "no format tag at the start"),
        ("<ANSWER>7", "</ANSWER> is missing"),
        ("<ANSWER>7</ANSWER> I am sure", "text after </ANSWER>"),
        ("<ANSWER> </ANSWER>", "the answer is empty"),
        ("<ANSWER>7</ANSWER><ANSWER>8</ANSWER>", "<ANSWER> stands more than once"),
        ("<COT>a<ANSWER>7</ANSWER>", "</COT> is missing"),
        ("<COT>a</COT>", "<ANSWER> is missing"),
        ("<COT></COT><ANSWER>7</ANSWER>", "the rationale is empty"),
        ("<COT>a</COT> so <ANSWER>7</ANSWER>", "text between </COT> and <ANSWER>"),
        ("<COT>a<ANSWER>7</ANSWER></COT>", "wrong order"),
        ("<COT>a<ANSWER>7</ANSWER></COT><ANSWER>8</ANSWER>", "<ANSWER> stands more than once"),
        ("<COT>a</COT><ANSWER>7", "</ANSWER> is missing"),
        ("<COT>a</COT><ANSWER>7</ANSWER></ANSWER>", "</ANSWER> stands more than once"),
        ("<COT>a</COT></ANSWER>7<ANSWER>", "wrong order"),
        ("</ANSWER>7<ANSWER>", "no format tag at the start"),
        ("<ANSWER></ANSWER>7", "text after </ANSWER>"),
        ("<COT>a</CODE><ANSWER>7</ANSWER>", "</CODE> does not belong"),
        ("<ANSWER>7</ANSWER><COT>a</COT>", "<COT> does not belong"),
        ("<LONG_COT>a</LONG_COT><LONG_COT>a</LONG_COT><ANSWER>7</ANSWER>", "stands more than once"),
    ],
)
def test_a_malformed_response_is_rejected_with_its_reason(text, problem):
    parsed = parse_response(text)
    assert not parsed.is_valid
    assert problem in parsed.problem


@pytest.mark.parametrize(
    ("format", "rationale", "answer"),
    [("direct", "why", "7"), ("code", "", "7"), ("short_cot", "a</COT>", "7"), ("direct", "", "<ANSWER>7")],
)
def test_an_ambiguous_response_is_not_rendered(format, rationale, answer):
    with pytest.raises(ValueError, match=r"rationale|tag"):
        render_response(format, rationale, answer)


@pytest.mark.parametrize("format", ReasoningFormat)
def test_both_parsers_read_a_well_formed_response_alike(format):
    text = render_response(format, RATIONALE[format], "7")
    assert parse_response_like_arm(text) == parse_response(text)


@pytest.mark.parametrize(
    ("text", "answer", "loophole"),
    [
        ("<ANSWER>7</ANSWER><ANSWER>8</ANSWER>", "7</ANSWER><ANSWER>8", "two answers"),
        ("<ANSWER>7</ANSWER> or 8", "7", "text after the answer"),
        ("<COT>a<ANSWER>7</ANSWER>", "7", "the reasoning is not closed"),
        ("<COT>a</COT>so<ANSWER>7</ANSWER>", "7", "text between the blocks"),
        ("<COT>a<ANSWER>7</ANSWER></COT>", "7", "the answer inside the rationale"),
        ("<COT></COT><ANSWER>7</ANSWER>", "7", "no reasoning"),
        ("</COT>", None, "no tag opens it: both refuse"),
        ("hm Assistant:<COT>a<ANSWER>7</ANSWER>", "7", "the tag stands after a turn of its own making"),
        ("<ANSWER> </ANSWER>", "", "an empty answer"),
        ("<ANSWER>7</ANSWER>Assistant:<COT>", "7", "a second turn that ARM tries first"),
    ],
)
def test_where_arm_is_lenient(text, answer, loophole):
    parsed = parse_response_like_arm(text)
    assert not parse_response(text).is_valid
    assert parsed.is_valid == ("both refuse" not in loophole)
    assert parsed.answer == answer


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("7", "no format tag right after Assistant:"),
        ("It is <ANSWER>7</ANSWER>", "no format tag right after Assistant:"),
        ("<COT>a</COT>", "no <ANSWER> with an </ANSWER> after it"),
        ("<COT>a</COT><ANSWER>7", "no <ANSWER> with an </ANSWER> after it"),
        ("<COT>a</COT></ANSWER>7<ANSWER>", "no <ANSWER> with an </ANSWER> after it"),
        ("<COT><CODE>a</CODE><ANSWER>7</ANSWER>", "<CODE> does not belong"),
        ("<ANSWER>7</ANSWER></COT>", "</COT> does not belong"),
    ],
)
def test_what_arm_refuses_as_well(text, problem):
    parsed = parse_response_like_arm(text)
    assert not parsed.is_valid and problem in parsed.problem
    assert not parse_response(text).is_valid


def test_arm_is_the_stricter_one_about_space_before_the_tag():
    text = "\n<ANSWER>7</ANSWER>"
    assert parse_response(text).is_valid and not parse_response_like_arm(text).is_valid


def test_the_answer_of_arm_reaches_from_the_first_tag_to_the_last():
    assert find_answer_like_arm("<ANSWER>1</ANSWER> or <ANSWER>\n2</ANSWER>") == "1</ANSWER> or <ANSWER>\n2"
    assert find_answer_like_arm("1</ANSWER>") is None
    assert find_answer_like_arm("<ANSWER>1") is None
