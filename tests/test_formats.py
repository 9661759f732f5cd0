import pytest

from lib.formats import ReasoningFormat, detect_format, parse_response, render_response

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
