"""What to change where a notebook does not fit: the first parameter that is enough, or several."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lib.studies.planner.formulas import FREE
from lib.studies.planner.machines import Machine
from lib.studies.planner.models import PlanError, find_model, smaller
from lib.studies.planner.stages import stages
from lib.studies.planner.training import Stage, Values

# In this order: what costs time, what changes the training, what changes the question.
ORDER = (
    *("MICRO_BATCH_SIZE", "PARALLEL", "TRAINER", "WEIGHTS", "MAX_NEW_TOKENS"),
    *("TEACHER_MODEL", "SERVER_MODEL", "MODEL"),
)


def change(notebook: str, values: Values, machine: Machine) -> str:
    """Words that say which parameter to change and to what, so that the notebook fits."""
    given = dict(values)
    for name in ORDER:
        for value in _others(name, given, machine):
            if _fits(notebook, given | {name: value}, machine):
                made = values[name] if name == "MODEL" and str(values[name]).startswith("runs/") else ""
                return f"It fits with {name}: {value}{f', from which {made} is made' if made else ''}."
    taken: dict[str, Any] = {}
    for name in ORDER:
        for value in _others(name, given | taken, machine):
            taken[name] = value
            if _fits(notebook, given | taken, machine):
                return f"It fits with {', '.join(f'{n}: {v}' for n, v in taken.items())}."
    return "No value of its parameters is enough: take a larger machine."


def _others(name: str, values: Values, machine: Machine) -> Iterator[Any]:
    """Values that take less memory than the one that is set, the nearest first."""
    now = values.get(name)
    if now is None:
        return
    if name in ("MICRO_BATCH_SIZE", "MAX_NEW_TOKENS"):
        least = 1 if name == "MICRO_BATCH_SIZE" else 1024
        while (now := now // 2) >= least:
            yield now
    elif name == "PARALLEL":
        if values.get("NUM_PROCESSES", 1) > 1 and now in ("", "ddp") and values["WEIGHTS"] != "qlora":
            yield "fsdp2"
    elif name == "TRAINER":
        share = "vllm_gpu_memory_utilization"
        if now.get("use_vllm") and now.get(share, 1) > 0.3:
            yield {**now, share: 0.3}
    elif name == "WEIGHTS":
        kinds = ["full", "lora", "qlora"][
            : 2 if values.get("PARALLEL") or values["TRAINER"].get("use_vllm") else 3
        ]
        yield from kinds[kinds.index(now) + 1 :] if now in kinds else ()
    elif name in ("MODEL", "TEACHER_MODEL", "SERVER_MODEL") and now:
        model = find_model(now, name)
        yield from smaller(model) if model else ()


def _fits(notebook: str, values: Values, machine: Machine) -> bool:
    try:
        found = stages(notebook, values, machine)
    except PlanError:
        return False
    return all(fits(one, machine) and not one.fault for one in found)


def fits(stage: Stage, machine: Machine) -> bool:
    """Whether a share of the device stays free, beside what other processes hold."""
    return stage.gib <= (1 - FREE) * (machine.memory - (0 if stage.shared else machine.taken))
