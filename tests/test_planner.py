"""The planner: its closed forms against torch's trackers, its refusals, and the profiles that are shipped."""

import subprocess
import sys

import pytest
import torch
import yaml

from lib.course.declared import read_parameters
from lib.course.notebooks import find_notebooks
from lib.methods.ada_grpo import AdaGRPO
from lib.methods.sft import SFTConfig
from lib.runs import ROOT
from lib.studies import planner
from lib.studies.planner import __main__ as command
from lib.studies.planner import formulas as f
from lib.studies.planner import machines, stages, training
from lib.studies.planner.levers import change, fits
from lib.studies.planner.models import PlanError, find_model, smaller
from lib.studies.scale_up import LiveBytes

NOTEBOOKS = {path.stem[:2]: path for path in find_notebooks()}
PROFILES = yaml.safe_load(machines.FILE.read_text())["profiles"]
QWEN = {size: find_model(f"Qwen/Qwen2.5-{size}") for size in ("0.5B", "1.5B", "3B", "7B")}


def planned(number, values, machine):
    """The stages of a notebook by name, with its own values where none are given."""
    own = {p.name: p.default for p in read_parameters(NOTEBOOKS[number])}
    given = own | values
    machine = planner.find_machine(machine)
    found = stages.stages(NOTEBOOKS[number].stem, given, machine)
    tight = [stage.name for stage in found if not fits(stage, machine)]
    return {stage.name: stage for stage in found}, tight, change(NOTEBOOKS[number].stem, given, machine)


# ---- closed forms against traces -----------------------------------------------------------------


@pytest.fixture
def gpu_scoring(monkeypatch):
    """On a GPU TRL scores in place on one bf16 tile; its stand-in here would count float32 copies."""
    import trl.kernels.chunked_logprob as kernels

    for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"):
        monkeypatch.setattr(kernels, name, lambda *given, **named: None)


def qwen(model):
    """An untrained model of these sizes, with TRL's scoring and checkpoints, as its trainers make it."""
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    made = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=model.hidden,
            num_hidden_layers=model.layers,
            num_attention_heads=model.heads,
            num_key_value_heads=model.kv_heads,
            intermediate_size=model.wide,
            vocab_size=model.vocabulary,
            tie_word_embeddings=model.tied,
        )
    )
    made.gradient_checkpointing_enable({"use_reentrant": False})
    add_fused_lm_head(made.train(), outputs=("log_probs", "entropy"))
    return made


def fake_weights(module_tree):
    """From meta to fake tensors: what is tied stays tied, what is frozen is in bf16."""
    twins = {}
    for module in module_tree.modules():
        for name, old in module._parameters.items():
            if old is not None:
                kind = torch.float32 if old.requires_grad else torch.bfloat16
                new = torch.nn.Parameter(torch.empty(old.shape, dtype=kind), old.requires_grad)
                module._parameters[name] = twins.setdefault(old, new)
        module._buffers.update({name: torch.empty(old.shape) for name, old in module._buffers.items()})


def traced(model, trained, rows, tokens, *, scored=True, steps=1):
    """Bytes at the peak of forward and backward, weights included, with tensors that have no data."""
    from peft import LoraConfig, get_peft_model
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("meta"):
        made = qwen(model)
        if trained == "lora":
            made.to(torch.bfloat16).enable_input_require_grads()
            made = get_peft_model(made, LoraConfig(r=16, target_modules="all-linear"))
    with FakeTensorMode():
        fake_weights(made)
        ids = torch.ones(rows, tokens, dtype=torch.long)
        with (live := LiveBytes(*made.parameters(), ids)):
            for _ in range(steps):  # in the second, gradients are there, as GRPO accumulates
                with torch.autocast("cpu", torch.bfloat16, enabled=scored):
                    named = {"fused_lm_head": True} if scored else {}
                    loss = made(input_ids=ids, labels=ids, use_cache=False, **named).loss  # the rest goes
                loss.backward()
    return live.peak


def sharded(model, world, rows, tokens):
    """Bytes at the peak of one of `world` processes under FSDP2, optimiser included, by torch's tracker."""
    import torch.distributed as dist
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            found = made(input_ids=ids, labels=ids, fused_lm_head=True, use_cache=False)
        found.log_probs.float().mean().backward()

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        mesh, policy = dist.init_device_mesh("cpu", (world,)), MixedPrecisionPolicy(*[torch.bfloat16] * 3)
        with FakeTensorMode():
            made = qwen(model)
            for part in (*made.model.layers, made):
                fully_shard(part, mesh=mesh, mp_policy=policy)
            optimiser = torch.optim.AdamW(made.parameters(), foreach=False)
            ids = torch.ones(rows, tokens, dtype=torch.long)
            step()
            optimiser.step()
            with FSDPMemTracker(made, optimiser) as tracker:
                step()
        return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    finally:
        dist.destroy_process_group()


def total(terms, without=()):
    return sum(term.bytes for term in terms if term.kind not in without)


ALONE = f.Sharding("", 1)


@pytest.mark.parametrize(
    ("size", "trained", "rows", "tokens"),
    [
        ("0.5B", "lora", 2, 2048),
        pytest.param("0.5B", "full", 4, 4096, marks=pytest.mark.slow),
        pytest.param("0.5B", "full", 2, 2048, marks=pytest.mark.slow),
        pytest.param("1.5B", "full", 1, 2048, marks=pytest.mark.slow),
        pytest.param("3B", "lora", 4, 4096, marks=pytest.mark.slow),
        pytest.param("3B", "full", 2, 4096, marks=pytest.mark.slow),
    ],
)
def test_a_step_takes_what_the_forms_say(gpu_scoring, size, trained, rows, tokens):
    seen = traced(QWEN[size], trained, rows, tokens, steps=1 + (trained == "full"))
    terms = f.training_states(QWEN[size], trained, 16, ALONE)
    terms += f.activations(QWEN[size], trained, rows, tokens)
    assert total(terms, without=("optimiser",)) == pytest.approx(seen, rel=0.05)  # nothing steps in the trace


@pytest.mark.slow
def test_a_step_with_all_logits_takes_what_the_form_says(gpu_scoring):
    seen = traced(QWEN["0.5B"], "lora", 2, 1024, scored=False)
    terms = f.training_states(QWEN["0.5B"], "lora", 16, ALONE) + f.plain_step(QWEN["0.5B"], 2, 1024)
    assert total(terms, without=("optimiser",)) == pytest.approx(seen, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "world", "rows", "tokens"), [("0.5B", 8, 4, 2048), ("1.5B", 4, 2, 2048), ("3B", 8, 4, 4096)]
)
def test_a_sharded_step_takes_what_the_forms_say(gpu_scoring, size, world, rows, tokens):
    seen = sharded(QWEN[size], world, rows, tokens)
    assert fsdp2(QWEN[size], world, rows, tokens) == pytest.approx(seen, rel=0.05)


def fsdp2(model, world, rows, tokens):
    terms = f.training_states(model, "full", 8, f.Sharding("fsdp2", world))
    return total(terms + f.activations(model, "full", rows, tokens, sharded=True))


@pytest.mark.parametrize(("world", "rows", "gib"), [(8, 4, 25.7), (8, 8, 33.7), (4, 4, 39.9), (32, 4, 15.0)])
def test_seven_billion_under_fsdp2(world, rows, gib):
    """What FSDPMemTracker said once (27 s a number): 4,096 tokens a row."""
    assert fsdp2(QWEN["7B"], world, rows, 4096) / f.GIB == pytest.approx(gib, rel=0.03)


# ---- single terms --------------------------------------------------------------------------------


def test_models_have_the_published_number_of_parameters():
    known = {"0.5B": 0.494e9, "1.5B": 1.544e9, "3B": 3.086e9, "7B": 7.616e9}
    for size, number in known.items():
        assert QWEN[size].parameters == pytest.approx(number, rel=1e-3)
    assert find_model("Qwen/Qwen3-4B").parameters == pytest.approx(4.022e9, rel=1e-3)


def test_a_formula_is_printed_with_its_bytes():
    term = f.kv_cache(QWEN["3B"], 64, 4096, "bfloat16")
    assert term.gib == pytest.approx(9.0)
    assert "KV 2 x 36 layers x 2 heads x 128 x 2 B x 64 rows x 4,096 tokens" in str(term)


def test_all_weights_under_ddp_take_113_gib_a_rank():
    terms = f.training_states(QWEN["7B"], "full", 8, f.Sharding("ddp", 8))
    buckets = QWEN["7B"].parameters * 4
    assert (total(terms) - buckets) / f.GIB == pytest.approx(113.5, abs=0.1)


def test_what_a_batch_of_all_rows_took():
    """The breaks of scale.md that batches by tokens have cured: 256 rows at once, in float32."""
    distill = find_model("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B")
    assert f.kv_cache(QWEN["3B"], 256, 2200, "float32").bytes == pytest.approx(41e9, rel=0.02)
    assert f.kv_cache(QWEN["3B"], 256, 4200, "float32").bytes == pytest.approx(79e9, rel=0.01)
    assert f.kv_cache(distill, 256, 16_500, "float32").bytes == pytest.approx(242e9, rel=0.01)
    now = f.generation(QWEN["3B"], 4096, 512, 4096, "bfloat16")
    assert total(now) < 6 * f.GIB


def test_what_notebook_02_held_when_it_compared_merges():
    """Cured by loading in bf16 and parking: a base in float32, four more copies, 29 GiB beside each other."""
    held = [f.weights(QWEN["3B"], "float32"), f.weights(QWEN["3B"], "nf4", width=4)]
    held += [f.weights(QWEN["3B"], "bfloat16")] * 2 + [f.weights(QWEN["3B"], "nf4")] * 2
    assert total(held) / f.GIB == pytest.approx(29.3, abs=0.2)


def test_constants_are_those_of_the_library():
    sft, arm = SFTConfig.paper("x"), AdaGRPO.paper("x")
    assert (sft.max_length, sft.batch_size, sft.epochs) == tuple(
        stages.SFT[n] for n in ("tokens", "batch", "epochs")
    )
    assert (arm.beta, arm.num_generations) == (stages.KL, stages.GROUP)
    import inspect

    from lib.engines.decode import decode
    from lib.engines.server import ChatServer
    from lib.methods.trimming import ACCELERATOR_PASS_TOKENS
    from lib.methods.with_vllm import OPTIONS

    named = inspect.signature(decode).parameters
    assert (named["batch_size"].default, named["batch_tokens"].default) == (f.BATCH_ROWS, f.BATCH_TOKENS)
    assert ACCELERATOR_PASS_TOKENS == f.PASS_TOKENS
    assert OPTIONS["vllm_gpu_memory_utilization"] == training.VLLM_SHARE
    assert ChatServer.workers == stages.WORKERS


# ---- models and machines -------------------------------------------------------------------------


def test_a_run_leads_to_the_base_of_its_profile():
    assert find_model("runs/multi_gpu/03_ada_grpo/ada_grpo/policy").name.startswith("Qwen/Qwen2.5-7B")
    assert find_model("dial-sft") is None


def test_a_folder_says_its_sizes(tmp_path):
    text = '{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, '
    (tmp_path / "config.json").write_text(text + '"vocab_size": 1000, "num_key_value_heads": 2}')
    model = find_model(str(tmp_path))
    assert (model.head, model.parameters) == (16, 2 * (2 * 64 * 16 * 6 + 3 * 64 * 128) + 2 * 64_000)


def test_what_is_not_known_is_refused_with_what_to_give():
    with pytest.raises(PlanError, match=r"MODEL='some/model'.*config.json.*models.yaml.*Qwen2.5-3B"):
        find_model("some/model")
    with pytest.raises(PlanError, match=r"no machine .24g.*24gb"):
        planner.find_machine("24g")
    with pytest.raises(PlanError, match="names no machine for the profile 'cpu'"):
        planner.machine_of("cpu")


def test_the_machine_at_hand_is_what_torch_sees_times_the_nodes(monkeypatch):
    seen = subprocess.CompletedProcess([], 0, stdout='[8, 60.0, 79.1, "H100"]')
    monkeypatch.setattr(machines.subprocess, "run", lambda *given, **named: seen)
    monkeypatch.setenv("NNODES", "2")
    here = planner.find_machine("here")
    assert (here.count, here.name, here.tflops) == (16, "H100", 989)
    assert here.taken == pytest.approx(18.1)  # beside a context


def test_smaller_ones_are_of_the_same_family():
    assert smaller(QWEN["3B"]) == ["Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-0.5B"]


# ---- refusals: the profiles of the first edition -------------------------------------------------

TEACHER = {"TEACHER_URL": "http://localhost:8000/v1", "TRAIN_QUESTIONS": 10_800}
TEACHER |= {"TEACHER_MODEL": "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"}
ARM_7B = {"MODEL": "Qwen/Qwen2.5-7B", "PRESET": "paper", "WEIGHTS": "full", "BATCHES": 171, "PROMPTS": 1024}
ARM_7B |= {"UPDATES": 4, "MICRO_BATCH_SIZE": 4, "MAX_NEW_TOKENS": 4096, "NUM_PROCESSES": 8}


def test_a_teacher_of_65_gb_does_not_fit_into_24():
    found, tight, cure = planned("01", TEACHER, "24gb")
    assert tight == ["teacher server"] and found["teacher server"].largest.bytes == pytest.approx(
        65.5e9, rel=0.01
    )
    assert cure == "It fits with TEACHER_MODEL: deepseek-ai/DeepSeek-R1-Distill-Qwen-7B."


def test_all_weights_under_ddp_do_not_fit_into_80():
    found, tight, cure = planned("03", ARM_7B | {"TRAINER": {"use_vllm": True}}, "8x80gb")
    assert {"rollouts", "policy update"} <= set(tight)
    assert found["policy update"].gib > 113
    assert cure == "It fits with PARALLEL: fsdp2."


def test_tokens_that_trl_would_hold_at_once_do_not_fit():
    """Sharded, without vLLM, TRL's own loop takes a process's whole share of the batch at once."""
    found, tight, _ = planned("03", ARM_7B | {"PARALLEL": "fsdp2"}, "8x80gb")
    assert "rollouts" in tight and found["rollouts"].largest.kind == "KV cache"


def test_a_share_too_small_for_vllm_is_refused():
    share = {"use_vllm": True, "vllm_gpu_memory_utilization": 0.1}
    found, _, _ = planned("03", ARM_7B | {"PARALLEL": "fsdp2", "TRAINER": share}, "8x80gb")
    assert "vllm_gpu_memory_utilization of 0.2" in found["rollouts"].fault


def test_a_server_left_running_is_named():
    from dataclasses import replace

    busy = replace(planner.find_machine("80gb"), taken=65.0)
    faults = list(planner.Planned.of("single_gpu_80gb", busy).faults())
    assert any("02_qlora_sft, training" in fault and "held by another process" in fault for fault in faults)
    assert not any("teacher server" in fault for fault in faults)


# ---- the shipped profiles and the command --------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_shipped_profiles_fit_their_machine(profile):
    made = planner.Planned.of(profile, planner.find_machine(PROFILES[profile]))
    assert list(made.faults()) == []
    assert {stage.notebook[:2] for stage in made.stages} >= {"01", "02", "03", "04", "05"}


def test_every_real_profile_names_its_machine():
    kept = {"smoke", "dry_run", "accelerate", "jobs"}
    folders = {path.name for path in (ROOT / "notebooks" / "profiles").iterdir() if path.is_dir()}
    assert folders - kept == set(PROFILES)


def test_the_command_prints_terms_and_refuses(capsys):
    assert command.main(["single_gpu", "--machine", "24gb", "--only", "03"]) == 0
    shown = capsys.readouterr().out
    assert "03_ada_grpo, policy update" in shown and "checkpoints 2 B x 36 layers" in shown
    assert command.main(["single_gpu", "--machine", "12gb", "--brief"]) == 1
    assert "It fits with" in capsys.readouterr().err
    assert command.main(["single_gpu", "--set", "MODEL=some/model"]) == 2
    assert "architecture is not known" in capsys.readouterr().err


def test_a_table_for_notebook_08():
    table = planner.table(planner.Planned.of("single_gpu", planner.find_machine("24gb"), only=["03"]))
    assert table.loc[("03_ada_grpo", "rollouts"), "KV cache"] > 1
    assert list(table.columns[-2:]) == ["all", "hours"]


@pytest.mark.slow
def test_the_course_refuses_a_real_profile_without_a_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = [sys.executable, "-m", "lib.course", "--profile", "single_gpu", "--only", "03"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "there is no GPU here" in done.stderr
