"""What every trainer of the course does beside training: log, show progress, stop safely."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Arguments

from lib.runs import Run

LINES = 10  # that a training says


class NothingLeftError(Exception):
    """The checkpoint that was loaded is the last one: nothing is left to train."""


class RunCallback(TrainerCallback):
    """Logs to the run folder, says a line now and then, stops early if asked, and saves when it is to end.

    After Ctrl-C, SIGTERM or SIGHUP the rollout batch in progress, or step, is finished and a checkpoint is
    written; `stopped_by` is then the signal, and the same call resumes from there. One process that heard it
    stops them all. So does the end of the job, if another batch might not end before: see `end_of_job`.
    """

    def __init__(
        self,
        run: Run | None = None,
        *,
        say: Callable[[str], None] | None = None,
        stop_at: int | None = None,
        shown: Mapping[str, str] | None = None,  # label: name of the metric in the logs
    ):
        self.run, self.say, self.stop_at, self.shown = run, say, stop_at, shown or {"loss": "loss"}
        self.stopped_by, self.ends = 0, end_of_job()
        self._begun = self._last_end = time.monotonic()
        self._longest = 0.0  # seconds of a step

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if state.global_step >= self.last(state):
            raise NothingLeftError
        self._begun = self._last_end = time.monotonic()

    def on_epoch_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        """Resumed, several processes would take the rows in the first epoch's order; so would TRL's RL."""
        batches = kwargs["train_dataloader"].batch_sampler
        while hasattr(batches, "batch_sampler"):
            batches = batches.batch_sampler
        if hasattr(batches.sampler, "set_epoch"):
            batches.sampler.set_epoch(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        now, updates = time.monotonic(), updates_per_batch(args)
        self._longest, self._last_end = max(self._longest, now - self._last_end), now
        soon = time.time() + (updates + 0.5) * self._longest > self.ends
        if soon and not self.stopped_by and state.global_step < self.last(state):
            self.stopped_by = signal.SIGTERM
        if args.world_size > 1:  # the signal reaches processes at different steps, and saving needs them all
            number = torch.tensor(self.stopped_by, dtype=torch.int32, device=args.device)
            torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
            self.stopped_by = int(number)
        if self.stopped_by and state.global_step % updates == 0:
            control.should_save = control.should_training_stop = True
        if state.global_step >= self.last(state):
            control.should_log = control.should_training_stop = True

    def last(self, state: State) -> int:
        """The step after which to stop."""
        return min(self.stop_at or state.max_steps, state.max_steps)

    def on_log(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        logs = kwargs.get("logs")
        if not state.is_world_process_zero or not logs or not {"loss", "eval_loss"} & logs.keys():
            return
        seconds = time.monotonic() - self._begun
        if self.run is not None:
            self.run.log(state.global_step, {**logs, "seconds": round(seconds, 2)})
        last = self.last(state)
        every = max(1, last // LINES // args.logging_steps) * args.logging_steps
        due = "loss" in logs and (state.global_step % every == 0 or state.global_step >= last)
        if self.say is not None and due:
            values = {label: float(logs[name]) for label, name in self.shown.items() if name in logs}
            found = "   ".join(f"{label} {value:.3f}" for label, value in values.items())
            self.say(f"step {state.global_step:>5} of {last}   {found}   {seconds:4.0f} s")

    def hear(self, number: int, frame: FrameType | None) -> None:
        """A signal, which ends training after the step."""
        self.stopped_by = number


def end_of_job() -> float:
    """When the scheduler will end this job, in seconds since 1970: JOB_END_TIME, or what Slurm sets."""
    given = os.environ.get("JOB_END_TIME") or os.environ.get("SLURM_JOB_END_TIME") or "inf"
    try:
        return float(given)
    except ValueError:
        raise ValueError(f"JOB_END_TIME must be in seconds since 1970 (date +%s), got {given!r}") from None


def updates_per_batch(args: Arguments) -> int:
    """Steps on one rollout batch, which no checkpoint holds: to resume within one is to draw it anew."""
    rollouts = getattr(args, "steps_per_generation", None) or args.gradient_accumulation_steps
    return getattr(args, "num_iterations", 1) * rollouts // args.gradient_accumulation_steps
