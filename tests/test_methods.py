"""Every method alike: its fields, its hooks on one toy group, its presets, and what the one trainer does."""

import random
import subprocess
import sys
import typing
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args, get_origin

import pytest
import torch
from faults.parameters import BAD_OPTIONS
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from lib.checked import Range
from lib.dial import dial_tasks, dial_tokenizer, new_dial_model
from lib.methods import METHODS, find_method, from_json
from lib.methods.base import Group, Progress
from lib.methods.fit import build, fit
from lib.methods.grpo import GRPO, group_relative_advantages
from lib.methods.sft import SFTConfig
from lib.methods.training import load_trained
from lib.policies.save import save_policy
from lib.runs import Run, start_run
from lib.tasks import task_rows
from lib.thinking import NOTHINKING, THINKING, thinking_tasks

CONFIGS = [*METHODS.values(), SFTConfig]
PRESETS = [(n, p) for n, method in METHODS.items() for p in ("paper", "code", "cpu") if hasattr(method, p)]
BEGUN = Progress(0, 10)


def preset(name, kind, **changes):
    return getattr(METHODS[name], kind)(**{"base": "dial-sft"} | changes)


# ---- fields ------------------------------------------------------------------------------------


def refused_values(annotation):
    """Values that an annotation does not allow: of another type, and beyond each end of its range."""
    yield object()
    origin = get_origin(annotation)
    if origin is Literal:
        yield from ("nonsense", get_args(annotation)[0].upper() + "?")
    elif annotation in (int, float, bool) or origin is typing.Annotated:
        yield from ("3", None, float("nan"))
    if origin is typing.Annotated:
        for rule in annotation.__metadata__:
            if isinstance(rule, Range):
                ends = (rule.low, -1), (rule.high, 1), (rule.above, 0), (rule.below, 0)
                yield from (end + step for end, step in ends if end is not None)


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_every_field_refuses_what_it_does_not_allow(kind):
    sound = kind.cpu("dial-sft")
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        for value in refused_values(hints[field.name]):
            with pytest.raises(ValueError, match=rf"{kind.__name__}\.{field.name} takes .*, got"):
                replace(sound, **{field.name: value})
        with pytest.raises(ValueError, match=f"has no field '{field.name}_'; did you mean '{field.name}'"):
            kind.cpu("dial-sft", **{f"{field.name}_": 1})


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_options_of_trl_are_checked_by_name_type_and_owner(kind):
    assert kind.cpu("dial-sft", trainer={"max_grad_norm": 0.5}).trainer == {"max_grad_norm": 0.5}
    for name, setter in kind.taken.items():
        with pytest.raises(ValueError, match=rf"trainer: '{name}' is set by {setter}"):
            kind.cpu("dial-sft", trainer={name: 1})
    with pytest.raises(ValueError, match="no option 'max_grad_nrom'; did you mean 'max_grad_norm'"):
        kind.cpu("dial-sft", trainer={"max_grad_nrom": 1.0})
    with pytest.raises(ValueError, match=r"trainer\['max_grad_norm'\] takes a finite number, got 'x'"):
        kind.cpu("dial-sft", trainer={"max_grad_norm": "x"})


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_what_trl_would_take_in_silence_or_refuse_at_work_is_refused_at_once(kind, options):
    """num_iterations 0 trained TRL's three epochs; a misspelt optimizer failed when all had been sampled."""
    name = str(next(iter(options)))
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.trainer.*{name}"):
        kind.cpu("dial-sft", trainer=options)


def test_checking_options_chooses_no_device():
    GRPO.cpu(trainer={"max_grad_norm": 0.5, "use_vllm": True, "top_k": 50, "num_iterations": 2})
    code = "from lib.methods.grpo import GRPO; GRPO.cpu(trainer={'top_k': 5}); "
    code += "from accelerate.state import PartialState; assert not PartialState._shared_state"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_does_not_go_together_is_refused():
    for changes, message in (
        ({"micro_batch_size": 5}, "make it a multiple of 5"),
        ({"lr_scheduler_type": "linear"}, "cooldown needs lr_scheduler_type 'constant'"),
        ({"normaliser": "group", "trainer": {"loss_type": "cispo"}}, "loss_type in trainer"),
    ):
        with pytest.raises(ValueError, match=message):
            GRPO.cpu(**changes)
    with pytest.raises(ValueError, match="shortest must be at most longest"):
        METHODS["l1_exact"].cpu(shortest=500)
    for tag in ("<think>", "</think>"):
        with pytest.raises(ValueError, match="thinking_start must be a word of thinking, not <think> or </"):
            METHODS["adaptthink"].cpu(thinking_start=tag)
    with pytest.raises(ValueError, match=r"max_nothinking_length must be at most .* = 2048, got 4096"):
        METHODS["adaptthink"].paper(max_completion_length=2048)


def test_a_misspelt_method_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"'adagrpo'; did you mean 'ada_grpo'.*adaptthink.*l1_max"):
        find_method("adagrpo")


@pytest.mark.parametrize(("name", "kind"), PRESETS)
def test_a_preset_survives_json(name, kind):
    config = preset(name, kind)
    assert from_json(config.as_json()) == config


# ---- golden values on one group: N ok, N bad, N bad, N ok, T 40 ok, T 40 ok, T 44 ok, T 60 bad -------------

TOY = Group(
    ok=torch.tensor([[1.0, 0, 0, 1, 1, 1, 1, 0]]),
    length=torch.tensor([[5, 5, 5, 5, 40, 40, 44, 60]]),
    mode=[[NOTHINKING] * 4 + [THINKING] * 4],
    reference=torch.tensor([0.75]),
    budget=torch.tensor([40.0]),
)
PLACES = [0, 1, 4, 6, 7]  # N ok, N bad, T40 ok, T44 ok, T60 bad


@pytest.mark.parametrize(
    ("name", "changes", "rewards", "advantages"),
    [
        ("grpo", {}, [1, 0, 1, 1, 0], [0.7246, -1.2076, 0.7246, 0.7246, -1.2076]),
        ("adaptthink", {}, [1, 0, 1, 1, 0], [0.30, -0.70, 0.25, 0.25, -0.75]),
        ("l1_exact", {}, [0.65, -0.35, 1, 0.96, -0.2], None),
        ("l1_max", {}, [0.85, 0, 0.5, 0.46, 0], None),
        ("l1_max", {"slope": "code"}, [0.675, 0, 0.5, 0.48, 0], None),
        (
            "arora_zanette",
            {"alpha": 0.2},
            [0.9544, 0, 0.8646, 0.8553, 0],
            [0.4489, -0.6419, 0.3462, 0.3355, -0.6419],
        ),
    ],
)
def test_golden_values(name, changes, rewards, advantages):
    method = METHODS[name].cpu(**changes)
    found = method.shape_batch(method.shape_group(TOY, BEGUN), TOY)
    assert found[0, PLACES].tolist() == pytest.approx(rewards, abs=1e-4)
    first, rest = method.advantage(found, TOY, BEGUN).unbind(-1)
    assert torch.equal(first, rest)
    if advantages:
        assert first[0, PLACES].tolist() == pytest.approx(advantages, abs=2e-4)


def test_l1_by_hand():
    """n_gold 100, n 140: .988 exact, .488 by the paper's L1-Max, .494 by the code's."""
    group = replace(TOY, ok=torch.ones(1, 1), length=torch.tensor([[140]]), budget=torch.tensor([100.0]))
    found = [
        METHODS[name].paper(**changes).shape_group(group, BEGUN).item()
        for name, changes in (("l1_exact", {}), ("l1_max", {}), ("l1_max", {"slope": "code"}))
    ]
    assert found == pytest.approx([0.988, 0.488, 0.494], abs=1e-6)


def test_l1_asks_for_a_budget_in_the_question():
    (row,) = task_rows(dial_tasks(1, seed=0))
    method = METHODS["l1_exact"].cpu()
    asked = method.rewrite(row, random.Random(1), BEGUN)
    assert asked == method.rewrite(row, random.Random(1), BEGUN) and 8 <= asked["budget"] <= 120
    assert f"{row['question']} Think for {asked['budget']} tokens." in asked["prompt"]
    assert method.rewrite(row | {"budget": 33}, random.Random(1), BEGUN)["budget"] == 33


def test_a_single_right_answer_costs_half_of_alpha():
    ok, length = torch.tensor([[1.0, 0, 0]]), torch.tensor([[9, 9, 9]])
    group = Group(ok, length, [[THINKING] * 3])
    found = METHODS["arora_zanette"].cpu(alpha=0.2).shape_group(group, BEGUN)
    assert found[0].tolist() == pytest.approx([0.9, 0, 0])


# ---- presets -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    save_policy(new_dial_model(seed=0, layers=2, width=64), dial_tokenizer(), folder)
    return str(folder)


def rows_for(config, count=6):
    tasks = dial_tasks(count, split="train", seed=0, depths=[1, 2])
    thinks = config.reading == "thinking"
    rows = task_rows(thinking_tasks(tasks, dial_tokenizer()) if thinks else tasks)
    return [row | {"reference_accuracy": 0.5} for row in rows]


def tiny(name, kind, base):
    """A preset with its sizes cut and nothing else changed."""
    config = preset(name, kind, base=base)
    small = {"batches": 3, "prompts": 2, "num_generations": 4, "max_completion_length": 12}
    small |= {"micro_batch_size": 8 // config.updates, "thinking_start": "Okay", "save_every": 3}
    small |= {"max_nothinking_length": 6} if name == "adaptthink" else {}
    return getattr(METHODS[name], kind)(**{"base": base} | small)


def parity(completion_ids, **others):
    """No answer of a random model is right: reward what can differ."""
    return [float(ids[-1] % 2) for ids in completion_ids]


@pytest.mark.parametrize(("name", "kind"), PRESETS)
def test_every_preset_of_every_method_takes_three_steps(base, tmp_path, name, kind):
    config = tiny(name, kind, base)
    run, rows = Run(tmp_path, {}), rows_for(config)
    _, _, facts = fit(config, rows, run, validation_rows=rows[:2], stop_at=3, reward=parity)
    assert facts["steps"] == 3 and facts["config"]["method"] == name
    logged = [row for row in run.metrics() if "loss" in row]
    assert [row["step"] for row in logged] == [1, 2, 3] and any(row["grad_norm"] for row in logged)
    assert {"accuracy", "truncated", "easy/tokens/mean"} <= logged[0].keys()


# ---- the trainer -------------------------------------------------------------------------------


def test_a_finished_run_is_loaded(base, tmp_path):
    config, run = tiny("grpo", "cpu", base), Run(tmp_path, {})
    model, _, facts = fit(config, rows_for(config), run)
    again, _, found = fit(config, rows_for(config), run)
    assert found == facts
    for policy in (again, load_trained(config, run)[0]):
        for name, weight in policy.state_dict().items():
            assert torch.equal(weight.cpu(), model.state_dict()[name].cpu())


@dataclass(frozen=True, kw_only=True)
class FirstTokenFirst(GRPO):
    """The first token counts in full, the others by 1 / length; the group's mean for the first alone."""

    def advantage(self, rewards, group, progress):
        first = group_relative_advantages(rewards)
        return torch.stack([first, 2 * rewards - 1], dim=-1)

    def token_weights(self, group, progress):
        return torch.stack([torch.ones_like(group.ok), 1 / group.length], dim=-1) / group.ok.numel()


def test_tokens_have_their_own_advantage_and_weight_whatever_the_micro_batch(base, tmp_path):
    sizes = {
        "batches": 1,
        "prompts": 2,
        "num_generations": 4,
        "max_completion_length": 12,
    }
    gradients = []
    for size in (8, 2):
        config = FirstTokenFirst.cpu(base, **sizes, micro_batch_size=size, learning_rate=1e-9)
        trainer = build(config, rows_for(config), Run(tmp_path / str(size), {}), reward=parity)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        inputs = next(iter(trainer.get_train_dataloader()))
        batch = trainer._generate_and_score_completions(inputs)
        for start in range(0, 8, size):
            micro = {k: v[start : start + size] if v.dim() else v for k, v in batch.items()}
            trainer._compute_loss(trainer.model, micro).backward()
        gradients.append([p.grad.clone() for p in trainer.model.parameters()])
    for whole, split in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, split, rtol=1e-4, atol=1e-7)
    mask = batch["completion_mask"]
    pairs = zip(batch["completion_ids"], mask.bool(), strict=True)
    ok = torch.tensor(parity([ids[real].tolist() for ids, real in pairs]))
    first = group_relative_advantages(ok.view(2, 4)).flatten()
    expected = (2 * ok - 1)[:, None] / mask.sum(1, keepdim=True) / 8 * mask
    expected[:, 0] = first / 8
    constant = 8 * 12  # rollouts of a batch times the longest length: what the loss divides by
    torch.testing.assert_close(batch["advantages"] * mask, expected * constant)


@dataclass(frozen=True, kw_only=True)
class HalfDirect(GRPO):
    """Half of a group must be direct; long CoT is cut early, and every prompt asks politely."""

    def rewrite(self, row, rng, progress):
        return row | {"prompt": row["prompt"].replace("Human:", "Human: +1", 1)}

    def start(self, progress, size, rng):
        return ["direct"] * (size // 2) + [None] * (size - size // 2)

    def cap(self, mode, progress):
        return {"direct": 6, None: 9}.get(mode, 12)


def test_hooks_act_in_training_and_are_off_in_evaluation(base, tmp_path):
    sizes = {"batches": 1, "prompts": 2, "num_generations": 4, "max_completion_length": 12}
    config = HalfDirect.cpu(base, **sizes, micro_batch_size=8)
    trainer = build(config, rows_for(config), Run(tmp_path, {}))
    inputs = next(iter(trainer.get_train_dataloader()))
    tag = dial_tokenizer()("<ANSWER>\n", add_special_tokens=False).input_ids
    trainer.model.train()
    batch = trainer._generate_and_score_completions(inputs)
    opens = [ids[: len(tag)].tolist() == tag for ids in batch["completion_ids"]]
    assert opens[:2] == opens[4:6] == [True, True]
    lengths = batch["completion_mask"].sum(1).tolist()
    modes = [mode for group in trainer._group.mode for mode in group]
    caps = [config.cap(mode, BEGUN) for mode in modes]
    assert all(length <= cap for length, cap in zip(lengths, caps, strict=True))
    assert {6, 9} <= set(lengths) and modes.count("direct") >= 4 and None in modes
    prompts = trainer.processing_class.batch_decode(batch["prompt_ids"])
    assert all("Human: +1" in prompt for prompt in prompts)
    trainer.model.eval()
    batch = trainer._generate_and_score_completions(inputs)
    assert batch["completion_mask"].sum(1).max() == 12
    assert not any("Human: +1" in p for p in trainer.processing_class.batch_decode(batch["prompt_ids"]))


def test_a_tracker_that_is_not_installed_is_refused_and_one_that_is_gets_the_run_s_name(
    base, tmp_path, monkeypatch
):
    """A package that does nothing stands for a tracker: what it is told is what our code passes on."""
    with pytest.raises(ValueError, match=r"report_to='wandbb': there is no such package here; did you mean"):
        replace(tiny("grpo", "cpu", base), trainer={"report_to": "wandbb"})
    (tmp_path / "mytracker").mkdir()
    (tmp_path / "mytracker" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    told = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            told.append((args.project, args.run_name, "accuracy" in logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "mytracker", Tracker)
    config = replace(tiny("grpo", "cpu", base), trainer={"report_to": "mytracker"})
    fit(config, rows_for(config), start_run("03_x", "cpu", {}))
    assert told[0] == ("adaptive-reasoning", "cpu/03_x", True)
