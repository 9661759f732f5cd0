import math
import random
from dataclasses import replace

import pytest
import torch
import trl
from datasets import Dataset
from trl.trainer.utils import selective_log_softmax

from lib.dial import dial_tasks, dial_tokenizer, gold_response, new_dial_model, sample_questions
from lib.engines import launch
from lib.formats import ReasoningFormat
from lib.methods import METHODS
from lib.methods.ada_grpo import AdaGRPO, diversity_scale, format_counts, scale_rewards
from lib.methods.base import Group, Progress
from lib.methods.fit import build, fit, training_arguments
from lib.methods.grpo import group_relative_advantages, grpo_loss
from lib.methods.readings import FormatReading, accuracy_reward
from lib.methods.trimming import TrimmingTrainer
from lib.policies.load import load_policy
from lib.policies.save import save_policy
from lib.runs import Run, start_run
from lib.tasks import task_rows

D, S, C, L = ReasoningFormat
LETTERS = {"D": D, "K": S, "C": C, "L": L, "?": None}
T = 171


def advantages(letters, rewards, step, **options):
    """Ada-GRPO's advantages of one group in double precision, written as in papers: LLLLLCCD, 11110101."""
    rewards = torch.tensor([[float(r) for r in rewards]], dtype=torch.double)
    scaled = scale_rewards(rewards, [[LETTERS[x] for x in letters]], step, T, **options)
    return group_relative_advantages(scaled, eps=1e-6)[0].tolist()


# ---- golden vectors, from the released function ----------------------------------------------


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [8.0, 6.25, 4.4678, 1.0]),
        (2, [4.0, 3.25, 2.4862, 1.0]),
        (4, [2.0, 1.75, 1.4954, 1.0]),
        (8, [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_scale(count, expected):
    counts = torch.tensor([[count]])
    found = [diversity_scale(counts, 8, step, T).item() for step in (0, 57, 86, T)]
    assert found == pytest.approx(expected, abs=1e-4)
    assert {diversity_scale(counts, 8, step, T, decay=False).item() for step in (0, 57, T)} == {8 / count}


@pytest.mark.parametrize(
    ("letters", "rewards", "step", "expected", "tolerance"),
    [
        ("LLLLLCCD", "11110101", 0, [*[-0.2675] * 4, -0.8791, 0.6497, -0.8791, 2.1785], 1e-4),
        ("LLLLLCCD", "11110101", 86, [*[-0.1536] * 4, -1.0567, 0.6741, -1.0567, 2.0537], 1e-4),
        ("LLLLLCCD", "11110101", 170, [*[0.5398] * 4, -1.6202, 0.5402, -1.6202, 0.5410], 1e-4),
        ("LLLLLCCD", "11110101", 171, [*[0.5401] * 4, -1.6202, 0.5401, -1.6202, 0.5401], 1e-4),
        ("LLLLKKCD", "11111111", 0, [*[-0.7638] * 4, 0, 0, 1.5275, 1.5275], 1e-4),
        ("LLLLKKCD", "11111111", 86, [*[-0.7638] * 4, 0, 0, 1.5275, 1.5275], 1e-4),
        ("LLLLKKCD", "11111111", 170, [*[-0.7603] * 4, 0, 0, 1.5206, 1.5206], 1e-4),
        ("LLLLKKCD", "11111111", 171, [0] * 8, 1e-12),
        ("LLLLLLLL", "11111111", 40, [0] * 8, 1e-12),
        ("LLLLKKCD", "00000000", 40, [0] * 8, 1e-12),
        ("LLLLKKCD", "11000000", 0, [1.6202, 1.6202, *[-0.5401] * 6], 1e-4),
        ("LLLLKKCD", "11000000", 100, [1.6202, 1.6202, *[-0.5401] * 6], 1e-4),
    ],
)
def test_golden_advantages(letters, rewards, step, expected, tolerance):
    assert advantages(letters, rewards, step) == pytest.approx(expected, abs=tolerance)


# ---- a slow reference, from the equations --------------------------------------------------


def slow_advantages(formats, rewards, step, total, decay):
    """Equations 2 to 5 of ARM for one group, a response at a time."""
    size, scaled = len(formats), []
    for format, reward in zip(formats, rewards, strict=True):
        count = sum(other == format for other in formats)
        alpha = size / count
        if decay:
            alpha *= count / size + 0.5 * (1 - count / size) * (1 + math.cos(math.pi * step / total))
        scaled.append(alpha * reward)
    mean = sum(scaled) / size
    deviation = math.sqrt(sum((value - mean) ** 2 for value in scaled) / (size - 1))
    return [(value - mean) / (deviation + 1e-6) for value in scaled]


def test_random_groups_agree_with_a_slow_reference():
    draw = random.Random(0)
    for _ in range(200):
        size, groups, total = draw.randint(2, 12), draw.randint(1, 4), draw.randint(1, 300)
        step, decay = draw.randint(0, total), draw.random() < 0.8
        formats = [[draw.choice([D, S, C, L, None]) for _ in range(size)] for _ in range(groups)]
        rewards = [[float(f is not None and draw.random() < 0.6) for f in group] for group in formats]
        scaled = scale_rewards(torch.tensor(rewards, dtype=torch.double), formats, step, total, decay=decay)
        found = group_relative_advantages(scaled, eps=1e-6)
        for row, *group in zip(found.tolist(), formats, rewards, strict=True):
            assert row == pytest.approx(slow_advantages(*group, step, total, decay), abs=1e-9)


# ---- what the formula does -----------------------------------------------------------------


def test_decay_cancels_where_all_are_right():
    first = advantages("LLLLLKCD", "11111111", 0)
    for step in (1, 85, 169):
        assert advantages("LLLLLKCD", "11111111", step) == pytest.approx(first, abs=0.02)
    assert advantages("LLLLLKCD", "11111110", 85) != pytest.approx(
        advantages("LLLLLKCD", "11111110", 0), abs=0.02
    )


def test_without_decay_the_scale_stays():
    assert advantages("LLLLLCCD", "11110101", 170, decay=False) == advantages("LLLLLCCD", "11110101", 0)


def test_a_response_without_a_format_counts_but_is_not_paid_for_being_rare():
    assert format_counts([[L, L, None, D]]).tolist() == [[2, 2, 1, 1]]
    assert scale_rewards(torch.ones(1, 4), [[L, L, None, D]], 0, 10).tolist() == [[2.0, 2.0, 1.0, 4.0]]


def test_names_serve_as_formats_and_inputs_stay_as_they_are():
    rewards = torch.ones(1, 2)
    assert scale_rewards(rewards, [["direct", "code"]], 0, 10).tolist() == [[2.0, 2.0]]
    assert format_counts([["direct", D]]).tolist() == [[2, 2]] and rewards.tolist() == [[1.0, 1.0]]


def test_bad_input_is_named():
    counts = torch.tensor([[1, 3]])
    for call, message in (
        (lambda: format_counts([[L], [L, D]]), r"groups must have the same size G, got groups of \[1, 2\]"),
        (lambda: diversity_scale(counts, 4, 11, 10), "step must lie between 0 and total_steps"),
        (lambda: diversity_scale(counts, 2, 1, 10), "counts must lie between 1 and group_size, 2"),
        (lambda: scale_rewards(torch.ones(4), [[L] * 4], 0, 1), "rewards have the shape"),
        (lambda: AdaGRPO.cpu("x", without="cot"), "AdaGRPO.without takes 'direct', 'short_cot'"),
        (lambda: AdaGRPO.cpu("x", micro_batch_size=5), "make it a multiple of 5"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def is_right(rules):
    """How a tagged response is judged by these rules."""
    return FormatReading(dial_tokenizer(), AdaGRPO.cpu("x", rules=rules)).is_right


def test_the_reward_by_three_rules():
    right = "<COT>\nJot 3\n</COT>\n<ANSWER>\n4\n</ANSWER>"
    loose = right + " Sure."
    untagged = "So <ANSWER>4</ANSWER>"
    texts = {"completions": [right, loose, untagged, right.replace("4", "5")]}
    row = {"answer": ["4"] * 4, "kind": ["number"] * 4, "trainer_state": None}
    assert accuracy_reward(is_right("strict"))(**texts, **row) == [1, 0, 0, 0]
    assert accuracy_reward(is_right("arm_training"))(**texts, **row) == [1, 1, 0, 0]
    assert accuracy_reward(is_right("arm_evaluation"))(**texts, **row) == [1, 1, 1, 0]


def test_the_code_preset_reads_and_counts_as_the_released_code():
    config = AdaGRPO.code("x")
    assert (config.batches, config.schedule, config.rules) == (170, "code", "arm_training")
    after_a_break = "\n<COT>\nJot 3\n</COT>\n<ANSWER>\n4\n</ANSWER>"
    for rules, mode in (("arm_training", None), ("strict", "short_cot")):
        reading = FormatReading(dial_tokenizer(), AdaGRPO.cpu("x", rules=rules))
        assert reading.mode([], after_a_break) == mode and reading.mode([], after_a_break.lstrip()) == S


def test_the_hook_scales_by_progress_and_ablates():
    letters, ok = "LLKD", torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    group = Group(ok, torch.ones(1, 4), [[LETTERS[x] and LETTERS[x].value for x in letters]])
    shape = AdaGRPO.cpu("x").shape_group
    assert shape(group, Progress(0, 10)).tolist() == [[2, 2, 4, 4]]
    assert shape(group, Progress(10, 10)).tolist() == ok.tolist()
    late = AdaGRPO.cpu("x", schedule="code").shape_group(group, Progress(0, 10))
    assert torch.equal(late, scale_rewards(ok, group.mode, 1, 11))
    assert AdaGRPO.cpu("x", without="direct").shape_group(group, Progress(0, 10)).tolist() == [[2, 2, 4, 0]]


# ---- the trainer ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small model on disk that knows the four formats a little: 40 steps on gold responses."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    model, tokenizer = new_dial_model(seed=0, layers=2, width=64), dial_tokenizer()
    questions = sample_questions(16, seed=0, depths=[1, 2])
    texts = [q.prompt + gold_response(q, f) + "<end>" for q in questions for f in ReasoningFormat]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    save_policy(model, tokenizer, folder)
    return str(folder)


SIZES = {
    "batches": 3,
    "prompts": 4,
    "num_generations": 4,
    "micro_batch_size": 16,
    "max_completion_length": 60,
}


@pytest.fixture
def config(base):
    return AdaGRPO.cpu(base, **SIZES)


ROWS = task_rows(dial_tasks(24, split="train", seed=0, depths=[1, 2]))


def recorded(config, folder, steps=1, **changes):
    """A trainer that has trained `steps` steps, with the batches it had and the losses it made of them."""
    trainer = build(replace(config, batches=steps, **changes), ROWS, Run(folder, {}))
    trainer.seen, compute = [], trainer._compute_loss

    def record(model, inputs):
        trainer.before = {name: p.detach().clone() for name, p in model.named_parameters()}
        loss = compute(model, inputs)
        trainer.seen.append((inputs, loss.item()))
        return loss

    trainer._compute_loss = record
    trainer.train()
    return trainer


def formula(config, trainer, reference=None):
    """The same loss by the formulas of lib.grpo and lib.ada_grpo, and its gradient, on the recorded batch."""
    inputs, _ = trainer.seen[-1]
    tokenizer = trainer.processing_class
    model, _ = load_policy(config.base)
    texts = tokenizer.batch_decode(inputs["completion_ids"], skip_special_tokens=True)
    prompts = tokenizer.batch_decode(inputs["prompt_ids"], skip_special_tokens=True)
    answers = {row["prompt"]: row["answer"] for row in ROWS}
    size = config.num_generations
    order = sorted(range(len(texts)), key=lambda i: prompts[i])  # TRL shuffles; put the groups together
    rows = [texts[i] for i in order]
    rewards = accuracy_reward(is_right(config.rules))(
        completions=rows, answer=[answers[prompts[i]] for i in order], kind=["number"] * len(rows)
    )
    formats = [next((f for f in ReasoningFormat if text.startswith(f.prefix)), None) for text in rows]
    groups = [formats[i : i + size] for i in range(0, len(formats), size)]
    rewards = torch.tensor(rewards).view(-1, size)
    if config.name == "ada_grpo":
        rewards = scale_rewards(rewards, groups, len(trainer.seen) - 1, config.batches)
    found = group_relative_advantages(rewards, eps=config.advantage_eps).flatten()
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)[order]
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)[order]
    width = inputs["completion_ids"].size(1)

    def log_probs(policy):
        logits = policy(input_ids=ids, attention_mask=mask).logits[:, -width - 1 : -1]
        return selective_log_softmax(logits / config.temperature, ids[:, -width:])

    now = log_probs(model)
    loss = grpo_loss(
        now,
        now.detach(),
        found,
        mask[:, -width:],
        ref_log_probs=log_probs(reference).detach() if reference else None,
        beta=config.beta,
        kl=config.kl,
        group_size=size if config.normaliser == "group" else None,
    )
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("method", ["ada_grpo", "grpo"])
@pytest.mark.parametrize("normaliser", ["batch", "group", "micro_batch"])
def test_the_trainer_follows_the_formulas(base, tmp_path, monkeypatch, method, normaliser):
    config = METHODS[method].cpu(base, **SIZES, normaliser=normaliser)
    gradients = {}

    def keep(self, model, *arguments, step=trl.GRPOTrainer.training_step, **named):
        loss = step(self, model, *arguments, **named)
        gradients.update({name: p.grad.clone() for name, p in model.named_parameters()})
        return loss

    monkeypatch.setattr(trl.GRPOTrainer, "training_step", keep)
    trainer = recorded(config, tmp_path)
    loss, expected = formula(config, trainer)
    assert trainer.seen[0][1] == pytest.approx(loss, abs=1e-6)
    assert max(g.abs().max() for g in expected.values()) > 1e-3  # there is something to compare
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=2e-6, rtol=1e-3)


def test_the_scale_changes_the_advantages(base, tmp_path):
    scaled, plain = (
        recorded(METHODS[name].cpu(base, **SIZES), tmp_path / name).seen[0][0]
        for name in ("ada_grpo", "grpo")
    )
    assert torch.equal(scaled["completion_ids"], plain["completion_ids"])
    assert not torch.allclose(scaled["advantages"], plain["advantages"])


class TRLWithOurResponses(trl.GRPOTrainer):
    """TRL's trainer, padding and all, with responses drawn by our loop."""

    _generate_single_turn, _decode = TrimmingTrainer._generate_single_turn, TrimmingTrainer._decode
    _ours = TrimmingTrainer._ours


def test_without_hooks_it_is_trls_trainer(base, tmp_path):
    sizes = SIZES | {"advantage_eps": 1e-4, "updates": 2, "micro_batch_size": 8}
    config = METHODS["grpo"].cpu(base, **sizes)
    ours = build(config, ROWS, Run(tmp_path / "a", {}))
    ours.train()
    model, tokenizer = load_policy(base)
    theirs = TRLWithOurResponses(
        model=model,
        reward_funcs=accuracy_reward(is_right("strict")),
        args=training_arguments(config, tmp_path / "b"),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )
    theirs.train()
    logs = [
        [(row["loss"], row["grad_norm"], row["entropy"]) for row in trainer.state.log_history[:-1]]
        for trainer in (ours, theirs)
    ]
    assert len(logs[0]) == 6 and any(loss for loss, *_ in logs[0])
    for mine, his in zip(*logs, strict=True):
        assert mine == pytest.approx(his, rel=1e-3, abs=1e-5)
    weights = [
        torch.cat([p.detach().flatten() for p in some.parameters()])
        for some in (ours.model, theirs.model, load_policy(base)[0])
    ]
    assert (weights[0] - weights[1]).norm() < 1e-3 * (weights[1] - weights[2]).norm()


def test_beyond_its_limit_the_clamped_kl_has_no_gradient(config, tmp_path):
    """The reference is far from the policy on one token: there the clamped term counts for nothing."""
    config = replace(config, beta=0.5, kl="k3_clamped", normaliser="micro_batch")
    trainer = recorded(config, tmp_path)
    inputs, _ = trainer.seen[0]
    inputs["advantages"] = torch.zeros_like(inputs["advantages"])
    inputs["ref_per_token_logps"] = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
        torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
        inputs["completion_ids"].shape[1],
    )[0].detach()
    inputs["ref_per_token_logps"][:, 0] += 100  # exp(100) overflows in float32
    for kl, finite in (("k3_clamped", True), ("k3", False)):
        trainer.method = replace(config, kl=kl)
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model.train(), inputs).backward()
        gradients = [p.grad for p in trainer.model.parameters()]
        assert all(g.isfinite().all() for g in gradients) == finite
        if finite:
            assert max(g.abs().max() for g in gradients) < 1e-6


@pytest.mark.parametrize("kl", ["k3", "k3_clamped"])
@pytest.mark.parametrize("normaliser", ["batch", "group"])
def test_the_kl_term_follows_the_formula(config, tmp_path, kl, normaliser):
    """After one step policy and reference differ; the loss of the second holds the KL term."""
    config = replace(config, beta=0.5, kl=kl, normaliser=normaliser, learning_rate=1e-3)
    trainer = recorded(config, tmp_path, steps=2)
    reference, tokenizer = load_policy(config.base)
    now, _ = load_policy(config.base)
    now.load_state_dict(trainer.before, strict=False)
    save_policy(now, tokenizer, tmp_path / "now")
    without, _ = formula(replace(config, base=str(tmp_path / "now"), batches=2, beta=0.0), trainer)
    batch = replace(config, base=str(tmp_path / "now"), batches=2, normaliser="batch")
    plain, _ = formula(replace(batch, beta=0.0), trainer)
    term = formula(batch, trainer, reference)[0] - plain  # a mean over the tokens of the batch
    assert trainer.seen[1][1] == pytest.approx(without + term, abs=1e-5) and abs(term) > 1e-4
    assert trainer.state.log_history[1]["kl"] != 0


def test_the_rate_falls_at_the_end_where_asked(config, tmp_path):
    falling = replace(config, batches=10, learning_rate=2e-4, cooldown=0.3)
    trainer = build(falling, ROWS, Run(tmp_path, {}))
    trainer.create_optimizer_and_scheduler(10)
    rates = []
    for _ in range(10):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert set(rates[:8]) == {2e-4} and 2e-4 > rates[8] > rates[9] > 0
    assert training_arguments(replace(config, cooldown=0.0), tmp_path).lr_scheduler_type == "constant"


def test_t_counts_rollout_batches(config, tmp_path):
    trainer = build(replace(config, updates=2, micro_batch_size=4), ROWS, Run(tmp_path, {}))
    seen = []
    for trainer.state.global_step in range(6):
        trainer.state.max_steps = 6
        seen.append(trainer.progress)
    assert seen == [(0, 3), (0, 3), (1, 3), (1, 3), (2, 3), (2, 3)]


def test_what_is_logged(config):
    run = start_run("a", "cpu", {})
    lines = []
    _, _, facts = fit(config, ROWS, run, say=lines.append)
    rows = [row for row in run.metrics() if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3] and facts["steps"] == 3
    for row in rows:
        shares = [row[f"format/{name}_share"] for name in (*ReasoningFormat, "none")]
        assert sum(shares) == pytest.approx(1) and sum(share > 0 for share in shares) > 1
        tier = [row[f"easy/format/{name}_share"] for name in (*ReasoningFormat, "none")]
        assert tier == shares and row["easy/accuracy"] == row["accuracy"]  # all of these are easy
        assert row["tokens/mean"] == row["completions/mean_length"]
        assert 0 <= row["accuracy"] <= 1 and row["reward"] >= row["accuracy"]  # the reward is scaled
        for name in ("frac_reward_zero_std", "entropy", "clip_ratio/region_mean", "step_time", "reward_std"):
            assert name in row
    assert "long CoT 0." in lines[-1] and "accuracy" in lines[-1]


def test_a_run_resumes_to_the_same_weights(config):
    whole, _, _ = fit(replace(config, save_every=2), ROWS, start_run("a", "cpu", {}))
    run = start_run("b", "cpu", {})
    fit(replace(config, save_every=2), ROWS, run, stop_at=2)
    resumed, _, facts = fit(replace(config, save_every=2), ROWS, run)
    assert facts["resumed"] and [row["step"] for row in run.metrics() if "loss" in row] == [1, 2, 3]
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, atol=1e-5, rtol=0)


# ---- several processes -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_group_split_over_two_processes_is_one_group(config, tmp_path):
    """Each process holds half of every group: advantages, metrics and weights are those of one process."""
    call = {"base": config.base, "folder": str(tmp_path), "changes": {"normaliser": "group"}}
    one, two = (launch.run("tests.launch_functions:one_group_step", call, num_processes=n) for n in (1, 2))
    assert two["processes"] == 2 and one["processes"] == 1
    assert one["local"] == 24 and two["local"] == 12  # groups of 8: the one in the middle is split
    assert len(set(one["advantages"])) > 3
    assert two["advantages"] == pytest.approx(one["advantages"], abs=1e-6)
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-6)
    assert two["gradient"] == pytest.approx(one["gradient"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_nf4_and_lora_on_a_random_qwen(tmp_path, tiny_qwen, processes):
    call = {"folder": str(tmp_path / "run"), "base": tiny_qwen}
    both = launch.run("tests.launch_functions:three_steps", call, num_processes=processes)
    assert both.keys() == {"ada_grpo", "grpo"}
    for found in both.values():
        assert found["processes"] == processes and found["quantised"]
        assert found["changed"] and all("lora" in name for name in found["changed"])
        assert found["kl"][0] == pytest.approx(0, abs=1e-6) and found["kl"][-1] > 0  # away from the start
        assert all(0 < gradient < 1e4 for gradient in found["gradients"])
