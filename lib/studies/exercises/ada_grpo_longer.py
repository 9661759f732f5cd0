"""Notebook 03's longer exercise: a reward with a price on tokens."""

from __future__ import annotations

import torch

from lib.studies.exercises.core import Check

priced = Check(
    "priced",
    lambda ok, length, price: ok * (1 - price * length),
    lambda: [
        (torch.tensor([[1.0, 1, 1, 0]]), torch.tensor([[4.0, 10.0, 68.0, 4.0]]), 0.004),
        (torch.tensor([[1.0, 1], [0, 0]]), torch.tensor([[40.0, 8.0], [40.0, 8.0]]), 0.01),
        (torch.tensor([[1.0, 0, 0, 1]]), torch.tensor([[4.0, 4.0, 64.0, 104.0]]), 0.0),
    ],
    {
        "A wrong answer pays for its tokens, too. Then a short wrong one beats a long wrong one.": (
            lambda ok, length, price: ok - price * length
        ),
        "A wrong answer is paid for being short. Only right ones earn anything.": (
            lambda ok, length, price: 1 - price * length
        ),
        "The sign: tokens cost.": lambda ok, length, price: ok * (1 + price * length),
        "That is what the tokens cost. It is taken away from 1.": (
            lambda ok, length, price: ok * price * length
        ),
        "The price is for each token: multiply by the length.": lambda ok, length, price: ok * (1 - price),
        "The price is per token, not per share of the longest response of the group.": (
            lambda ok, length, price: ok * (1 - price * length / length.amax(1, keepdim=True))
        ),
    },
)
