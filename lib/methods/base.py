"""What a method of training is: a frozen configuration, and hooks that say what is its own.

B prompts with G responses each. A method is a subclass of `MethodConfig`, or of `GRPO`, in a file of its own:
its constants are fields, its formulas hooks. Every hook can be called without a trainer.
"""

import random
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import torch
import trl

from lib.checked import Range, check_fields, close, raise_faults
from lib.methods.options import option_faults
from lib.methods.with_vllm import vllm_conflicts
from lib.verify import Rules

Modes = Sequence[Sequence[str | None]]
Share = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(1)]
# Settings for the dial world: 96 responses a batch, all weights, a few minutes on one core.
DIAL: dict[str, Any] = {"batches": 80, "micro_batch_size": 96, "learning_rate": 4e-4}
DIAL |= {"max_completion_length": 160, "precision": "float32", "gradient_checkpointing": False}


class Progress(NamedTuple):
    """How far a training is, in rollout batches."""

    step: float
    total: float


@dataclass(frozen=True)
class Group:
    """The responses of one rollout batch, all processes together: `ok` is 1 or 0, `length` counts tokens.

    `mode` is how a response opens, None for no known way. Columns of the questions, where the rows have
    them: the reference model's accuracy, and a budget in tokens.
    """

    ok: torch.Tensor  # (B, G), like length and mode
    length: torch.Tensor
    mode: Modes
    reference: torch.Tensor | None = None  # (B,), like budget
    budget: torch.Tensor | None = None

    def column(self, name: str) -> torch.Tensor:
        """A column of the questions, (B, 1)."""
        values = getattr(self, name)
        if values is None:
            raise ValueError(f"the rows have no column for {name}, or not all of them have a value")
        return values.unsqueeze(1)

    def opens(self, mode: str | None) -> torch.Tensor:
        """Where a response opens in this mode, (B, G)."""
        return torch.tensor([[found == mode for found in row] for row in self.mode], device=self.ok.device)


def by_name(*names: str) -> dict[str, str]:
    """Options of TRL's that the fields of the same name set."""
    return dict(zip(names, names, strict=True))


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What every training says: where it starts, which weights it trains, and how it steps.

    `trainer` takes any option of TRL's configuration by TRL's name, but those that a field here sets.
    """

    arguments: ClassVar[type] = trl.GRPOConfig
    shown: ClassVar[Mapping[str, str]] = {"loss": "loss"}  # what is said meanwhile: label, name in the logs
    taken: ClassVar[dict[str, str]] = {  # TRL's options: what sets them here
        **by_name("seed", "learning_rate", "gradient_checkpointing"),
        **dict.fromkeys(("output_dir", "resume_from_checkpoint"), "the run's folder"),
        **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed"), "accelerate_config of lib.engines.launch"),
        **dict.fromkeys(("use_cpu", "local_rank"), "the machine"),
        "data_seed": "seed",
        **dict.fromkeys(("bf16", "fp16"), "precision"),
        **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps"), "micro_batch_size"),
        **dict.fromkeys(("save_steps", "save_strategy", "save_only_model"), "save_every"),
    }

    base: str
    weights: Literal["full", "lora", "qlora"] = "full"
    lora_rank: Count = 8  # alpha is twice as much
    learning_rate: Annotated[float, Range(above=0, high=1)] = 1e-6
    micro_batch_size: Count = 4  # rows that a process holds at once
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    gradient_checkpointing: bool = True
    save_every: Count = 25
    seed: Annotated[int, Range(0)] = 0
    trainer: Mapping[str, Any] = field(default_factory=dict)

    def __new__(cls, *_: Any, **given: Any) -> Self:
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in given if name not in known]:
            raise ValueError(
                f"{cls.__name__} has no field {unknown[0]!r}{close(unknown[0], known) or '.'} There are "
                f"{', '.join(known)}; options of {cls.arguments.__name__} go into `trainer`"
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_fields(self)
        raise_faults(option_faults(f"{type(self).__name__}.trainer", self, self.trainer))

    @property
    def options(self) -> dict[str, Any]:
        """What fields say to TRL under TRL's own names."""
        return {name: getattr(self, name) for name, by in self.taken.items() if name == by}

    @property
    def dtype(self) -> torch.dtype:
        """The type that a trained policy is loaded in."""
        return getattr(torch, self.precision)

    def as_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)

    @classmethod
    def paper(cls, base: str, **changes: Any) -> Self:
        """As the paper has it: the defaults."""
        return cls(base=base, **changes)


@dataclass(frozen=True, kw_only=True)
class MethodConfig(TrainingConfig):
    """A method of RL: what all of them share, and hooks that do nothing; `advantage` is for it to say.

    A rollout batch is `prompts` questions with `num_generations` responses each, over all processes.
    """

    name: ClassVar[str] = ""  # in `lib.methods.METHODS`
    needs: ClassVar[tuple[str, ...]] = ("prompt", "answer", "kind")  # columns of the rows
    own_loss: ClassVar[bool] = False  # whether `loss` takes the place of TRL's
    shown: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy", "tokens": "tokens/mean"}
    taken: ClassVar[dict[str, str]] = {
        **TrainingConfig.taken,
        **by_name("num_generations", "max_completion_length", "temperature", "epsilon", "beta"),
        **by_name("entropy_coef", "weight_decay", "lr_scheduler_type"),
        **dict.fromkeys(("max_steps", "num_train_epochs"), "batches"),
        "generation_batch_size": "prompts",
        "steps_per_generation": "updates",
        **dict.fromkeys(("eval_strategy", "eval_steps"), "eval_every"),
        "scale_rewards": "the method's advantage",
        **dict.fromkeys(("multi_objective_aggregation", "reward_weights"), "the method's one reward"),
    }

    batches: Count = 171  # rollout batches: T
    prompts: Count = 128
    num_generations: Annotated[int, Range(2)] = 8  # G
    updates: Count = 1  # optimizer steps on each rollout batch
    max_completion_length: Count = 4096
    temperature: Annotated[float, Range(above=0, high=2)] = 1.0
    epsilon: Annotated[float, Range(0, below=1)] = 0.2
    beta: Annotated[float, Range(0)] = 0.0
    kl: Literal["k3", "k3_clamped"] = "k3"  # what `beta` multiplies; clamped as in ARM's code
    entropy_coef: Annotated[float, Range(0)] = 0.0
    normaliser: Literal["batch", "micro_batch", "group", "response"] = "batch"  # whose tokens a mean is over
    weight_decay: Share = 0.0
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    cooldown: Share = 0.0  # last share of the updates, in which a constant rate falls to 0
    eval_every: Annotated[int, Range(0)] = 0  # rollout batches, as `save_every`; 0: never
    reading: Literal["formats", "thinking"] = "formats"  # how a response is read: `lib.methods.readings`
    rules: Rules = "strict"  # what counts as right in a tagged format
    thinking_start: str = "Okay"  # the usual first token of a thought

    def __post_init__(self) -> None:
        super().__post_init__()
        raise_faults(f"{type(self).__name__}: {fault}" for fault in self.conflicts())

    def conflicts(self) -> typing.Iterator[str]:
        """What does not go together, a sentence each."""
        responses, share = self.prompts * self.num_generations, self.micro_batch_size * self.updates
        if responses % share:
            parts = f"updates = {self.updates} in micro-batches of micro_batch_size = {self.micro_batch_size}"
            made = f"prompts * num_generations = {responses} responses"
            yield f"{made} cannot be shared by {parts}: make it a multiple of {share}"
        if self.cooldown and (self.lr_scheduler_type != "constant" or "lr_scheduler_kwargs" in self.trainer):
            yield "cooldown needs lr_scheduler_type 'constant', and no lr_scheduler_kwargs in trainer"
        if "loss_type" in self.trainer and self.normaliser != "batch":
            yield f"loss_type in trainer: the loss is that of {self.name}, by normaliser {self.normaliser!r}"
        for name in ("reading", "rules", "normaliser", "beta", "kl", "entropy_coef") if self.own_loss else ():
            if (default := getattr(type(self), name)) != getattr(self, name):
                yield f"{name} must be {default!r}, got {getattr(self, name)!r}: {self.name} does not read it"
        starts = self.start(Progress(0, self.batches), self.num_generations, random.Random(0))
        if self.trainer.get("use_vllm"):
            yield from vllm_conflicts(self, forced=set(starts) != {None})

    def as_json(self) -> dict[str, Any]:
        """The method's name and its fields, for `lib.methods.from_json`."""
        return {"method": self.name} | super().as_json()

    @classmethod
    def cpu(cls, base: str, **changes: Any) -> Self:
        """For the dial world."""
        return cls(base=base, **DIAL | changes)

    # ---- hooks ----

    def rewrite(self, row: dict[str, Any], rng: random.Random, progress: Progress) -> dict[str, Any]:
        """The row to train on; `rng` is the same for all responses to a question."""
        return row

    def start(self, progress: Progress, size: int, rng: random.Random) -> list[str | None]:
        """The mode that each of a question's `size` responses must open with; None lets it choose."""
        return [None] * size

    def cap(self, mode: str | None, progress: Progress) -> int:
        """The most tokens of a response in this mode; a free response is cut before it is scored."""
        return self.max_completion_length

    def shape_group(self, group: Group, progress: Progress) -> torch.Tensor:
        """The reward, (B, G), from what each group holds."""
        return group.ok

    def shape_batch(self, rewards: torch.Tensor, group: Group) -> torch.Tensor:
        """The reward, (B, G), from what the whole batch holds."""
        return rewards

    def advantage(self, rewards: torch.Tensor, group: Group, progress: Progress) -> torch.Tensor:
        """(B, G) -> (B, G, 2): of a response's first token, and of each later one."""
        raise NotImplementedError

    def token_weights(self, group: Group, progress: Progress) -> torch.Tensor | None:
        """(B, G, 2), not negative: the weight of the first token and of each later one in the loss, a sum.

        Over the batch they sum to 1 where the loss is to be a mean. None leaves it to `normaliser`.
        """
        if self.normaliser != "group":
            return None
        tokens = group.length.sum(1, keepdim=True).expand_as(group.length)
        return every_token(1 / (len(tokens) * tokens))

    def loss(
        self, log_probs: torch.Tensor, old_log_probs: torch.Tensor, batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """Where `own_loss`: the loss of a micro-batch, (N, T), and metrics as sums with their counts."""
        raise NotImplementedError


def every_token(values: torch.Tensor) -> torch.Tensor:
    """The same for the first token and for the rest: (B, G) -> (B, G, 2)."""
    return values.unsqueeze(-1).expand(*values.shape, 2)
