"""Questions as vectors for the configuration policy; each text is embedded once and kept."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import pipeline

Embedder = Callable[[Sequence[str]], torch.Tensor]  # texts -> (N, D)


def hashed_ngrams(texts: Sequence[str], *, dim: int = 256, longest: int = 2) -> torch.Tensor:
    """Counts of words and word pairs, each hashed to a place and a sign, unit length: (N, dim). No model."""
    rows = torch.zeros(len(texts), dim)
    for row, text in zip(rows, texts, strict=True):
        words = text.lower().split()
        for length in range(1, longest + 1):
            for first in range(len(words) - length + 1):
                digest = hashlib.blake2b(" ".join(words[first : first + length]).encode(), digest_size=8)
                number = int.from_bytes(digest.digest())
                row[(number >> 1) % dim] += 1 if number & 1 else -1
    return normalize(rows, dim=-1)


def text_encoder(name_or_path: str) -> Embedder:
    """A pre-trained encoder by name or path, e.g. "bert-base-uncased" (the paper's) or a sentence encoder.

    The last layer's states, averaged over the tokens of each text as in the released code, unit length.
    """
    cut = {"truncation": True, "max_length": 512}
    states = pipeline("feature-extraction", model=name_or_path, return_tensors=True, tokenize_kwargs=cut)

    def embed(texts: Sequence[str]) -> torch.Tensor:  # one by one: a batch would bring padding into the mean
        return normalize(torch.stack([found[0].float().mean(0) for found in states(list(texts))]), dim=-1)

    return embed


def cached(embedder: Embedder, folder: Path, name: str) -> Embedder:
    """The same embedder, which keeps its vectors in `folder`; `name` tells embedders apart."""

    def embed(texts: Sequence[str]) -> torch.Tensor:
        digest = hashlib.sha256("\0".join([name, *texts]).encode()).hexdigest()[:16]
        path = folder / f"{digest}.safetensors"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            vectors = embedder(texts).contiguous()
            save_file({"embeddings": vectors}, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
        return load_file(path)["embeddings"]

    return embed
