"""What every trainer of the course does beside training: log, show progress, stop safely."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from types import FrameType, MappingProxyType

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lib.runs import Run


class RunCallback(TrainerCallback):
    """Logs to the run folder, says a line now and then, stops early if asked, and saves on Ctrl-C.

    After Ctrl-C the step in progress is finished and a checkpoint is written; `interrupted` is then True
    and the same call resumes from there. One of several processes that heard it stops them all.
    """

    def __init__(
        self,
        run: Run | None = None,
        *,
        say: Callable[[str], None] | None = None,
        lines: int = 10,
        stop_at: int | None = None,
        shown: Mapping[str, str] = MappingProxyType(
            {"loss": "loss"}
        ),  # label: name of the metric in the logs
    ):
        self.run, self.say, self.lines, self.stop_at, self.shown = run, say, lines, stop_at, shown
        self.interrupted = False
        self._begun = time.monotonic()
        self._old_handler = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._begun = time.monotonic()
        try:
            self._old_handler = signal.signal(signal.SIGINT, self._interrupt)
        except ValueError:  # not in the main thread: Ctrl-C then ends the process as usual
            self._old_handler = None

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self._old_handler is not None:
            signal.signal(signal.SIGINT, self._old_handler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if args.world_size > 1:  # the signal reaches processes at different steps, and saving needs them all
            heard = torch.tensor(self.interrupted, dtype=torch.int32, device=args.device)
            torch.distributed.all_reduce(heard, op=torch.distributed.ReduceOp.MAX)
            self.interrupted = bool(heard)
        if self.interrupted:
            control.should_save = control.should_training_stop = True
        if self.stop_at is not None and state.global_step >= self.stop_at:
            control.should_log = control.should_training_stop = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs=None, **kwargs
    ):
        if not state.is_world_process_zero or not logs or not {"loss", "eval_loss"} & logs.keys():
            return
        seconds = time.monotonic() - self._begun
        if self.run is not None:
            self.run.log(state.global_step, logs | {"seconds": round(seconds, 2)})
        last = min(self.stop_at or state.max_steps, state.max_steps)
        every = max(1, last // self.lines // args.logging_steps) * args.logging_steps
        due = "loss" in logs and (state.global_step % every == 0 or state.global_step >= last)
        if self.say is not None and due:
            found = "   ".join(
                f"{label} {float(logs[name]):.3f}" for label, name in self.shown.items() if name in logs
            )
            self.say(f"step {state.global_step:>5} of {last}   {found}   {seconds:4.0f} s")

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
