"""What each notebook does at a profile, by stages: what it holds on a device, writes to disk, and takes.

A mirror of the notebooks' code as it is: the notebook's own process (the kernel) holds real models in bf16,
one at a time while it measures (`lib.studies.shared.alone`), none while processes of their own train.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlparse

from lib.studies.planner import formulas as f
from lib.studies.planner import hours as h
from lib.studies.planner.machines import Machine
from lib.studies.planner.models import Model, encoder_parameters, find_model
from lib.studies.planner.training import PROMPT, Stage, Training, Values

FORMATS = 4
SFT = {"tokens": 4096, "batch": 128, "epochs": 6, "kept": 2}  # of SFTConfig.paper
FAULTS = {"rows": 32, "tokens": 512}  # of notebook 02
AQUA_RAT = 10_800  # questions that ARM takes for SFT
GROUP, KL = 8, 1e-3  # of notebook 03, and of its paper preset
THOUGHT, WORKERS = 8192, 8  # a teacher's longest reply, and requests at a time
REPLY = 2048  # a frozen LLM's
SERVED = 0.85  # of a device that a server has for weights, keys and values


def stages(notebook: str, values: Values, machine: Machine) -> list[Stage]:
    """The stages of one notebook with these values; none where it needs no device. Raises PlanError."""
    builder = _BUILDERS.get(notebook[:2])
    return [replace(stage, notebook=notebook) for stage in (builder(values, machine) if builder else [])]


# ---- pieces --------------------------------------------------------------------------------------


def _kernel(model: Model, stored: str = "bfloat16") -> f.Term:
    return f.weights(model, stored, kind="kernel")


def _download(model: Model) -> f.Term:
    return f.weights(model, "bfloat16", kind="download")


def _texts(responses: int, cap: int) -> f.Term:
    formula = f"{responses:,} responses x {h.WRITTEN} x {cap:,} tokens x 5 B"
    return f.Term("rollouts", responses * h.WRITTEN * cap * 5, formula)


def _measuring(
    model: Model, responses: int, values: Values, machine: Machine, stored: str = "bfloat16"
) -> list[f.Term]:
    """One model alone on the device answers by our loop, or a copy on each device in a server of vLLM's."""
    cap = values["MAX_NEW_TOKENS"]
    if values["ENGINE"] == "transformers":
        held = [f.margin(1), _kernel(model, stored)]
        free = machine.memory * f.GIB - sum(term.bytes for term in held)
        return held + f.generation(model, responses, PROMPT, cap, "bfloat16", free=free)
    served = [f.weights(model, "bfloat16"), f.kv_cache(model, 1, PROMPT + cap, "bfloat16")]
    reading = f.prompts(model, 1, f.PASS_TOKENS, "bfloat16")
    return [f.margin(machine.devices), f.kernel_context(), *served, reading]


def _asking(model: Model, machine: Machine, responses: int, values: Values, stored: str = "") -> h.Cost:
    shape: dict[str, Any] = {"responses": responses, "prompt": PROMPT, "cap": values["MAX_NEW_TOKENS"]}
    if values["ENGINE"] == "transformers":
        return h.decoding(model, machine, **shape, width=4.5 if stored == "nf4" else 2)
    room = max(1.0, SERVED * machine.memory * f.GIB - 2 * model.parameters)
    return h.decoding(model, machine, **shape, devices=machine.devices, room=room)


def _server(
    model: Model, machine: Machine, requests: int, cap: int, mean: float
) -> tuple[list[f.Term], h.Cost]:
    """A server's terms, in copies over as few devices as hold one, and what its requests cost."""
    over = 1
    while over < machine.devices and 2 * model.parameters / over > 0.8 * machine.memory * f.GIB:
        over *= 2
    rows = -(-WORKERS * over // max(1, machine.devices))
    cache = f.kv_cache(model, rows, PROMPT + cap, "bfloat16")
    parallel = f" / {over} (--tensor-parallel-size {over})" if over > 1 else ""
    cache = f.Term(cache.kind, cache.bytes / over, cache.formula + parallel)
    read = 2 * model.parameters / over
    step_ms = h.LAYER_MS["vllm"] * model.layers + read / machine.bandwidth / 1e6
    steps = requests * mean / WORKERS
    formula = f"{requests:,} requests x {mean:,.0f} tokens / {WORKERS} at a time x {step_ms:.0f} ms"
    terms = [f.margin(over), f.weights(model, "bfloat16", parts=over), cache]
    return terms, h.Cost("server", steps * step_ms / 3.6e6, formula)


def _is_here(url: str) -> bool:
    return bool(url) and urlparse(url).hostname in ("localhost", "127.0.0.1", "::1")


# ---- notebooks -----------------------------------------------------------------------------------


def _data(values: Values, machine: Machine) -> list[Stage]:
    here = _is_here(values["TEACHER_URL"])
    model = find_model(values["TEACHER_MODEL"], "TEACHER_MODEL") if here else None
    if model is None:
        return []
    requests = 2 * values["TRAIN_QUESTIONS"]  # code and long CoT; half as long as thoughts on average
    terms, cost = _server(model, machine, requests, THOUGHT, h.WRITTEN * THOUGHT / 2)
    return [
        Stage("teacher server", terms, [cost], [_download(model), _texts(requests, THOUGHT)], shared=True)
    ]


def _sft(values: Values, machine: Machine) -> list[Stage]:
    model = find_model(values["MODEL"])
    if model is None:
        return []
    t, asked, rows = Training.of(values, model, machine), values["TEST_QUESTIONS"], values["MICRO_BATCH_SIZE"]
    copy, nf4 = _kernel(model), [_kernel(model, "nf4")] * (t.trained == "qlora")
    responses = (2 + FORMATS) * asked  # before and after, and every format
    training = t.states() + t.micro_batch(rows, SFT["tokens"])
    spoiled = f.training_states(model, "lora", t.rank, f.Sharding("", 1))
    spoiled += f.plain_step(model, min(FAULTS["rows"], rows), FAULTS["tokens"])
    return [
        Stage("training", training, [_sft_hours(values, t)], [*t.saved(SFT["kept"]), _download(model)]),
        Stage("merge", [f.margin(1), copy, *nf4], [], [f.weights(model, "bfloat16", kind="merged")]),
        *([Stage("three merges", [f.margin(1), copy, copy, *nf4, *nf4])] if nf4 else []),
        Stage(
            "measuring",
            _measuring(model, asked, values, machine),
            [_asking(model, machine, responses, values)],
            [_texts(responses, values["MAX_NEW_TOKENS"])],
        ),
        Stage("faults", [f.margin(1), *spoiled]),
    ]


def _sft_hours(values: Values, t: Training) -> h.Cost:
    """A response for each question and format, or as many steps as are asked for."""
    steps = values["STEPS"] if values["STEPS"] > 0 else SFT["epochs"] * FORMATS * AQUA_RAT // SFT["batch"]
    tokens = steps * SFT["batch"] * h.WRITTEN * SFT["tokens"]
    passes = 4 if t.trained == "full" else 3
    return h.training(t.model, t.machine, tokens=tokens, passes=passes, devices=t.world)


def _ada_grpo(values: Values, machine: Machine) -> list[Stage]:
    model = find_model(values["MODEL"])
    if model is None:
        return []
    t = Training.of(values, model, machine, beta=KL if values["PRESET"] != "cpu" else 0.0)
    cap, responses, asked = values["MAX_NEW_TOKENS"], GROUP * values["PROMPTS"], values["TEST_QUESTIONS"]
    costs = t.time(2 * values["BATCHES"], responses, cap, updates=values["UPDATES"])
    probed, nf4 = GROUP * values["PROBE_GROUPS"], [_kernel(model, "nf4")] * (t.trained == "qlora")
    return [
        Stage("probe", _measuring(model, probed, values, machine), [_asking(model, machine, probed, values)]),
        *t.stages(responses, values["MICRO_BATCH_SIZE"], cap, costs),
        Stage(
            "merge",
            [f.margin(1), _kernel(model), _kernel(model), *nf4],
            [],
            [*t.saved(1), *[f.weights(model, "bfloat16", kind="policy")] * 2],  # GRPO's and Ada-GRPO's
        ),
        Stage(
            "measuring",
            _measuring(model, asked, values, machine),
            [_asking(model, machine, 3 * asked, values)],
            [_texts(3 * asked + probed, cap)],
        ),
    ]


def _modes(values: Values, machine: Machine) -> list[Stage]:
    model, baseline = find_model(values["MODEL"]), find_model(values["BASELINE"], "BASELINE")
    if model is None or baseline is None:
        return []
    questions = values["TEST_QUESTIONS"]
    # votes, four formats, up to four for consensus, the baseline; then the policy at every budget
    responses = questions * (values["VOTES"] + FORMATS + FORMATS + 1)
    at_budgets = [
        _asking(model, machine, questions, {**values, "MAX_NEW_TOKENS": budget}).hours
        for budget in values["BUDGETS"]
    ]
    forced = h.Cost("budgets", sum(at_budgets), f"the same for caps of {values['BUDGETS']}")
    costs = [_asking(model, machine, responses, values), forced]
    texts = _texts(responses, values["MAX_NEW_TOKENS"])
    return [
        Stage("loading", [f.margin(1), _kernel(model), _kernel(baseline)]),
        Stage("modes", _measuring(model, responses, values, machine), costs, [texts]),
    ]


def _adaptthink(values: Values, machine: Machine) -> list[Stage]:
    model = find_model(values["MODEL"])
    if model is None:
        return []
    t, cap = Training.of(values, model, machine), values["MAX_NEW_TOKENS"]
    stored = "nf4" if t.trained == "qlora" else "bfloat16"
    responses = values["PROMPTS"] * values["NUM_GENERATIONS"]
    costs = t.time(values["BATCHES"], responses, cap)
    watched = values["WATCHED_QUESTIONS"] * t.world  # every process answers all
    pilot = 2 * values["PILOT_QUESTIONS"] * values["PILOT_SAMPLES"]
    reference, asked = values["TRAIN_QUESTIONS"] * values["REFERENCE_SAMPLES"], values["TEST_QUESTIONS"]
    start = _kernel(model, stored)
    return [
        Stage(
            "pilot",
            _measuring(model, pilot // 2, values, machine, stored),
            [_asking(model, machine, pilot, values, stored)],
            [_texts(pilot, cap), _download(model)],
        ),
        Stage(
            "reference samples",
            _measuring(model, 64 * values["REFERENCE_SAMPLES"], values, machine, stored),
            [_asking(model, machine, reference, values, stored)],
        ),
        *t.stages(max(responses, watched), values["MICRO_BATCH_SIZE"], cap, costs),
        Stage("merge", [f.margin(1), start, start, _kernel(model)], [], [_download(model)]),
        Stage(
            "evaluation",
            _measuring(model, asked, values, machine),
            [_asking(model, machine, 3 * asked, values)],
            [_texts(3 * asked, cap)],
        ),
    ]


def _bandit(values: Values, machine: Machine) -> list[Stage]:
    if not values["SERVER_URL"]:
        return []
    named = [(name, values[name]) for name in ("ENCODER", "REWARD_MODEL") if values[name]]
    sizes = [(name, encoder_parameters(value, name)) for name, value in named]
    terms = [f.Term("kernel", 4 * number, f"4 B x {f.count(number)}, {name}") for name, number in sizes]
    disk = [f.Term("download", 4 * number, f"4 B x {f.count(number)}, {name}") for name, number in sizes]
    if terms:
        terms += [f.Term("activations", 0.75 * f.GIB, "about 0.75 for 64 texts of 512 tokens"), f.margin(1)]
    here = _is_here(values["SERVER_URL"])
    model = find_model(values["SERVER_MODEL"], "SERVER_MODEL") if here else None
    if model is None:
        return [Stage("judge", terms, [], disk)] if terms else []
    requests = 3 * 4 * values["REAL_UPDATES"] + 10 * values["REAL_TEST"]  # see lib.studies.real_questions
    served, cost = _server(model, machine, requests, REPLY, REPLY / 4)
    return [Stage("server and judge", [*served, *terms], [cost], [*disk, _download(model)], shared=True)]


_BUILDERS: dict[str, Callable[[Values, Machine], list[Stage]]] = {
    "01": _data,
    "02": _sft,
    "03": _ada_grpo,
    "04": _modes,
    "05": _adaptthink,
    "06": _bandit,
}
