"""The frozen LLM of AdaReasoner in the dial world: a small model that must be asked in the right way.

It is asked with a question, an instruction (a style) and a number of steps, at a temperature. What is best
depends on the question, because of how the people wrote from whom it learnt:

- A step joins ceil(depth / steps) turns. The model can fuse two: asked for too few steps, it cannot reach.
- Asked for more steps than there are turns, its writers went on turning: too many lose the thread.
- Each kind of question has its style. In another one most writers left out the last turn.
- Sums look easy. The commonest single reply is a snap answer, and wrong; the right ones open with many
  different words. So the mode is a trap, while most samples are right. In other kinds single steps slip,
  and the mode is right while samples are often wrong.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.bandit.actions import ActionSpace
from lib.dial.pretrain import PretrainConfig, pretrain
from lib.dial.responses import untagged_answer
from lib.dial.surface import Surface
from lib.dial.world import COLOURS, MAX_DEPTH, OPERATIONS, STATEMENTS, TIERS, TURNS, WORLDS, Question
from lib.engines.ask import respond
from lib.engines.base import Sampling
from lib.policies.load import CHECKPOINTS, load_policy
from lib.policies.save import save_policy
from lib.runs import ROOT, Run, check_provenance, start_run, write_atomically, write_provenance

STYLES = ("Jot", "think", "Say d =")  # the instructions, in the words of the dial tokenizer
STEPS = (1, 2, 3, 4, 6, 9)
TEMPERATURES = (0.0, 0.4, 0.7, 1.0)
MIXTURES = {
    "sums": WORLDS["additions"],
    "products": ("x3", "x7", "x9"),
    "mixed": OPERATIONS,
}
APT_STYLE = {"sums": "Jot", "mixed": "think", "products": "Say d ="}
OPENINGS = ("Okay", "Wait", "Yes", "Now", "right", "check", "later")
TABLE = ROOT / "data" / "dial_llm"
PER_CELL = 100  # questions asked per kind, depth and action for the shipped table
PROMPT = "Human: {question} {style} {steps}.\nAssistant:"


@dataclass(frozen=True)
class Habits:
    """How often the writers of the corpus do what they should not, and in which style they do not."""

    snap: float = 0.3  # answer a sum at once with the digit that the dial showed at first
    leave_out: float = 0.6  # leave out the last turn, in a style that is not the question's own
    slip: float = 0.15  # forget the last turn of a step, in products and mixed questions
    apt_style: Mapping[str, str] = field(default_factory=lambda: APT_STYLE)


def action_space() -> ActionSpace:
    """3 x 4 x 6: how this LLM can be asked."""
    return ActionSpace(STYLES, TEMPERATURES, STEPS)


def mixture(question: Question) -> str:
    """What a question is made of: sums, products or mixed. One turn alone is a sum or a product."""
    signs = {operation[0] for operation in question.operations}
    return "mixed" if len(signs) == 2 else {"+": "sums", "x": "products"}[signs.pop()]


def sample_mixture_questions(
    count: int,
    *,
    seed: int,
    split: str,
    mixtures: Sequence[str] = tuple(MIXTURES),
    depths: Sequence[int] | None = None,
) -> list[Question]:
    """Questions of one split, kinds in turn; depths are balanced over the tiers, or taken from `depths`."""
    rng = random.Random(f"kinds|{seed}|{split}")
    questions: list[Question] = []
    while len(questions) < count:
        wanted = mixtures[len(questions) % len(mixtures)]
        choices = depths or rng.choice(list(TIERS.values()))
        depth = rng.choice([d for d in choices if wanted != "mixed" or d > 1] or [2])
        turns = tuple(rng.choices(MIXTURES[wanted], k=depth))
        question = Question(str(rng.randrange(10)), turns, rng.choice(COLOURS))
        if question.split == split and mixture(question) == wanted:
            questions.append(question)
    return questions


def prompt(question: Question, style: str, steps: int) -> str:
    """What the frozen LLM is asked."""
    return PROMPT.format(question=question.text, style=style, steps=steps)


def stretches(operations: Sequence[str], steps: int) -> list[tuple[str, ...]]:
    """The turns of each step: ceil(depth / steps) at a time; steps that are left over turn once more each."""
    size = -(-len(operations) // steps)
    parts = [tuple(operations[first : first + size]) for first in range(0, len(operations), size)]
    return parts + [tuple(operations[-1:])] * max(0, steps - len(operations))


def written_response(
    question: Question, style: str, steps: int, rng: random.Random, habits: Habits = Habits()
) -> str:
    """What one writer of the corpus answers."""
    made_of = mixture(question)
    opening = ""
    if made_of == "sums":
        if rng.random() < habits.snap and question.answer != question.start:
            return f"It shows {question.start}."
        opening = f"{rng.choice(OPENINGS)}, "
    parts = stretches(question.operations, steps)
    if style != habits.apt_style[made_of] and rng.random() < habits.leave_out:
        parts = [part for part in [*parts[:-1], parts[-1][:-1]] if part]
    digit, worked = question.start, []
    for part in parts:
        before = after = digit
        for operation in part:
            before, after = after, TURNS[operation][after]
        slips = made_of != "sums" and rng.random() < habits.slip
        worked.append((digit, part, before if slips else after))
        digit = worked[-1][2]
    return f"{opening}{_STYLES[style](question.start, worked)}\nIt shows {digit}."


def _jot(start: str, worked: Sequence[tuple[str, tuple[str, ...], str]]) -> str:
    return " ".join(
        ["Jot", " then ".join(f"{' '.join(part)} = {value}" for _, part, value in worked)]
    ).strip()


def _think(start: str, worked: Sequence[tuple[str, tuple[str, ...], str]]) -> str:
    return "\n".join(["let me think.", *(f"{d} {' '.join(part)} = {value}" for d, part, value in worked)])


def _program(start: str, worked: Sequence[tuple[str, tuple[str, ...], str]]) -> str:
    lines = [f"{' '.join(STATEMENTS[op] for op in part)} d %= 10  # {value}" for _, part, value in worked]
    return "\n".join([f"d = {start}", *lines])


_STYLES = dict(zip(STYLES, (_jot, _think, _program), strict=True))


class StyleCorpus(Dataset):
    """Documents (prompt, response) from which the frozen LLM learns; document i is always the same."""

    def __init__(self, documents: int, *, seed: int, habits: Habits = Habits()):
        self.documents, self.seed, self.habits = documents, seed, habits

    def __len__(self) -> int:
        return self.documents

    def __getitem__(self, index: int) -> tuple[str, str]:
        rng = random.Random(f"dial-llm|{self.seed}|{index}")
        mixtures = [rng.choice(list(MIXTURES))]
        (question,) = sample_mixture_questions(1, seed=rng.randrange(2**63), split="train", mixtures=mixtures)
        style, steps = rng.choice(STYLES), rng.choice(STEPS)
        return prompt(question, style, steps), written_response(question, style, steps, rng, self.habits)


read_answer = untagged_answer  # the digit of the closing sentence, or None


# ---- the table of what is right ----------------------------------------------------------------


def measure(
    policy: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    questions: Sequence[Question],
    *,
    actions: Sequence[tuple[str, float, int]],
    seed: int = 0,
    max_new_tokens: int = 120,
    words: str = PROMPT,
) -> pd.DataFrame:
    """Ask every question once with every action; counts per kind, depth and action: right, asked, tokens."""
    rows = []
    for temperature in sorted({action[1] for action in actions}):
        asked = [(q, a) for a in actions if a[1] == temperature for q in questions]
        responses = respond(
            policy,
            [words.format(question=q.text, style=style, steps=steps) for q, (style, _, steps) in asked],
            sampling=Sampling(temperature, seed=seed),
            max_new_tokens=max_new_tokens,
        )
        rows += [
            (mixture(q), q.depth, *action, read_answer(response.text) == q.answer, response.tokens)
            for (q, action), response in zip(asked, responses, strict=True)
        ]
    names = ["kind", "depth", "instruction", "temperature", "steps", "right", "tokens"]
    grouped = pd.DataFrame(rows, columns=names).groupby(names[:5], sort=False)
    return grouped.agg(
        right=("right", "sum"), asked=("right", "size"), tokens=("tokens", "mean")
    ).reset_index()


def read_table(folder: Path = TABLE) -> pd.DataFrame:
    """A shipped table: for every kind, depth and action how many of the asked questions were right."""
    return pd.read_csv(folder / "table.csv")


def dial_surface(questions: Sequence[Question], folder: Path = TABLE) -> tuple[Surface, torch.Tensor]:
    """A shipped table as a response surface for these questions, and mean tokens (C, A) beside it."""
    table = read_table(folder)
    table["value"] = table["right"] / table["asked"]
    action = ["instruction", "temperature", "steps"]
    order = pd.MultiIndex.from_product([STYLES, TEMPERATURES, STEPS])
    values, tokens = (
        table.pivot(index=["kind", "depth"], columns=action, values=name)[order]
        for name in ("value", "tokens")
    )
    rows = {cell: number for number, cell in enumerate(values.index)}
    contexts = torch.tensor([rows[mixture(question), question.depth] for question in questions])
    as_tensor = [torch.tensor(frame.to_numpy(), dtype=torch.float32) for frame in (values, tokens)]
    return Surface(as_tensor[0], contexts), as_tensor[1]


# ---- making checkpoint and table ---------------------------------------------------------------


def train(
    run: Run, *, seed: int = 0, steps: int = 1000, habits: Habits = Habits()
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Fine-tune dial-base on the corpus of styles; gives the model and what it took. Resumes."""
    config = PretrainConfig(seed=seed, steps=steps, learning_rate=2e-3, warmup_steps=min(50, steps))
    model, tokenizer = load_policy("dial-base")
    corpus = StyleCorpus(steps * config.documents_per_step, seed=seed, habits=habits)
    model, facts = pretrain(config, tokenizer, run, model=model.train(), corpus=corpus, say=print)
    return model, dict(facts)


def measure_cells(
    policy: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    depths: Iterable[int] = range(1, MAX_DEPTH + 1),
    *,
    each: int = PER_CELL,
    words: str = PROMPT,
) -> pd.DataFrame:
    """The table of an LLM: `each` test questions of every kind and depth, in all 72 ways."""
    actions = list(product(STYLES, TEMPERATURES, STEPS))
    parts = []
    for number, (name, depth) in enumerate(
        (m, d) for m in MIXTURES for d in depths if (m, d) != ("mixed", 1)
    ):
        questions = sample_mixture_questions(each, seed=number, split="test", mixtures=[name], depths=[depth])
        parts.append(measure(policy, questions, actions=actions, seed=number, words=words))
        print(f"{name} {depth}: best {(parts[-1]['right'] / parts[-1]['asked']).max():.2f}", flush=True)
    return pd.concat(parts)


def write_table(folder: Path, table: pd.DataFrame, **facts: Any) -> None:
    """Write a table and where it comes from."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "table.csv", table.round(2).to_csv(index=False))
    write_provenance(folder, **facts)


def main() -> None:
    """Make data/checkpoints/dial-llm and its table: python -m lib.dial.frozen_llm (about 20 minutes)."""
    torch.set_num_threads(1)
    run = start_run("dial_llm", "cpu", {"seed": 0, "steps": 1000})
    command = "python -m lib.dial.frozen_llm"
    checkpoint = CHECKPOINTS / "dial-llm"
    if not checkpoint.exists():
        model, facts = train(run)
        _, tokenizer = load_policy("dial-base")
        save_policy(model, tokenizer, checkpoint, command=command, base="dial-base", **facts)
    begun = time.monotonic()
    table = measure_cells(load_policy("dial-llm"))
    write_table(
        TABLE,
        table,
        command=command,
        checkpoint_sha256=check_provenance(checkpoint)["sha256"]["model.safetensors"],
        questions_per_cell=PER_CELL,
        split="test",
        seconds=round(time.monotonic() - begun, 1),
    )


if __name__ == "__main__":
    main()
