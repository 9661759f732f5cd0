"""A small bandit by the real trainer; it loads none of the libraries of language models."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from lib.bandit.actions import ActionSpace
from lib.bandit.learner import ConfigurationPolicy
from lib.bandit.training import BanditConfig, BanditTrainer
from lib.runs import Run

SPACE = ActionSpace(("a", "b", "c"), (0.0, 0.5), (1, 2, 4, 8))


def bandit(folder: Path, model: str, changes: dict[str, Any], wait: float = 0.0) -> list[dict[str, float]]:
    """Its LLM takes `wait` seconds to answer; `rewarded` is the remainder that earns the reward."""
    rewarded = changes.get("rewarded", 0)
    changes = {name: value for name, value in changes.items() if name != "rewarded"}
    embeddings = torch.randn(20, 16, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)

    def slowly(questions: torch.Tensor, actions: torch.Tensor, seed: int) -> torch.Tensor:
        time.sleep(wait)
        return ((questions + actions) % 3 == rewarded).float()

    slowly.setting = ["remainder", rewarded]  # type: ignore[attr-defined]

    config = BanditConfig(**{"updates": 100, "batch_size": 8, "save_every": 20} | changes)
    trainer = BanditTrainer(ConfigurationPolicy(16, SPACE), embeddings, slowly, config, Run(folder, {}))
    history = trainer.train(say=print)
    (folder / "decisions.json").write_text(json.dumps(trainer.decisions))
    return history
