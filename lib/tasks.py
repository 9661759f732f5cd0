"""One record of a question and one of a response, for dial questions and real ones alike."""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lib.formats import ReasoningFormat

if TYPE_CHECKING:
    import pandas as pd

FRAME = "Human: {question}\nAssistant:"  # ARM's; a response follows


@dataclass(frozen=True)
class Task:
    """One question with its verified answer; `question` holds the options of a multiple choice, as ARM does.

    `kind` says how to compare answers (number, latex, choice, text); a choice is answered by its letter.
    `prompt` is what a policy is given, by default the question in ARM's frame. `depth` says how hard it is
    where that is known: operations in the dial world, the level of a MATH problem. `budget` is a limit in
    tokens where a method sets one. `format` is the format of `rationale`, where the dataset has one.
    """

    id: str
    question: str
    answer: str
    kind: str
    tier: str
    source: str
    depth: int | None = None
    budget: int | None = None
    options: tuple[str, ...] = ()
    rationale: str | None = None
    format: ReasoningFormat | None = None
    topic: str = ""
    split: str = "test"
    prompt: str = ""

    def __post_init__(self) -> None:
        if not self.prompt:
            object.__setattr__(self, "prompt", FRAME.format(question=self.question))

    @property
    def key(self) -> str:
        """The same for the same question, whatever source or file it came from."""
        return self.id.rpartition("/")[2]


def question_key(question: str) -> str:
    """A hash of the question that forgets case, spacing and Unicode variants, and nothing else."""
    text = " ".join(unicodedata.normalize("NFKC", question).casefold().split())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def task_rows(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """What a trainer needs of each task: the fields named here, and budget where tasks have one."""
    names = ["id", "prompt", "question", "answer", "kind", "tier"]
    if any(task.budget is not None for task in tasks):
        names.append("budget")
    return [{name: getattr(task, name) for name in names} for task in tasks]


def sft_row(task: Task, format: ReasoningFormat, text: str) -> dict[str, str]:
    """What fine-tuning needs of a response in one format."""
    known = {name: getattr(task, name) for name in ("tier", "source", "id", "answer")}
    return {"prompt": task.prompt, "completion": text, "format": str(format), **known}


def stage(key: str, sft_share: float) -> str:
    """Whether a question serves "sft" or "rl", for ever: a hash of its key (`Task.key`).

    With the same questions in both stages the model recited answers in RL (ARM, footnote 4).
    """
    draw = int.from_bytes(hashlib.sha256(f"stage|{key}".encode()).digest()[:8]) / 2**64
    return "sft" if draw < sft_share else "rl"


@dataclass(frozen=True)
class Rollout:
    """One response to one task, read and scored.

    `sample` counts the responses to a task within one measurement; `mode` is how it was asked, `method` who
    was. `format` is how the response opens (a format, or whether it thinks), even where no `answer` can be
    read. `correct` is None where the right answer is not known. `tokens` count forced ones and the end token,
    of all responses that were written to find the answer; `agreed` says whether those agreed.
    """

    task_id: str
    sample: int
    seed: int
    method: str
    mode: str
    format: str | None
    text: str
    answer: str | None
    correct: bool | None
    tokens: int
    truncated: bool
    agreed: bool | None = None


def rollout_table(rollouts: Sequence[Rollout], tasks: Sequence[Task]) -> "pd.DataFrame":
    """A row for each rollout, with tier, depth and source of its task; every summary is computed from it.

    Column `used` is the format, or "invalid" where no answer could be read.
    """
    import pandas as pd  # here, since whoever only opens a run folder need not wait for it

    known = {task.id: task for task in tasks}
    if missing := {rollout.task_id for rollout in rollouts} - known.keys():
        raise ValueError(f"{len(missing)} rollouts are of tasks that were not given, {min(missing)} for one")
    rows = [
        {
            **asdict(rollout),
            "used": "invalid" if rollout.answer is None else rollout.format,
            **{name: getattr(known[rollout.task_id], name) for name in ("tier", "depth", "source")},
        }
        for rollout in rollouts
    ]
    names = [*Rollout.__dataclass_fields__, "used", "tier", "depth", "source"]
    return pd.DataFrame(rows, columns=names)
