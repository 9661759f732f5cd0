"""The words of the dial world, its tokenizer, and an untrained model for it."""

from __future__ import annotations

import re

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed

from lib.dial.world import COLOURS, OPERATIONS, PAUSES, STATEMENTS
from lib.formats import ReasoningFormat


def new_dial_model(*, seed: int, layers: int = 3, width: int = 96, wide: int = 320) -> PreTrainedModel:
    """An untrained Qwen3-architecture model for the dial tokenizer, about 0.4 million parameters."""
    tokenizer = dial_tokenizer()
    set_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=wide,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=width // 4,
            initializer_range=0.05,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


# ---- tokenizer ---------------------------------------------------------------------------------

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"


def dial_vocabulary() -> list[str]:
    """Every token of the dial world. Tags and program fragments are one token each."""
    tags = [format.tag for format in ReasoningFormat]
    words = (
        "Human Assistant The dial shows Turn it Now It Jot and turns Okay let me think Wait check Yes "
        "that is right Say"
    )
    return [
        *(PAD, END, UNKNOWN, "\n", ".", ",", ":", "?", "="),
        *(str(number) for number in range(13)),
        *OPERATIONS,
        *STATEMENTS.values(),
        *("d =", "d %= 10  #", "answer = d"),
        *(f"<{tag}>\n" for tag in tags),
        *(f"\n</{tag}>\n" for tag in tags if tag != "ANSWER"),
        *("\n</ANSWER>", "<think>", "</think>"),
        *words.split(),
        *PAUSES.values(),
        *COLOURS,
    ]


def dial_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer whose decoding gives back the text exactly, line breaks included."""
    vocabulary = dial_vocabulary()
    words = sorted((word for word in vocabulary if word not in (PAD, UNKNOWN)), key=len, reverse=True)
    boundary = r"(?=[\s.,:?<]|$)"
    known = "|".join(re.escape(w) if w in "\n.,:?" or w[0] == "<" else re.escape(w) + boundary for w in words)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(rf"{known}|[^\s.,:?]+"), behavior="removed", invert=True
    )
    joins = [(f" {mark}", mark) for mark in (".", ",", ":", "?", "\n")] + [("\n ", "\n")]
    tokenizer.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse()]
        + [decoders.Replace(old, new) for old, new in joins]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
