"""Rewards for AdaReasoner's replies: the paper's judge model.

A judge has TRL's signature (prompts, completions, answer) -> one number in [0, 1] per completion.
"""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import pipeline

from lib.policies.load import fingerprint

Judge = Callable[..., list[float]]
REWARD_MODEL = "OpenAssistant/reward-model-deberta-v3-large-v2"  # the paper's


VERDICT = "The reply is: {}\nIt agrees with the reference answer {} and is correct."
SPARE = 12  # tokens for the marks of a pair, and where texts are joined


class RewardModelJudge:
    """The sigmoid of a reward model's one logit (paper, section 3), from a classifier by name or path.

    It reads the question, and a sentence that the reply gives the reference answer and is correct. Where that
    is more than `window` tokens, the middle of the longer text is left out: beginnings and ends stay, and the
    reference always. The paper does not say how logits become rewards in [0, 1]; the sigmoid is our reading.
    """

    def __init__(self, name_or_path: str = REWARD_MODEL, *, batch_size: int = 16, window: int = 512):
        fitting = {"truncation": "longest_first", "max_length": window}  # for a reference that is too long
        options = fitting | {"function_to_apply": "sigmoid", "batch_size": batch_size}
        self.scorer, self.window = pipeline("text-classification", model=name_or_path, **options), window
        self.setting = [fingerprint(name_or_path), window]  # for `lib.checked.identity`
        if (labels := self.scorer.model.config.num_labels) != 1:
            raise ValueError(f"{name_or_path} has {labels} labels; a reward model has one")

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **_: Any
    ) -> list[float]:
        pairs = [self.pair(*row) for row in zip(prompts, completions, answer, strict=True)]
        return [found["score"] for found in self.scorer(pairs)]

    def pair(self, prompt: str, reply: str, reference: str) -> dict[str, str]:
        """The two texts that the model reads."""
        question, written = self._places(prompt), self._places(reply)
        room = self.window - SPARE - len(self._places(VERDICT.format("", reference)))
        for_reply = max(room - len(question), room // 2)
        for_question = room - min(len(written), for_reply)
        read = VERDICT.format(_shortened(reply, written, for_reply), reference)
        return {"text": _shortened(prompt, question, for_question), "text_pair": read}

    def _places(self, text: str) -> list[tuple[int, int]]:
        """Where each token begins and ends."""
        encode = self.scorer.tokenizer
        return encode(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping


def _shortened(text: str, places: Sequence[tuple[int, int]], room: int) -> str:
    """A text of at most so many tokens, without its middle where it has more."""
    if len(places) <= room:
        return text
    half = max(1, room // 2)
    return f"{text[: places[half - 1][1]]} ... {text[places[-half][0] :]}"
