"""What each notebook does at a profile, by stages: what it holds on a device, writes to disk, and takes.

A mirror of the notebooks' code as it is: models that the notebook's own process (the kernel) has loaded, real
ones in bf16; our decode loop; a training in processes of its own, while the kernel's models are parked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlparse

from lib.studies.planner import formulas as f
from lib.studies.planner import hours as h
from lib.studies.planner.machines import Machine
from lib.studies.planner.models import Model, encoder_parameters, find_model

PROMPT = 512  # tokens of a prompt, at most, where nothing limits it
LORA_RANK, FORMATS = 8, 4
SFT = {"rows": 4, "tokens": 4096, "batch": 128, "epochs": 6, "kept": 2}  # of SFTConfig.paper
FAULT_ROWS = 32
VLLM_SHARE = 0.45  # of lib.methods.with_vllm
GROUP = 8  # of notebook 03
KL = 1e-3  # of its paper preset
AQUA_RAT = 10_800  # questions that ARM takes for SFT
THOUGHT, WORKERS = 8192, 8  # a teacher's longest reply, and requests at a time
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """One thing that a notebook does: terms on its fullest device, costs in hours, terms on disk."""

    notebook: str
    name: str
    terms: list[f.Term]
    hours: list[h.Cost] = field(default_factory=list)
    disk: list[f.Term] = field(default_factory=list)
    shared: bool = False  # whether a server that runs already is part of it

    @property
    def gib(self) -> float:
        return sum(term.gib for term in self.terms)

    @property
    def largest(self) -> f.Term:
        """The kind that takes most, all its terms together."""
        kinds = {
            term.kind: [one for one in self.terms if one.kind == term.kind and one.bytes]
            for term in self.terms
        }
        most = max(kinds.values(), key=lambda terms: sum(term.bytes for term in terms))
        formula = " + ".join(term.formula for term in most)
        return f.Term(most[0].kind, sum(term.bytes for term in most), formula)


def stages(notebook: str, values: Values, machine: Machine) -> list[Stage]:
    """The stages of one notebook with these values; none where it needs no device."""
    made = _BUILDERS.get(notebook[:2], lambda values, machine: [])(values, machine)
    return [Stage(notebook, *parts) for parts in made]


# ---- pieces --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """What the values of a notebook say about its training."""

    model: Model
    trained: str  # full, lora, qlora
    sharding: f.Sharding
    options: Mapping[str, Any]  # of TRL's configuration
    rank: int = LORA_RANK
    prompt: int = PROMPT
    beta: float = 0.0

    @classmethod
    def of(cls, values: Values, model: Model, **named: Any) -> Training:
        world = values.get("NUM_PROCESSES", 1)
        parallel = values.get("PARALLEL", "") or ("ddp" if world > 1 else "")
        named |= {
            "rank": values.get("LORA_RANK", LORA_RANK),
            "prompt": values.get("MAX_PROMPT_TOKENS", PROMPT),
        }
        return cls(model, values["WEIGHTS"], f.Sharding(parallel, world), values["TRAINER"], **named)

    @property
    def world(self) -> int:
        return self.sharding.world

    @property
    def vllm(self) -> bool:
        return bool(self.options.get("use_vllm"))

    @property
    def stored(self) -> str:
        """The type that rollouts are decoded in."""
        return "float32" if self.trained == "full" else "bfloat16"

    @property
    def share(self) -> float:
        """Of a device, for vLLM."""
        return self.options.get("vllm_gpu_memory_utilization", VLLM_SHARE)

    def states(self, machine: Machine) -> list[f.Term]:
        """All that a training process holds from its first step to its last."""
        held = [f.margin(self.world), f.kernel_context()]
        held += f.training_states(self.model, self.trained, self.rank, self.sharding)
        held += f.reference(self.model, self.trained, self.beta, self.sharding)
        return held + ([f.vllm(machine.memory, self.share)] if self.vllm else [])

    def rollouts(self, responses: int, cap: int) -> list[f.Term]:
        """What a process holds to write its share of a rollout batch; vLLM has it in its reservation."""
        mine = responses // self.world
        if self.vllm:
            return []
        if self.sharding.whole:
            return f.generation(self.model, mine, self.prompt, cap, self.stored)
        rows = f.kv_cache(self.model, mine, self.prompt + cap, "bfloat16")  # TRL's own loop: all at once
        return [rows, f.next_token(self.model, mine)]

    def update(self, rows: int, cap: int) -> list[f.Term]:
        """A micro-batch, in passes without padding."""
        tokens = self.prompt + cap
        return self.micro_batch(rows, tokens, pass_tokens=f.PASS_TOKENS)

    def micro_batch(self, rows: int, tokens: int, *, pass_tokens: int | None = None) -> list[f.Term]:
        """Forward and backward of some rows."""
        sharded = self.sharding.name in ("fsdp2", "zero2", "zero3")  # these train in bf16
        return f.activations(self.model, self.trained, rows, tokens, pass_tokens=pass_tokens, sharded=sharded)

    def time(
        self, machine: Machine, batches: int, responses: int, cap: int, *, updates: int = 1
    ) -> list[h.Cost]:
        """Rollouts and updates of a whole training."""
        model, room = self.model, None
        if self.vllm:
            room = max(1.0, self.share * machine.memory * f.GIB - 2 * model.parameters)
        width = {"full": 4, "lora": 2, "qlora": 4.5}[self.trained] if room is None else 2
        shape: dict[str, Any] = {"responses": responses, "prompt": PROMPT, "cap": cap, "width": width}
        decoding = h.decoding(model, machine, **shape, devices=self.world, rounds=batches, room=room)
        passes = (4 if self.trained == "full" else 3) + (updates > 1 or self.vllm) + (self.beta > 0)
        tokens = batches * responses * (PROMPT / 2 + h.WRITTEN * cap)
        return [decoding, h.training(model, machine, tokens=tokens, passes=passes, devices=self.world)]

    def saved(self, kept: int) -> list[f.Term]:
        """Checkpoints, with the one that is being written, and the result."""
        number = self.model.parameters if self.trained == "full" else self.model.adapters(self.rank)
        each = 12 * number
        checkpoints = f.Term("checkpoints", (kept + 1) * each, f"({kept} + 1) x 12 B x {f.count(number)}")
        return [checkpoints, f.Term("result", 4 * number, f"4 B x {f.count(number)}")]


def _disk(kind: str, model: Model, copies: int = 1) -> f.Term:
    times = f"{copies} x " if copies > 1 else ""
    return f.Term(kind, 2 * copies * model.parameters, f"{times}2 B x {f.count(model.parameters)}")


def _texts(responses: int, cap: int) -> f.Term:
    size = responses * h.WRITTEN * cap * 5
    return f.Term("rollouts", size, f"{responses:,} responses x {h.WRITTEN} x {cap:,} tokens x 5 B")


def _measuring(model: Model, held: list[f.Term], responses: int, values: Values) -> list[f.Term]:
    """A kernel with some models that asks one of them."""
    return [f.margin(1), *held, *f.generation(model, responses, PROMPT, values["MAX_NEW_TOKENS"], "bfloat16")]


def _asking(model: Model, machine: Machine, responses: int, values: Values, width: float = 2) -> h.Cost:
    cap = values["MAX_NEW_TOKENS"]
    return h.decoding(model, machine, responses=responses, prompt=PROMPT, cap=cap, width=width)


def _kernel(model: Model, stored: str = "bfloat16") -> f.Term:
    return f.weights(model, stored, kind="kernel")


def _server(
    model: Model, machine: Machine, requests: int, cap: int, mean: float, spare: float = 0.9
) -> list[Any]:
    """A server's terms, tensor-parallel over as few devices as hold it, and what its requests cost."""
    cache = f.kv_cache(model, WORKERS, PROMPT + cap, "bfloat16")
    over = 1
    while (
        over < machine.devices
        and (2 * model.parameters + cache.bytes) / over > (spare - 0.1) * machine.memory * f.GIB
    ):
        over *= 2
    parallel = f" / {over} (--tensor-parallel-size {over})" if over > 1 else ""
    cache = f.Term(cache.kind, cache.bytes / over, cache.formula + parallel)
    read = 2 * model.parameters / over
    step_ms = h.LAYER_MS["vllm"] * model.layers + read / machine.bandwidth / 1e6
    steps = requests * mean / WORKERS
    formula = f"{requests:,} requests x {mean:,.0f} tokens / {WORKERS} at a time x {step_ms:.0f} ms"
    return [
        [f.margin(over), f.weights(model, "bfloat16", parts=over), cache],
        h.Cost("server", steps * step_ms / 3.6e6, formula),
    ]


# ---- notebooks -----------------------------------------------------------------------------------


def _is_here(url: str) -> bool:
    return bool(url) and urlparse(url).hostname in ("localhost", "127.0.0.1", "::1")


def _data(values: Values, machine: Machine) -> list[tuple]:
    if not _is_here(values["TEACHER_URL"]):
        return []
    model = find_model(values["TEACHER_MODEL"], "TEACHER_MODEL")
    if model is None:
        return []
    terms, cost = _server(model, machine, 2 * values["TRAIN_QUESTIONS"], THOUGHT, THOUGHT * h.WRITTEN / 2)
    replies = _texts(2 * values["TRAIN_QUESTIONS"], THOUGHT)
    return [("teacher server", terms, [cost], [_disk("download", model), replies], True)]


def _sft(values: Values, machine: Machine) -> list[tuple]:
    model = find_model(values["MODEL"])
    if model is None:
        return []
    t, asked = Training.of(values, model), values["TEST_QUESTIONS"]
    rows, longest = values.get("MICRO_BATCH_SIZE", SFT["rows"]), SFT["tokens"]
    held = t.micro_batch(rows, longest)
    download = _disk("download", model)
    kernel = [_kernel(model), _kernel(model, "nf4")]
    merging = [f.margin(1), *kernel, _kernel(model), _kernel(model, "nf4")]
    three = [f.margin(1), *[_kernel(model)] * 2, *[_kernel(model, "nf4")] * 2]
    fresh = [f.margin(1), *f.training_states(model, "lora", t.rank, f.Sharding("", 1))]
    faults = fresh + f.plain_step(model, min(FAULT_ROWS, rows), longest)
    responses = (2 + FORMATS) * asked  # before and after, and every format
    return [
        (
            "training",
            t.states(machine) + held,
            [_sft_hours(values, t, machine)],
            [*t.saved(SFT["kept"]), download],
        ),
        ("merge", merging, [], [_disk("merged", model)]),
        *([("three merges", three)] if t.trained == "qlora" else []),
        (
            "measuring",
            _measuring(model, [*kernel, _kernel(model)], asked, values),
            [_asking(model, machine, responses, values)],
            [_texts(responses, values["MAX_NEW_TOKENS"])],
        ),
        ("faults", faults),
    ]


def _sft_hours(values: Values, t: Training, machine: Machine) -> h.Cost:
    """A response for each question and format, or as many steps as are asked for."""
    steps = values["STEPS"] if values["STEPS"] > 0 else SFT["epochs"] * FORMATS * AQUA_RAT // SFT["batch"]
    tokens = steps * SFT["batch"] * h.WRITTEN * SFT["tokens"]
    return h.training(
        t.model, machine, tokens=tokens, passes=4 if t.trained == "full" else 3, devices=t.world
    )


def _ada_grpo(values: Values, machine: Machine) -> list[tuple]:
    model = find_model(values["MODEL"])
    if model is None:
        return []
    t = Training.of(values, model, beta=KL if values["PRESET"] != "cpu" else 0.0)
    start, cap, responses = _kernel(model), values["MAX_NEW_TOKENS"], GROUP * values["PROMPTS"]
    decoding, training = t.time(machine, 2 * values["BATCHES"], responses, cap, updates=values["UPDATES"])
    probed, asked, states = GROUP * values["PROBE_GROUPS"], values["TEST_QUESTIONS"], t.states(machine)
    disk = [*t.saved(1), *t.saved(1), _disk("policies", model, 2)]
    return [
        ("probe", _measuring(model, [start], probed, values), [_asking(model, machine, probed, values)]),
        ("rollouts", states + t.rollouts(responses, cap), [decoding]),
        ("policy update", states + t.update(values["MICRO_BATCH_SIZE"], cap), [training], disk),
        (
            "measuring",
            _measuring(model, [start] * 3, asked, values),
            [_asking(model, machine, 3 * asked, values)],
            [_texts(3 * asked + probed, cap)],
        ),
    ]


def _modes(values: Values, machine: Machine) -> list[tuple]:
    model, baseline = find_model(values["MODEL"]), find_model(values["BASELINE"], "BASELINE")
    if model is None or baseline is None:
        return []
    # adaptive, four formats, up to four for consensus, votes twice, the baseline; budgets of both are shorter
    responses = values["TEST_QUESTIONS"] * (1 + FORMATS + FORMATS + 2 * values["VOTES"] + 1)
    cost = _asking(model, machine, responses, values)
    budgets = [
        h.decoding(model, machine, responses=2 * values["TEST_QUESTIONS"], prompt=PROMPT, cap=budget)
        for budget in values["BUDGETS"]
    ]
    forced = h.Cost("budgets", sum(one.hours for one in budgets), f"the same for caps of {values['BUDGETS']}")
    terms = _measuring(model, [_kernel(model), _kernel(baseline)], responses, values)
    return [("modes", terms, [cost, forced], [_texts(responses, values["MAX_NEW_TOKENS"])])]


def _adaptthink(values: Values, machine: Machine) -> list[tuple]:
    model = find_model(values["MODEL"])
    if model is None:
        return []
    t, cap = Training.of(values, model), values["MAX_NEW_TOKENS"]
    start, width = (_kernel(model, "nf4"), 4.5) if t.trained == "qlora" else (_kernel(model), 2)
    responses, watched = values["PROMPTS"] * values["NUM_GENERATIONS"], values["WATCHED_QUESTIONS"]
    decoding, training = t.time(machine, values["BATCHES"], responses, cap)
    states, asked = t.states(machine), 3 * values["TEST_QUESTIONS"]
    pilot = 2 * values["PILOT_QUESTIONS"] * values["PILOT_SAMPLES"]
    reference = values["TRAIN_QUESTIONS"] * values["REFERENCE_SAMPLES"]
    at_once = min(64, values["TRAIN_QUESTIONS"]) * values["REFERENCE_SAMPLES"]
    disk = [*t.saved(1), _disk("download", model)]
    return [
        (
            "pilot",
            _measuring(model, [start], pilot // 2, values),
            [_asking(model, machine, pilot, values, width)],
            [_texts(pilot, cap)],
        ),
        (
            "reference samples",
            _measuring(model, [start], at_once, values),
            [_asking(model, machine, reference, values, width)],
        ),
        ("rollouts", states + t.rollouts(max(responses, watched * t.world), cap), [decoding]),
        ("policy update", states + t.update(values["MICRO_BATCH_SIZE"], cap), [training], disk),
        (
            "evaluation",
            _measuring(model, [start, _kernel(model)], values["TEST_QUESTIONS"], values),
            [_asking(model, machine, asked, values)],
            [_texts(asked, cap)],
        ),
    ]


def _bandit(values: Values, machine: Machine) -> list[tuple]:
    if not values["SERVER_URL"]:
        return []
    terms, costs, disk = [f.margin(1)], [], []
    for name in ("ENCODER", "REWARD_MODEL"):
        if values[name]:
            number = encoder_parameters(values[name], name)
            terms += [f.Term("kernel", 4 * number, f"4 B x {f.count(number)}, {name}")]
            disk += [f.Term("download", 4 * number, f"4 B x {f.count(number)}, {name}")]
    if terms[1:]:
        terms += [f.Term("activations", 0.75 * f.GIB, "about 0.75 for 64 texts of 512 tokens")]
    here = _is_here(values["SERVER_URL"])
    model = find_model(values["SERVER_MODEL"], "SERVER_MODEL") if here else None
    if model is not None:
        requests = 4 * values["REAL_UPDATES"] + 2 * values["REAL_TEST"]
        served, cost = _server(model, machine, requests, 2048, 512, spare=0.8)
        terms, costs, disk = [*served, *terms], [cost], [*disk, _disk("download", model)]
    return [("server and judge" if model else "judge", terms, costs, disk, model is not None)]


_BUILDERS: dict[str, Callable[[Values, Machine], list[tuple]]] = {
    "01": _data,
    "02": _sft,
    "03": _ada_grpo,
    "04": _modes,
    "05": _adaptthink,
    "06": _bandit,
}
