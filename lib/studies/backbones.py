"""Notebook 03's story at other sizes: pre-training, SFT and RL of dial models of another width.

python -m lib.studies.trainings 03 backbone_48/pretrain          the base and its staircase
python -m lib.studies.trainings 03 backbone_48/sft               all its weights on the four formats
python -m lib.studies.trainings 03 backbone_48/ada_grpo --seed 1

Recipes are those of width 96, not tuned for a width. Later stages start from the run folders of earlier ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lib.dial import UNTAGGED_PREFIX, read_untagged
from lib.dial.pretrain import PretrainConfig, pretrain
from lib.dial.tasks import gold_rows
from lib.dial.tokenizer import dial_tokenizer, new_dial_model
from lib.dial.world import sample_questions
from lib.engines.ask import ask
from lib.methods.sft import SFTConfig, train_sft
from lib.runs import Run, runs_folder, start_run
from lib.studies.causes import VARIANTS, measured, train_variant
from lib.studies.depths import forced_questions, forced_report
from lib.studies.records import SFT_SHARE, Outcome

LAYERS = 3


def backbone(method: str, seed: int, run: Run) -> Outcome:
    """`backbone_<width>/<stage>`: "pretrain", "sft", or a variant of RL from that SFT's seed 0."""
    width, _, stage = method.removeprefix("backbone_").partition("/")
    if stage == "pretrain":
        return base(int(width))
    start = _result(width, "pretrain" if stage == "sft" else "sft/seed_0")
    if stage == "sft":
        model, tokenizer, facts = fine_tune(start, seed, run)
    else:
        model, tokenizer, facts = train_variant(VARIANTS[stage], seed, run, base=str(start))
    named = f"backbone_{width}/{'pretrain' if stage == 'sft' else 'sft'}"  # not a path of one machine
    facts = facts | {"config": facts["config"] | {"base": named}}
    return measured(model, tokenizer, facts, seed, run, forced=True)


def base(width: int) -> Outcome:
    """Pre-train a base of this width, or find it again, and measure how deep each untagged style reaches."""
    run = start_run(f"03_ada_grpo/backbone_{width}/pretrain", "reference", {"width": width, "seed": 0})
    model = new_dial_model(seed=0, layers=LAYERS, width=width, wide=10 * width // 3)
    tokenizer = dial_tokenizer()
    model, facts = pretrain(PretrainConfig(), tokenizer, run, model=model, say=print)
    tasks = forced_questions()
    rollouts = [
        rollout
        for style, prefix in UNTAGGED_PREFIX.items()
        for rollout in ask((model, tokenizer), tasks, prefix=prefix, mode=style.value, read=read_untagged)
    ]
    numbers, answers = forced_report(rollouts, tasks)
    numbers["parameters"] = model.num_parameters()
    return Outcome(numbers, dict(facts), model, tokenizer, {"forced": answers}, log_rows=16)


def fine_tune(start: Path, seed: int, run: Run) -> tuple[Any, Any, dict[str, Any]]:
    """SFT of all weights on gold responses, as of notebook 02's `full`."""
    config = SFTConfig.cpu(base=str(start), weights="full", seed=seed, learning_rate=1e-3)
    rows = gold_rows(sample_questions(2400, seed=seed), seed=seed, sft_share=SFT_SHARE)
    watched = gold_rows(sample_questions(64, seed=seed, split="validation"), seed=seed)
    return train_sft(config, rows, watched, run, say=print)


def _result(width: str, stage: str) -> Path:
    """Where the weights of an earlier stage lie; FileNotFoundError says how they are made."""
    place = runs_folder() / "reference" / "03_ada_grpo" / f"backbone_{width}"
    folder = place / stage / "checkpoint" / "result"
    if not folder.exists():
        made = f"python -m lib.studies.trainings 03 backbone_{width}/{stage.partition('/')[0]}"
        raise FileNotFoundError(f"{folder} is not there; make it by {made}")
    return folder
