"""One plain gradient step of RL, outside of any trainer, with the loss that a reader wrote."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.tasks import Rollout, Task

Policy = tuple[PreTrainedModel, PreTrainedTokenizerBase]
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def token_log_probs(
    policy: Policy, tasks: Sequence[Task], rollouts: Sequence[Rollout]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of N responses' tokens, and their mask: (N, K) each, 0 on prompts and padding."""
    model, tokenizer = policy
    prompts = tokenizer([task.prompt for task in tasks], add_special_tokens=False).input_ids
    ends = ["" if rollout.truncated else tokenizer.eos_token for rollout in rollouts]
    texts = [rollout.text + end for rollout, end in zip(rollouts, ends, strict=True)]
    written = tokenizer(texts, add_special_tokens=False).input_ids
    rows = [torch.tensor(prompt + text) for prompt, text in zip(prompts, written, strict=True)]
    marks = [
        torch.tensor([0.0] * len(prompt) + [1.0] * len(text))
        for prompt, text in zip(prompts, written, strict=True)
    ]
    ids, mask = pad_sequence(rows, batch_first=True), pad_sequence(marks, batch_first=True)
    real = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    log_probs = model(input_ids=ids, attention_mask=real).logits[:, :-1].log_softmax(-1)
    return log_probs.gather(-1, ids[:, 1:, None]).squeeze(-1), mask[:, 1:]


def after_one_step(
    policy: Policy,
    tasks: Sequence[Task],
    rollouts: Sequence[Rollout],
    advantages: torch.Tensor,
    *,
    loss: Loss,
    rate: float,
) -> Policy:
    """A copy of the policy after one plain gradient step on N responses with these advantages, (N,)."""
    moved = copy.deepcopy(policy[0])
    log_probs, mask = token_log_probs((moved, policy[1]), tasks, rollouts)
    loss(log_probs, log_probs.detach(), advantages.to(log_probs), mask).backward()
    torch.optim.SGD(moved.parameters(), lr=rate).step()
    return moved, policy[1]
