"""The prompting baselines of notebook 06: they ask the same frozen LLM and learn no configuration.

They get the same prompts as the learned configuration: the hints that the released code gives its own method
only are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from sklearn.cluster import AgglomerativeClustering, KMeans
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.bandit.llms import LLM, Request


def with_examples(prompt: str, examples: Sequence[tuple[str, str]]) -> str:
    """Worked examples (prompt, reply) before the prompt: in-context CoT, and Auto-CoT with its own."""
    return "\n".join([*(f"{asked} {reply}" for asked, reply in examples), prompt])


@dataclass
class Metered:
    """A frozen LLM with a meter: `costs` lists `count(reply)` of each, `no_reply` where there is none."""

    llm: LLM
    count: Callable[[str], int]
    no_reply: int = 0
    costs: list[int] = field(default_factory=list)

    def ask(self, requests: Sequence[Request]) -> list[str | None]:
        """The replies of the LLM behind it, cached ones counted as well."""
        replies = self.llm.ask(requests)
        self.costs += [self.count(reply) if reply else self.no_reply for reply in replies]
        return replies

    def per_question(self, questions: int) -> list[int]:
        """The tokens of each question, where all were asked in turn with as many requests each."""
        each, rest = divmod(len(self.costs), questions)
        if rest:
            raise ValueError(f"{len(self.costs)} requests do not belong to {questions} questions evenly")
        return [sum(self.costs[first : first + each]) for first in range(0, len(self.costs), each)]


def sample(
    llm: LLM, prompts: Sequence[str], *, count: int, temperature: float, seed: int = 0
) -> list[list[str]]:
    """`count` replies to each prompt; those that were cut or did not come are left out."""
    requests = [Request(p, temperature, seed + k) for p in prompts for k in range(count)]
    replies = llm.ask(requests)
    rows = [replies[first : first + count] for first in range(0, len(replies), count)]
    return [[reply for reply in row if reply] for row in rows]


def self_consistency(replies: Sequence[str], read: Callable[[str], str | None]) -> str | None:
    """The most frequent answer, the first among equals (Wang et al. 2022); None where none can be read."""
    answers = [answer for reply in replies if (answer := read(reply)) is not None]
    return Counter(answers).most_common(1)[0][0] if answers else None


def best_of_n(replies: Sequence[str], score: Callable[[str], float]) -> str | None:
    """The reply with the best score of a judge that does not see the reference; None without replies."""
    return max(replies, key=score, default=None)


@torch.inference_mode()
def mean_log_prob(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, reply: str
) -> float:
    """How likely a reply is to the model itself, per token: a score for best-of-N without a judge."""
    asked = tokenizer(prompt).input_ids
    ids = torch.tensor([asked + tokenizer(f" {reply}", add_special_tokens=False).input_ids])
    log_probs = model(input_ids=ids.to(model.device)).logits[0, :-1].log_softmax(-1).cpu()
    chosen = log_probs.gather(-1, ids[0, 1:, None])[len(asked) - 1 :, 0]
    return chosen.mean().item() if len(chosen) else float("-inf")


def auto_cot_examples(
    prompts: Sequence[str], embeddings: torch.Tensor, replies: Sequence[str | None], *, count: int, seed: int
) -> list[tuple[str, str]]:
    """One unlabelled example per cluster of questions: the one nearest to its centre (Zhang et al. 2022).

    replies are the model's own, so an example may be wrong; embeddings: (N, D).
    """
    distances = KMeans(count, random_state=seed, n_init=4).fit(embeddings.numpy()).transform(embeddings)
    examples = []
    for column in distances.T:
        nearest = next((i for i in column.argsort() if replies[i]), None)
        if nearest is not None:
            examples.append((prompts[nearest], replies[nearest]))
    return examples


def tree_of_thoughts(
    llm: LLM,
    prompt: str,
    read: Callable[[str], str | None],
    *,
    width: int = 4,
    beam: int = 2,
    depth: int = 3,
    temperature: float = 1.0,
    seed: int = 0,
) -> str | None:
    """A small tree search over lines (Yao et al. 2023); beam 2 and depth 3 are the paper's.

    From each kept beginning, `width` continuations are sampled. Their first lines are the new thoughts; one
    is worth as many continuations as agree on its commonest answer. The best beginning gives the answer.
    """
    kept, answer = [""], None
    for level in range(depth):
        votes: dict[str, list[str]] = {}
        for begun in kept:
            (replies,) = sample(
                llm, [prompt + begun], count=width, temperature=temperature, seed=seed + level * width
            )
            for reply in replies:
                line, newline, _ = reply.partition("\n")
                if (found := read(begun + reply)) is not None:
                    votes.setdefault(f"{begun} {line}{newline}".lstrip(), []).append(found)
        if not votes:
            return answer
        ranked = sorted(votes, key=lambda begun: -Counter(votes[begun]).most_common(1)[0][1])
        answer = Counter(votes[ranked[0]]).most_common(1)[0][0]
        kept = [f" {begun}" for begun in ranked[:beam] if begun.endswith("\n")]
        if not kept:
            return answer
    return answer


# ---- extensions, named once in the paper and specified nowhere ------------------------------------


REFLECTION = """\
{prompt}

A first attempt:
{reply}

Say what is wrong with it, if anything. Then answer again."""


def reflect(
    llm: LLM,
    prompts: Sequence[str],
    replies: Sequence[str | None],
    *,
    ask: str = REFLECTION,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str | None]:
    """Self-reflection: show the model its replies and ask for revised ones; what is no reply stays so.

    `ask` holds {prompt} and {reply}. The first reply stands where the second did not come.
    """
    places = [place for place, reply in enumerate(replies) if reply]
    again = [ask.format(prompt=prompts[place], reply=replies[place]) for place in places]
    second = llm.ask([Request(text, temperature, seed) for text in again])
    revised = {place: reply for place, reply in zip(places, second, strict=True) if reply}
    return [revised.get(place, reply) for place, reply in enumerate(replies)]


def select_by_cluster(
    replies: Sequence[str], embeddings: torch.Tensor, *, similarity: float = 0.8
) -> str | None:
    """Selection: the medoid of the largest group of similar replies; embeddings (N, D) of unit length.

    The released code has this (average linkage, cosine similarity 0.8) and never calls it.
    """
    if len(replies) < 2:
        return replies[0] if replies else None
    similar = embeddings @ embeddings.T
    clustering = AgglomerativeClustering(
        n_clusters=None, distance_threshold=1 - similarity, metric="precomputed", linkage="average"
    )
    labels = torch.tensor(clustering.fit_predict((1 - similar).clamp_min(0).numpy()))
    members = (labels == labels.bincount().argmax()).nonzero()[:, 0]
    medoid = similar[members][:, members].sum(1).argmax()
    return replies[int(members[medoid])]
