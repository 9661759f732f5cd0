"""The one trainer of all methods: TRL's, without padding, asks the hooks of a method."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from accelerate.utils import gather_object

from lib.engines.base import Request
from lib.methods.base import Group, MethodConfig, Progress
from lib.methods.grpo import KL_LIMIT, kl_estimate
from lib.methods.readings import Opening, Reading
from lib.methods.trimming import TrimmingTrainer, draw_seed
from lib.methods.with_vllm import sample

COLUMNS = {"reference": "reference_accuracy", "budget": "budget"}  # of Group, of the rows


class MethodTrainer(TrimmingTrainer):
    """TRL's trainer with the hooks of `method`, which are all off in evaluation; a group may be split.

    Logged are unshaped accuracy, tokens, truncation and modes, in all and for each `tier` of the rows.
    Evaluate in one batch: TRL takes the plain mean over batches.
    """

    def __init__(self, method: MethodConfig, reading: Reading, **named: Any):
        self.method, self.reading = method, reading
        self._name, self._tag_names = method.name, ["trl", "grpo", method.name.replace("_", "-")]
        self._all_starts: dict[str | None, None] = {}  # of all processes: each once
        self._loss_inputs: dict[str, Any] | None = None  # while TRL's loss is computed
        super().__init__(**named)
        for row in self.train_dataset.select(range(min(100, len(self.train_dataset)))):
            reading.check_prompt(self._tokenize_prompts([row["prompt"]])[0][0])

    @property
    def progress(self) -> Progress:
        """In rollout batches, each of which may serve several of TRL's steps."""
        steps = self.args.steps_per_generation * self.num_iterations / self.args.gradient_accumulation_steps
        return Progress(self.state.global_step // steps, self.state.max_steps / steps)

    def _rng(self, *key: object) -> random.Random:
        """Random numbers that all processes agree on."""
        return random.Random("|".join(map(str, (self.args.seed, self.progress.step, *key))))

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """TRL's, which can also begin with the order of a later epoch: see `RunCallback`."""
        sampler = super()._get_train_sampler(dataset)

        def set_epoch(epoch: int) -> None:
            sampler.generator.manual_seed(sampler.seed)
            for _ in range(epoch):
                torch.randperm(sampler.num_samples, generator=sampler.generator)

        sampler.set_epoch = set_epoch
        return sampler

    # ---- responses ----

    def _generate_single_turn(self, prompt_ids: Sequence[list[int]], *more: Any, **named: Any) -> Any:
        plain = super()._generate_single_turn
        if not self.model.training:
            return plain(prompt_ids, *more, **named)
        starts = self._draw_starts(len(prompt_ids))
        self._all_starts = dict.fromkeys(gather_object(starts))
        if set(self._all_starts) == {None}:
            return self._cut(*plain(prompt_ids, *more, **named))
        requests = [self._request(*pair) for pair in zip(prompt_ids, starts, strict=True)]
        if self.use_vllm:
            return self._cut(*sample(self, requests, draw_seed()))
        drawn = self._decode(requests) if self._ours() else self._start_by_start(requests, starts)
        return self._cut(drawn, None)

    def _draw_starts(self, count: int) -> list[str | None]:
        """The modes that this process's next `count` responses must open with."""
        size, first = self.num_generations, self.accelerator.process_index * count
        groups = range(first // size, (first + count - 1) // size + 1)
        found = {group: self.method.start(self.progress, size, self._rng("start", group)) for group in groups}
        return [found[place // size][place % size] for place in range(first, first + count)]

    def _request(self, prompt_ids: Sequence[int], start: str | None) -> Request:
        """What our loop is asked for: a response that opens in one mode, within its cap."""
        opening = self.reading.opening(start) if start else Opening([], [])
        length = self.method.cap(start, self.progress) if start else self.max_completion_length
        forced = tuple(opening.ids)
        return Request(tuple(prompt_ids), forced, length - len(forced), never_first=tuple(opening.never))

    def _start_by_start(self, requests: Sequence[Request], starts: Sequence[str | None]) -> list[list[int]]:
        """Completions, forced tokens first, by TRL's own loop: all that open in one mode together."""
        completions: list[list[int]] = [[] for _ in requests]
        for start in self._all_starts:  # a process without such rows draws one: the others need its shard
            rows = [row for row, wanted in enumerate(starts) if wanted == start]
            some = [self._request(requests[row].prompt_ids, start) for row in rows or [0]]
            ids = [[*one.prompt_ids, *one.forced_ids] for one in some]
            with self._restricted(some[0].max_new_tokens, some[0].never_first):
                found, _ = super()._generate_single_turn(ids, None, {}, len(ids))
            for row, one, drawn in zip(rows, some, found, strict=False):
                completions[row] = [*one.forced_ids, *drawn]
        return completions

    @contextmanager
    def _restricted(self, length: int, never_first: Sequence[int]) -> Iterator[None]:
        """Generate at most `length` new tokens, the first of them none of `never_first`."""
        wanted = {"max_new_tokens": length, "begin_suppress_tokens": list(never_first) or None}
        usual = {name: getattr(self.generation_config, name) for name in wanted}
        self.generation_config.update(**wanted)
        try:
            yield
        finally:
            self.generation_config.update(**usual)

    def _cut(
        self, completions: list[list[int]], log_probs: list | None
    ) -> tuple[list[list[int]], list | None]:
        """Free responses cut to the cap of the mode that each one chose."""
        caps = {mode: self.method.cap(mode, self.progress) for mode in self.reading.modes}
        if min(caps.values()) >= self.max_completion_length:
            return completions, log_probs
        texts = self.processing_class.batch_decode(completions, skip_special_tokens=True)
        limits = [caps[self.reading.mode(*pair)] for pair in zip(completions, texts, strict=True)]
        rows = [completions, log_probs] if log_probs else [completions]
        cut = [[ids[:limit] for ids, limit in zip(row, limits, strict=True)] for row in rows]
        return cut[0], cut[1] if log_probs else None

    # ---- rewards ----

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        """Rewards of all processes, (N, 1), shaped where training."""
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if rewards.isnan().any():
            raise ValueError("the reward function gave None: a method needs a reward for every completion")
        rows = self._gathered(inputs, completions, completion_ids_list)
        self._log_rows(pd.DataFrame(rows).assign(accuracy=rewards[:, 0].tolist()))
        if not self.model.training:
            return rewards
        self._group, size = self._grouped(rows, rewards), self.num_generations
        shaped = self.method.shape_group(self._group, self.progress)
        self._shaped = self.method.shape_batch(shaped, self._group)
        if self._shaped.shape != (len(rewards) // size, size):
            raise ValueError(f"{self.method.name} gave rewards of shape {tuple(self._shaped.shape)}")
        return self._shaped.reshape(-1, 1)

    def _gathered(
        self, inputs: Sequence[Mapping[str, Any]], texts: Sequence[Any], ids: Sequence[Sequence[int]]
    ) -> list[dict[str, Any]]:
        """What is known of each response of all processes."""
        ends = [*self.eos_token_ids, self._tokenizer.pad_token_id]
        rows = []
        for row, text, tokens in zip(inputs, texts, ids, strict=True):
            mode = self.reading.mode(tokens, text if isinstance(text, str) else text[0]["content"])
            found = {"mode": mode, "tier": row.get("tier"), "tokens/mean": len(tokens)}
            found |= {"truncated": tokens[-1] not in ends, **self.reading.shares(mode, tokens)}
            rows.append(found | {name: row.get(column) for name, column in COLUMNS.items()})
        return gather_object(rows)

    def _grouped(self, rows: Sequence[Mapping[str, Any]], rewards: torch.Tensor) -> Group:
        size, device = self.num_generations, rewards.device
        modes = [[row["mode"] for row in rows[i : i + size]] for i in range(0, len(rows), size)]
        columns = {}
        for name in COLUMNS:
            values = [row[name] for row in rows[::size]]
            if None not in values:
                columns[name] = torch.tensor(values, device=device, dtype=rewards.dtype)
        length = torch.tensor([row["tokens/mean"] for row in rows], device=device).view(-1, size)
        return Group(rewards[:, 0].view(-1, size), length, modes, **columns)

    def _log_rows(self, rows: pd.DataFrame) -> None:
        """Means over all responses, each tier, and each mode that the reading logs apart."""
        names = [name for name in rows if name not in ("mode", "tier", *COLUMNS)]
        parts = [("", rows[names])]
        parts += [(f"{tier}/", group[names]) for tier, group in rows.groupby("tier")]
        for mode in self.reading.split:
            part = rows.loc[rows["mode"] == mode, ["accuracy", "tokens/mean", "truncated"]]
            parts.append((f"{mode}/", part))
        metrics = self._metrics["train" if self.model.training else "eval"]
        for start, some in parts:
            for name, value in some.mean().items() if len(some) else ():
                metrics[f"{start}{name}"].append(float(value))

    # ---- advantages and loss ----

    def _generate_and_score_completions(self, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """TRL's batch, with the method's advantages, and what its loss asks for."""
        training = self.model.training
        if training:
            keyed = [(self._rng("rewrite", row.get("id", row["prompt"])), dict(row)) for row in inputs]
            inputs = [self.method.rewrite(row, rng, self.progress) for rng, row in keyed]
        batch = super()._generate_and_score_completions(inputs)
        batch |= self.reading.columns(batch["completion_ids"])
        if training:
            mine = slice(self.accelerator.process_index * len(inputs), None)
            batch["advantages"] = self._advantages(batch["completion_ids"].shape[1], mine)[: len(inputs)]
        openings = (self.reading.opening(start) for start in self._all_starts if start is not None)
        if self.reading.watched and (not training or any(opening.never for opening in openings)):
            name, token = self.reading.watched
            batch[name] = self._first_log_prob(batch, token)
            if not training:
                mean = self.accelerator.gather(batch[name]).mean()
                self._metrics["eval"][name].append(mean.item())
        return batch

    def _advantages(self, width: int, mine: slice) -> torch.Tensor:
        """Of this process's responses: (N,), or (N, T) where the first token differs or tokens have weights.

        TRL's loss "dr_grpo" divides by responses times the longest length, whatever a micro-batch holds; so
        times both, a sum of A w over the tokens is exact. Its KL term stays a mean over the batch's tokens.
        """
        group, progress = self._group, self.progress
        values = self.method.advantage(self._shaped, group, progress)
        weights = self.method.token_weights(group, progress)
        if weights is not None:
            constant = group.length.numel() * self.max_completion_length
            self.beta = self.method.beta * constant / group.length.sum().item()
            values = values * weights * constant
        first, rest = values.reshape(-1, 2)[mine].unbind(1)
        if torch.equal(first, rest):
            return first
        return torch.cat([first[:, None], rest[:, None].expand(-1, width - 1)], dim=1)

    @torch.no_grad()
    def _first_log_prob(self, batch: Mapping[str, torch.Tensor], token: int) -> torch.Tensor:
        """Log-probability of a token as the first of each response, (N,): seen long before any sample."""
        column = torch.full_like(batch["prompt_ids"][:, :1], token)
        return self._score(self.model, batch, column, torch.ones_like(column))[:, 0]

    def _score(
        self, model: Any, batch: Mapping[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Log-probabilities of completions `ids` (N, T) after the batch's prompts: (N, T)."""
        given = [(batch["prompt_ids"], ids), (batch["prompt_mask"], mask)]
        whole = (torch.cat(pair, dim=1) for pair in given)
        return self._get_per_token_logps_and_entropies(model, *whole, ids.shape[1])[0]

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **named: Any) -> Any:
        """TRL's; where the KL term is clamped, the policy stands in for the reference beyond the limit.

        There k3 is 0 and so is its gradient, as that of the clamped estimate: ARM's, in any of TRL's losses.
        """
        found = super()._get_per_token_logps_and_entropies(*arguments, **named)
        if self._loss_inputs is not None and self.beta and self.method.kl == "k3_clamped":
            log_probs, reference = found[0].detach(), self._loss_inputs["ref_per_token_logps"]
            beyond = kl_estimate(log_probs, reference, "k3") > KL_LIMIT
            self._loss_inputs["ref_per_token_logps"] = torch.where(beyond, log_probs, reference)
        return found

    def _compute_loss(self, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if self.method.own_loss and model.training:
            return self._method_loss(model, inputs)
        self._loss_inputs = dict(inputs)
        try:
            return super()._compute_loss(model, self._loss_inputs)
        finally:
            self._loss_inputs = None

    def _method_loss(self, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        mask = inputs["completion_mask"]
        log_probs = self._score(model, inputs, inputs["completion_ids"], mask)
        old = inputs.get("old_per_token_logps")  # None while there is one step per batch
        loss, sums = self.method.loss(log_probs, log_probs.detach() if old is None else old, inputs)
        totals = torch.stack([torch.stack([a.float(), b.float()]) for a, b in sums.values()])
        for name, (total, count) in zip(sums, self.accelerator.reduce(totals, "sum").tolist(), strict=True):
            if count:
                self._metrics["train"][name].append(total / count)
        return loss / self.current_gradient_accumulation_steps
