"""The four reasoning formats of ARM: how a response is written, and how it is read back."""

import re
from dataclasses import dataclass
from enum import StrEnum
from unicodedata import category


class ReasoningFormat(StrEnum):
    """ARM's four ways to respond, from the cheapest to the longest (ARM, section 3)."""

    DIRECT = "direct"
    SHORT_COT = "short_cot"
    CODE = "code"
    LONG_COT = "long_cot"

    @property
    def tag(self) -> str:
        """The tag that opens a response in this format; plain text, as in the paper."""
        return _TAGS.get(self, self.name)

    @property
    def prefix(self) -> str:
        """The text to force at the start of a response to get this format (instruction-guided mode)."""
        return f"<{self.tag}>\n"


_TAGS = {ReasoningFormat.DIRECT: "ANSWER", ReasoningFormat.SHORT_COT: "COT"}  # others: their names
_ANY_TAG = re.compile(r"</?(?:" + "|".join(format.tag for format in ReasoningFormat) + r")>")
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters and signs in which nothing is to be seen
_FORMAT_OF_TAG = {f"<{format.tag}>": format for format in ReasoningFormat}

# The order in which ARM's released code tries the tags; all of them may stand in one text.
_ARM_ORDER = [ReasoningFormat(name) for name in ("short_cot", "code", "direct", "long_cot")]


@dataclass(frozen=True)
class ParsedResponse:
    """A response taken apart. `problem` says why a response is not valid, and is None when it is."""

    format: ReasoningFormat | None
    rationale: str
    answer: str | None
    is_valid: bool
    problem: str | None


def render_response(format: ReasoningFormat, rationale: str, answer: str) -> str:
    """Write a response in ARM's layout; `rationale` must be empty exactly when the format is direct."""
    format = ReasoningFormat(format)
    if (format is ReasoningFormat.DIRECT) != (rationale == ""):
        raise ValueError(
            f"a {format} response takes {'no' if format is ReasoningFormat.DIRECT else 'a'} rationale"
        )
    for name, text in (("rationale", rationale), ("answer", answer)):
        if tag := _ANY_TAG.search(text):
            raise ValueError(f"the {name} holds the tag {tag[0]}, which would make the response ambiguous")
    block = f"<ANSWER>\n{answer}\n</ANSWER>"
    if format is ReasoningFormat.DIRECT:
        return block
    return f"<{format.tag}>\n{rationale}\n</{format.tag}>\n{block}"


def detect_format(text: str) -> ReasoningFormat | None:
    """The format a response opens with, or None. Every response holds <ANSWER>, so only the start counts."""
    opening = _ANY_TAG.match(text.lstrip())
    return _FORMAT_OF_TAG.get(opening[0]) if opening else None


def parse_response(text: str) -> ParsedResponse:
    """Read a response strictly: these tags, in this order, once each, and nothing outside them.

    A tag must open the response; a rationale that is there must be closed; then comes exactly one
    answer, which is not empty; then the response ends. Whitespace around the parts is free.
    """
    format = detect_format(text)
    if format is None:
        return ParsedResponse(None, "", None, False, "no format tag at the start of the response")
    found = _ANY_TAG.findall(text)
    expected = ["<ANSWER>", "</ANSWER>"]
    if format is not ReasoningFormat.DIRECT:
        expected = [f"<{format.tag}>", f"</{format.tag}>", *expected]
    parts = [part.strip() for part in _ANY_TAG.split(text)]
    rationale = parts[1] if format is not ReasoningFormat.DIRECT else ""
    if found != expected:
        return ParsedResponse(format, rationale, None, False, _tag_problem(found, expected))
    answer = parts[-2]
    problem = None
    if parts[-1]:
        problem = "text after </ANSWER>"
    elif format is not ReasoningFormat.DIRECT and parts[2]:
        problem = f"text between </{format.tag}> and <ANSWER>"
    elif not answer:
        problem = "the answer is empty"
    elif format is not ReasoningFormat.DIRECT and not _is_visible(rationale):
        problem = "the rationale is empty"
    return ParsedResponse(format, rationale, answer or None, problem is None, problem)


def find_answer_like_arm(text: str) -> str | None:
    """All between the first <ANSWER> and the last </ANSWER>, tags included, or None (ARM's code)."""
    start, end = text.find("<ANSWER>") + len("<ANSWER>"), text.rfind("</ANSWER>")
    return text[start:end].strip() if len("<ANSWER>") <= start <= end else None


def parse_response_like_arm(text: str) -> ParsedResponse:
    """Read a response as the reward of ARM's released code does, with its loopholes.

    Checked: a tag follows the prompt's `Assistant:` at once, no tag of another kind of reasoning
    stands anywhere, and there is an answer. Not checked: that the reasoning is closed, that the tags
    come in order, that there is one answer, that nothing follows it. A response may even write a new
    `Assistant:<COT>` of its own to be read as short CoT. The released code searches the prompt too;
    here the prompt is taken to hold no tags, as in ARM's training data.
    """
    turn = f"Assistant:{text}"
    format = next((format for format in _ARM_ORDER if f"Assistant:<{format.tag}>" in turn), None)
    rationale = _ANY_TAG.sub("", text.partition("<ANSWER>")[0]).strip()
    answer = find_answer_like_arm(text)
    problem = None
    if format is None:
        problem = "no format tag right after Assistant:"
    elif foreign := [tag for tag in _ANY_TAG.findall(text) if tag.strip("</>") not in (format.tag, "ANSWER")]:
        problem = f"{foreign[0]} does not belong in a response that opens with <{format.tag}>"
    elif answer is None:
        problem = "no <ANSWER> with an </ANSWER> after it"
    return ParsedResponse(format, rationale, answer, problem is None, problem)


def _tag_problem(found: list[str], expected: list[str]) -> str:
    """Name the first thing wrong with a sequence of tags."""
    foreign = "{} does not belong in a response that opens with {}".format
    problems = [foreign(tag, expected[0]) for tag in found if tag not in expected]
    problems += [f"{tag} is missing" for tag in expected if tag not in found]
    problems += [f"{tag} stands more than once" for tag in expected if found.count(tag) > 1]
    return [*problems, f"the tags come in the wrong order: {' '.join(found)}"][0]


def _is_visible(text: str) -> bool:
    return any(category(character)[0] in "LNPS" and character not in _BLANK for character in text)
