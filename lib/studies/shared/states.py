"""The state of a model from which it decides how to respond, and what can be read from it."""

from collections.abc import Sequence

import torch
from sklearn.linear_model import LogisticRegression
from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS = 256  # that a pass over prompts holds


def decision_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> torch.Tensor:
    """Last-layer hidden state at the last prompt token, where the response format is chosen: (N, width)."""
    states = []
    for first in range(0, len(prompts), ROWS):
        some = list(prompts[first : first + ROWS])
        batch = tokenizer(some, return_tensors="pt", padding=True, padding_side="left").to(model.device)
        with torch.inference_mode():
            read = model(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
        states.append(read.hidden_states[-1][:, -1].float().cpu())
    return torch.cat(states)


def probe_accuracy(states: torch.Tensor, labels: Sequence[str]) -> float:
    """Accuracy of a linear probe that reads labels from states (N, D): fitted on the first half alone."""
    cut = len(labels) // 2
    mean, deviation = states[:cut].mean(0), states[:cut].std(0).clamp_min(1e-6)
    scaled = ((states - mean) / deviation).numpy()
    probe = LogisticRegression(max_iter=2000).fit(scaled[:cut], labels[:cut])
    return float(probe.score(scaled[cut:], labels[cut:]))
