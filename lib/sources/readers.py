"""From a row of a real dataset to a question.

A reader per dataset understands the rows of the hub and those of the papers' repositories, and gives
the same fields for both. What it cannot use it refuses with a RowError that says why.
"""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from lib.formats import ReasoningFormat, parse_response
from lib.sources.files import Row, RowError
from lib.verify import last_boxed

LETTERS = tuple(string.ascii_uppercase)  # so that "AB" is none of them
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def _text(row: Row, *names: str) -> str:
    """The first of these fields that the row has, as text; missing or empty is an error."""
    for name in names:
        if (value := row.get(name)) is not None:
            if not isinstance(value, str | int | float):
                raise RowError(f"the field {name} is not text but {type(value).__name__}")
            if not (text := str(value).strip()):
                raise RowError(f"the field {name} is empty")
            return text
    raise RowError(f"the field {' or '.join(names)} is missing; there are {', '.join(row) or 'none'}")


def _rationale(text: str | None) -> dict[str, Any]:
    """A dataset's worked solution, as short CoT; nothing where it is missing or empty."""
    text = (text or "").strip()
    return {"rationale": text, "format": ReasoningFormat.SHORT_COT} if text else {}


def _number(text: str) -> str:
    """A number without thousands separators, dollar sign or idle decimals."""
    plain = text.replace(",", "").replace("$", "").strip()
    if not _NUMBER.fullmatch(plain):
        raise RowError(f"the answer {text!r} is not a number")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def _split_options(text: str, label: str, names: Sequence[str] = LETTERS) -> tuple[str, tuple[str, ...]]:
    """Cut `stem A x B y` at its labels, in their order; no options where the first label is missing."""
    first = list(re.finditer(label.format(names[0]), text))
    if not first:
        return text, ()
    stem, rest = text[: first[-1].start()], text[first[-1].end() :]
    options = []
    for name in names[1:]:
        found = re.search(label.format(name), rest)
        if not found:
            break
        options.append(rest[: found.start()].strip())
        rest = rest[found.end() :]
    return stem.strip(), (*options, rest.strip())


def _choice(stem: str, options: Sequence[str], answer: str, **more: Any) -> dict[str, Any]:
    """A multiple-choice question in ARM's layout; `answer` is a letter."""
    if len(options) < 2:
        raise RowError("the question has no options")
    if answer not in LETTERS[: len(options)]:
        raise RowError(f"the answer {answer!r} is none of the options A to {LETTERS[len(options) - 1]}")
    marked = "  ".join(f"({letter}){option}" for letter, option in zip(LETTERS, options, strict=False))
    fields = {"question": f"{stem}\n{marked}", "answer": answer, "options": tuple(options), "kind": "choice"}
    return fields | more


def read_choice(row: Row) -> dict[str, Any]:
    """CommonsenseQA, OpenBookQA, MMLU, AQuA-RAT: options in a field, or in the text as ARM writes them."""
    stem = _text(row, "question_stem", "question", "problem")
    answer = _text(row, "answerKey", "correct", "answer", "ground_truth").strip("()")
    choices = row.get("choices", row.get("options"))
    if choices is None:
        stem, found = _split_options(stem, r"\s\({}\)")
        options, labels = list(found), list(LETTERS[: len(found)])
    else:
        options = choices["text"] if isinstance(choices, Mapping) else choices
        labels = choices["label"] if isinstance(choices, Mapping) else list(LETTERS[: len(options)])
        options = [re.sub(r"^[A-E]\)", "", str(option)).strip() for option in options]
    if answer in labels:
        answer = LETTERS[labels.index(answer)]
    elif answer.isdigit() and int(answer) < len(options):  # MMLU counts its choices from 0
        answer = LETTERS[int(answer)]
    return _choice(stem, options, answer, topic=row.get("subject") or "", **_rationale(row.get("rationale")))


def read_gsm8k(row: Row) -> dict[str, Any]:
    """GSM8K: the hub's answer is a solution that ends with `#### 72`; the papers keep the number."""
    solution, mark, answer = _text(row, "answer", "ground_truth").rpartition("####")
    worked = _rationale(re.sub(r"<<[^<>]*>>", "", solution) if mark else None)
    return {"question": _text(row, "question", "problem"), "answer": _number(answer), **worked}


def read_math(row: Row) -> dict[str, Any]:
    r"""MATH, MATH-500, DeepScaleR: an answer field, or the last \boxed of the solution."""
    solution = row.get("solution")
    if row.get("answer", row.get("ground_truth")) is not None:
        answer = _text(row, "answer", "ground_truth")
        answer = last_boxed(answer) or answer
    elif boxed := last_boxed(_text(row, "solution")):
        answer = boxed
    else:
        raise RowError("the solution holds no \\boxed answer")
    level = re.fullmatch(r"(?:Level )?([1-5])(?:\.0)?", str(row.get("level", row.get("difficulty"))))
    task = row.get("type") or row.get("subject") or str(row.get("unique_id", "")).partition("/")[2]
    topic = task.partition("/")[0].lower().replace("&", "and").replace(" ", "_")
    fields = {"question": _text(row, "problem", "question"), "answer": answer, "topic": topic}
    return fields | {"depth": int(level[1]) if level else None, **_rationale(solution)}


def read_svamp(row: Row) -> dict[str, Any]:
    """SVAMP: body and question are two fields on the hub; the answer is a decimal there."""
    parts = ("Body", "Question") if "Body" in row else ("question",)
    question = " ".join(_text(row, part) for part in parts)
    return {"question": question, "answer": _number(_text(row, "Answer", "answer", "ground_truth"))}


def read_aime(row: Row) -> dict[str, Any]:
    r"""AIME: an integer from 0 to 999, which some files write as 025 or 336^\circ."""
    answer = _text(row, "answer", "ground_truth")
    found = re.fullmatch(r"(\d{1,3})(?:\^\{?\\circ\}?)?", answer)
    if not found:
        raise RowError(f"the answer {answer!r} is not an integer from 0 to 999")
    worked = _rationale(row.get("solution"))
    return {"question": _text(row, "problem", "question"), "answer": str(int(found[1])), **worked}


def read_bbh(row: Row) -> dict[str, Any]:
    """BBH: each task has its own kind of answer, told apart by the row itself; the text stays as it is."""
    question, answer = _text(row, "input", "question"), _text(row, "target", "answer", "ground_truth")
    fields = {"question": question, "answer": answer, "kind": "text", "topic": row.get("task") or ""}
    listed = question.rpartition("Options:")[2] if "Options:" in question else ""
    lettered = _split_options(listed, r"\s\({}\)")[1]
    if lettered:
        letter = answer.strip("()")
        if letter not in LETTERS[: len(lettered)]:
            if answer not in lettered:
                raise RowError(f"the answer {answer!r} is none of its {len(lettered)} options")
            letter = LETTERS[lettered.index(answer)]
        return fields | {"answer": letter, "kind": "choice", "options": lettered}
    if _NUMBER.fullmatch(answer):
        return fields | {"kind": "number"}
    return fields | {"options": tuple(re.findall(r"^- (.+?)\s*$", listed, re.MULTILINE))}


def read_arm_sft(row: Row) -> dict[str, Any]:
    """ARM's SFT sets, in alpaca columns: the output is a tagged response, read strictly."""
    question = "\n".join(filter(None, [_text(row, "instruction"), (row.get("input") or "").strip()]))
    parsed = parse_response(_text(row, "output"))
    if not parsed.is_valid or parsed.answer is None:
        raise RowError(f"the output is not a valid response: {parsed.problem}")
    more = {"rationale": parsed.rationale, "format": parsed.format}
    stem, options = _split_options(question, r"\s\({}\)")
    if options and parsed.answer in LETTERS:
        return _choice(stem, options, parsed.answer, **more)
    kind = "number" if _NUMBER.fullmatch(parsed.answer) else "latex"
    return {"question": question, "answer": parsed.answer, "kind": kind, **more}


# AdaReasoner's file: how each type of question begins, its tier, and how its options are marked.
_ADAREASONER = {
    "For the logical question": ("logiqa", "medium", r"\s{}\)", "1234"),
    "For the following question, please select": ("truthfulqa", "easy", r"\s{}:\s", LETTERS),
    "For this math question": ("mmlu_math", "medium", r"\s{}:\s", LETTERS),
    "For the following context sentence": ("metaphor", "easy", "", ""),
}


def read_adareasoner(row: Row) -> dict[str, Any]:
    """AdaReasoner's questions: options brought to ARM's layout; the answer is one of them word for word."""
    question, answer = _text(row, "question"), _text(row, "answer")
    kind = next((kind for start, kind in _ADAREASONER.items() if question.startswith(start)), None)
    if kind is None:
        raise RowError(f"the question begins like none of the four types: {question[:40]!r}")
    task, tier, label, names = kind
    if not label:
        if answer not in ("yes", "no"):
            raise RowError(f"the answer {answer!r} is not yes or no")
        fields = {"question": question, "answer": answer, "kind": "text", "options": ("yes", "no")}
        return fields | {"topic": task, "tier": tier}
    stem, options = _split_options(question, label, names)
    if answer not in options:
        raise RowError(f"the answer {answer!r} is none of the {len(options)} options")
    letter = LETTERS[options.index(answer)]
    return _choice(stem.removesuffix("Options:").strip(), options, letter, topic=task, tier=tier)
