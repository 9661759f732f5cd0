"""How long it takes: decoding by bandwidth, training by arithmetic. Estimates, with what they assume."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from lib.studies.planner.formulas import BATCH_ROWS, decode_rows
from lib.studies.planner.machines import Machine
from lib.studies.planner.models import Model

WRITTEN = 0.25  # mean length of a response, as a share of its cap
LAYER_MS = {"transformers": 1.0, "vllm": 0.1}  # what launching a layer's kernels takes, whatever the batch
UTILISATION = 0.3  # of the peak FLOP/s, in training
ASSUMED = (
    f"responses end at {WRITTEN:.0%} of their cap on average, and one in each batch reaches it; a step of "
    f"decoding takes {LAYER_MS['transformers']} ms a layer with transformers, {LAYER_MS['vllm']} with vLLM, "
    f"and reads weights, keys and values once; training reaches {UTILISATION:.0%} of the peak"
)


@dataclass(frozen=True)
class Cost:
    """Hours of something, and the arithmetic in words."""

    name: str
    hours: float
    formula: str

    def __str__(self) -> str:
        return f"{self.name:<13} {self.hours:6.1f} h   = {self.formula}"


def decoding(
    model: Model,
    machine: Machine,
    *,
    responses: int,
    prompt: int,
    cap: int,
    width: float = 2,
    devices: int = 1,
    rounds: int = 1,
    room: float | None = None,
) -> Cost:
    """Hours for `rounds` times `responses` on `devices`, weights and states of `width` bytes a number.

    Our loop runs batch after batch; vLLM, with `room` bytes for keys and values, fills places that get free.
    """
    mine, mean = ceil(responses / devices), WRITTEN * cap
    token = model.kv(2 if room else ceil(width))
    if room:
        rows = max(1, min(mine, BATCH_ROWS, int(room / (token * (prompt + mean)))))
        steps = mine * mean / rows + cap
    else:
        rows = decode_rows(mine, prompt + cap)
        steps = ceil(mine / rows) * cap
    read = width * model.parameters + token * rows * (prompt + mean) / 2
    engine = "vllm" if room else "transformers"
    step_ms = LAYER_MS[engine] * model.layers + read / machine.bandwidth / 1e6
    formula = (
        f"{rounds} x {steps:,.0f} steps x ({LAYER_MS[engine]} ms x {model.layers} + {read / 1e9:.1f} GB / "
    )
    formula += f"{machine.bandwidth} GB/s), {rows} rows at once, {engine}"
    return Cost("decoding", rounds * steps * step_ms / 3.6e6, formula)


def training(model: Model, machine: Machine, *, tokens: float, passes: int, devices: int) -> Cost:
    """Hours for `tokens`, each with `passes` x 2 FLOP a weight: 3 forward and backward, 1 again."""
    flops = 2 * passes * model.parameters * tokens
    speed = UTILISATION * machine.tflops * 1e12 * devices
    formula = f"{2 * passes} x {model.parameters / 1e9:.2f} G x {tokens / 1e6:,.0f} M tokens / ({devices} x "
    formula += f"{UTILISATION} x {machine.tflops} TFLOP/s)"
    return Cost("training", flops / speed / 3600, formula)
