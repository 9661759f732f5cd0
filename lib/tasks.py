"""One record of a question, for dial questions and real ones alike."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass

from lib.formats import ReasoningFormat

FRAME = "Human: {question}\nAssistant:"  # ARM's; a response follows


@dataclass(frozen=True)
class Task:
    """One question with its verified answer; `question` holds the options of a multiple choice, as ARM does.

    `kind` says how to compare answers (number, latex, choice, text); a choice is answered by its letter.
    `format` is the format of `rationale`, where the dataset has one.
    """

    id: str
    source: str
    question: str
    answer: str
    kind: str
    tier: str
    options: tuple[str, ...] = ()
    rationale: str | None = None
    format: ReasoningFormat | None = None
    task: str = ""
    split: str = "test"

    @property
    def prompt(self) -> str:
        """The question in ARM's frame; a response follows."""
        return FRAME.format(question=self.question)

    @property
    def key(self) -> str:
        """The same for the same question, whatever source or file it came from."""
        return self.id.rpartition("/")[2]


def question_key(question: str) -> str:
    """A hash of the question that forgets case, spacing and Unicode variants, and nothing else."""
    text = " ".join(unicodedata.normalize("NFKC", question).casefold().split())
    return hashlib.sha256(text.encode()).hexdigest()[:16]
