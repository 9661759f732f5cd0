"""A training in processes of its own: what each of them holds, stage by stage, and how long it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lib.studies.planner import formulas as f
from lib.studies.planner import hours as h
from lib.studies.planner.machines import Machine
from lib.studies.planner.models import Model

PROMPT = 512  # tokens of a prompt, at most, where nothing limits it
VLLM_SHARE = 0.45  # of lib.methods.with_vllm
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """One thing that a notebook does: terms on its fullest device, costs in hours, terms on disk."""

    name: str
    terms: list[f.Term]
    hours: list[h.Cost] = field(default_factory=list)
    disk: list[f.Term] = field(default_factory=list)
    shared: bool = False  # whether a server that runs already is part of it
    fault: str = ""  # why it cannot start, whatever the memory
    notebook: str = ""

    @property
    def gib(self) -> float:
        return sum(term.gib for term in self.terms)

    @property
    def largest(self) -> f.Term:
        """The kind that takes most, all its terms together."""
        by_kind: dict[str, list[f.Term]] = {}
        for term in self.terms:
            by_kind.setdefault(term.kind, []).extend([term] if term.bytes else [])
        most = max(by_kind.values(), key=lambda terms: sum(term.bytes for term in terms))
        formula = " + ".join(term.formula for term in most)
        return f.Term(most[0].kind, sum(term.bytes for term in most), formula)


@dataclass(frozen=True)
class Training:
    """What the values of a notebook say about its training."""

    model: Model
    machine: Machine
    trained: str  # full, lora, qlora
    sharding: f.Sharding
    options: Mapping[str, Any]  # of TRL's configuration
    rank: int
    prompt: int
    beta: float

    @classmethod
    def of(cls, values: Values, model: Model, machine: Machine, beta: float = 0.0) -> Training:
        world = values["NUM_PROCESSES"]
        sharding = f.Sharding(values["PARALLEL"] or ("ddp" if world > 1 else ""), world)
        rank, prompt = values["LORA_RANK"], values.get("MAX_PROMPT_TOKENS", PROMPT)
        return cls(model, machine, values["WEIGHTS"], sharding, values["TRAINER"], rank, prompt, beta)

    @property
    def world(self) -> int:
        return self.sharding.world

    @property
    def vllm(self) -> bool:
        return bool(self.options.get("use_vllm"))

    @property
    def share(self) -> float:
        """Of a device, for vLLM."""
        return self.options.get("vllm_gpu_memory_utilization", VLLM_SHARE)

    # ---- memory ----

    def stages(self, responses: int, rows: int, cap: int, costs: list[h.Cost]) -> list[Stage]:
        """Rollout batches of `responses`, micro-batches of `rows`; disk is that of one training."""
        states = self.states()
        wrote = Stage("rollouts", states + self.rollouts(responses, cap), costs[:1], fault=self.fault(cap))
        updated = states + self.micro_batch(rows, self.prompt + cap, pass_tokens=f.PASS_TOKENS)
        return [wrote, Stage("policy update", updated, costs[1:], self.saved(1))]

    def states(self) -> list[f.Term]:
        """All that a process holds from the first step to the last."""
        held = [f.margin(self.world), f.kernel_context()]
        held += f.training_states(self.model, self.trained, self.rank, self.sharding)
        held += f.reference(self.model, self.trained, self.beta, self.sharding)
        return held + ([f.vllm(self.machine.memory, self.share)] if self.vllm else [])

    def rollouts(self, responses: int, cap: int) -> list[f.Term]:
        """What a process holds to write its share of a rollout batch; vLLM has it in its reservation."""
        mine = responses // self.world
        if self.vllm:
            return []
        width = "float32" if self.trained == "full" else "bfloat16"
        if self.sharding.whole:
            free = self.machine.memory * f.GIB - sum(term.bytes for term in self.states())
            return f.generation(self.model, mine, self.prompt, cap, width, free=free)
        rows = f.kv_cache(self.model, mine, self.prompt + cap, "bfloat16")  # TRL's own loop: all at once
        return [rows, f.next_token(self.model, mine)]

    def micro_batch(self, rows: int, tokens: int, *, pass_tokens: int | None = None) -> list[f.Term]:
        """Forward and backward of some rows; what is sharded computes in bf16 throughout."""
        sharded = self.sharding.name in ("fsdp2", "zero2", "zero3")
        return f.activations(self.model, self.trained, rows, tokens, pass_tokens=pass_tokens, sharded=sharded)

    def fault(self, cap: int) -> str:
        """Why vLLM would not start: its share must hold its weights and one response."""
        one = f.kv_cache(self.model, 1, self.prompt + cap, "bfloat16").bytes
        needs = (2 * self.model.parameters + one) / f.GIB
        if not self.vllm or self.share * self.machine.memory > needs:
            return ""
        least = needs / self.machine.memory + 0.02
        return f"vLLM needs {needs:.1f} GiB: vllm_gpu_memory_utilization of {least:.2f} or more in TRAINER"

    # ---- time and disk ----

    def time(self, batches: int, responses: int, cap: int, *, updates: int = 1) -> list[h.Cost]:
        """Rollouts and updates of a whole training."""
        model, width, room = self.model, {"full": 4.0, "lora": 2.0, "qlora": 4.5}[self.trained], None
        if self.vllm:
            width, room = 2.0, max(1.0, self.share * self.machine.memory * f.GIB - 2 * model.parameters)
        shape = {"responses": responses, "prompt": self.prompt, "cap": cap, "rounds": batches}
        decoding = h.decoding(model, self.machine, **shape, width=width, devices=self.world, room=room)
        passes = (4 if self.trained == "full" else 3) + (updates > 1 or self.vllm) + (self.beta > 0)
        tokens = batches * responses * (PROMPT / 2 + h.WRITTEN * cap)
        return [decoding, h.training(model, self.machine, tokens=tokens, passes=passes, devices=self.world)]

    def saved(self, kept: int) -> list[f.Term]:
        """Checkpoints, with the one that is being written, and the result."""
        number = self.model.parameters if self.trained == "full" else self.model.adapters(self.rank)
        each = f.count(number)
        checkpoints = f.Term("checkpoints", 12 * (kept + 1) * number, f"({kept} + 1) x 12 B x {each}")
        return [checkpoints, f.Term("result", 4 * number, f"4 B x {each}")]
