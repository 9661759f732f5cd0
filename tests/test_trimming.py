import math
import random
from itertools import pairwise

import pytest
import torch
import trl
from datasets import Dataset

from lib.dial import dial_tokenizer, new_dial_model, sample_questions
from lib.engines import launch
from lib.engines.base import Request, Sampling
from lib.engines.decode import decode
from lib.methods.trimming import Part, TrimmingTrainer, by_length, not_understood, real_span
from lib.policies.load import load_policy

LOSSES = ("grpo", "dapo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")


def make(folder, kind=TrimmingTrainer, *, model=None, beta=0.0, **options):
    """A trainer on an untrained dial model: its responses go to their full length, unless it is given."""
    usual = {
        "per_device_train_batch_size": 24,
        "num_generations": 4,
        "max_completion_length": 40,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "max_steps": 3,
        "learning_rate": 1e-3,
    }
    arguments = trl.GRPOConfig(
        str(folder), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, **usual | options
    )
    trainer = kind(
        model=model or new_dial_model(seed=0),
        reward_funcs=lambda completion_ids, **others: [float(sum(ids) % 7) for ids in completion_ids],
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": q.prompt} for q in sample_questions(48, seed=0)]),
        processing_class=dial_tokenizer(),
    )
    trainer.beta, trainer.current_gradient_accumulation_steps = beta, 1
    trainer.state.max_steps = 3
    trainer.model.train()
    return trainer


def a_batch(rows=24, *, width=90, truncated=()):
    """Prompts and responses of very different lengths, with old and reference log-probs near the policy's."""
    torch.manual_seed(0)
    rng = random.Random(0)
    prompts = [rng.randint(5, 30) for _ in range(rows)]
    lengths = [rng.choice([1, 3, 8, 20, 60]) for _ in range(rows - 1)] + [width]
    places = torch.arange(width)
    mask = (places < torch.tensor(lengths)[:, None]).long()
    mask[list(truncated)] = 0
    prompt_mask = (torch.arange(30) >= 30 - torch.tensor(prompts)[:, None]).long()
    near = -2 + 0.3 * torch.randn(2, rows, width)
    return {
        "prompt_ids": torch.randint(2, 90, (rows, 30)) * prompt_mask,
        "prompt_mask": prompt_mask,
        "completion_ids": torch.randint(2, 90, (rows, width)) * mask,
        "completion_mask": mask,
        "advantages": torch.randn(rows),
        "num_items_in_batch": mask.sum(),
        "old_per_token_logps": near[0] * mask,
        "ref_per_token_logps": near[1] * mask,
    }


def loss_and_gradient(trainer, inputs):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    return loss.item(), gradient


def untrimmed(trainer, monkeypatch):
    monkeypatch.setattr(
        TrimmingTrainer,
        "_get_per_token_logps_and_entropies",
        trl.GRPOTrainer._get_per_token_logps_and_entropies,
    )
    return trainer


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("more", [{}, {"beta": 0.1, "entropy_coef": 0.02}])
def test_loss_and_gradient_are_those_of_the_untrimmed_pass(loss_type, more, tmp_path, monkeypatch):
    trainer, inputs = make(tmp_path, loss_type=loss_type, **more), a_batch(truncated=[2, 5])
    loss, gradient = loss_and_gradient(trainer, inputs)
    plain_loss, plain_gradient = loss_and_gradient(untrimmed(trainer, monkeypatch), inputs)
    assert math.isclose(loss, plain_loss, rel_tol=1e-5, abs_tol=1e-6)
    assert (gradient - plain_gradient).norm() < 1e-5 * plain_gradient.norm()
    assert plain_gradient.norm() > 1e-3


def test_the_model_reads_hardly_more_than_real_tokens(tmp_path, monkeypatch):
    trainer, inputs = make(tmp_path), a_batch(96)
    real = int(inputs["prompt_mask"].sum() + inputs["completion_mask"].sum())
    read = []
    hook = trainer.model.model.register_forward_pre_hook(
        lambda module, positional, named: read.append(named["input_ids"].numel()), with_kwargs=True
    )
    loss_and_gradient(trainer, inputs)
    assert real <= sum(read) < 1.3 * real
    read.clear()
    loss_and_gradient(untrimmed(trainer, monkeypatch), inputs)
    assert sum(read) == 96 * 120 > 2 * real
    hook.remove()


def test_scored_log_probs_and_entropies_come_back_to_their_places(tmp_path, monkeypatch):
    trainer, inputs = make(tmp_path), a_batch()
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    with torch.no_grad():
        for batch_size in (None, 5):
            ours = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, mask, 90, batch_size=batch_size, compute_entropy=True
            )
            plain = super(TrimmingTrainer, trainer)._get_per_token_logps_and_entropies(
                trainer.model, ids, mask, 90, compute_entropy=True
            )
            for found, expected in zip(ours[:2], plain[:2], strict=True):
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert ours[2] is None
        without = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 90)
    assert without[1] is None


def test_a_row_keeps_what_is_no_padding_and_one_token_to_score():
    mask = torch.tensor([[0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0]])
    begins, ends = real_span(mask, 3)
    assert (begins.tolist(), ends.tolist()) == ([1, 0, 2], [4, 6, 4])


def test_rows_move_to_the_left_and_their_values_back():
    ids = torch.tensor([[0, 0, 3, 4, 5, 0, 0, 0], [6, 7, 8, 9, 10, 11, 0, 0]])
    part = Part(ids, (ids > 0).long(), *real_span((ids > 0).long(), 5), 5)
    assert part.ids.tolist() == [[3, 4, 5, 0, 0, 0], [6, 7, 8, 9, 10, 11]]
    assert part.mask.tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert part.kept == 5  # the shorter prompt has one token
    values = part.put_back(part.ids[:, -part.kept :])
    assert values.tolist() == [[4, 5, 0, 0, 0], [9, 10, 11, 0, 0]]


def test_responses_are_those_of_the_decode_loop_and_follow_the_seed(tmp_path):
    model, tokenizer = load_policy("dial-sft")
    trainer = make(tmp_path, model=model, temperature=0.7, top_p=0.9)
    prompts = tokenizer([q.prompt for q in sample_questions(6, seed=0)]).input_ids
    torch.manual_seed(3)
    found, log_probs = trainer._generate_single_turn(prompts, None, {}, 1)
    torch.manual_seed(3)
    sampling = Sampling(0.7, 0.9, int(torch.randint(2**62, ())))
    expected = decode(model, [Request(tuple(ids), (), 40) for ids in prompts], sampling, [1])
    assert found == [list(one.ids) for one in expected]
    assert log_probs is None
    assert trainer._generate_single_turn(prompts, None, {}, 1)[0] != found


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 5},
        {"min_p": 0.2},
        {"repetition_penalty": 1.1},
        {"generation_kwargs": {"no_repeat_ngram_size": 3}},
    ],
)
def test_an_option_that_the_loop_lacks_goes_to_trl(options, tmp_path, monkeypatch):
    warned = []
    monkeypatch.setattr("lib.methods.trimming.logger.warning_once", warned.append)
    monkeypatch.setattr("lib.methods.trimming.decode", None)
    trainer = make(tmp_path, **options)
    [found], _ = trainer._generate_single_turn([[4, 5, 6]], None, {}, 1)
    assert found
    (name,) = options.get("generation_kwargs", options)
    assert name in warned[0]


def test_options_that_say_nothing_are_understood(tmp_path):
    trainer = make(tmp_path, top_k=0, min_p=None, repetition_penalty=1.0)
    assert not_understood(trainer.model.generation_config, trainer.generation_config) == {}


def test_micro_batches_of_an_update_hold_rows_of_similar_length():
    batch = a_batch(24)
    parts = [
        {name: value[i : i + 6] if value.dim() else value for name, value in batch.items()}
        for i in range(0, 24, 6)
    ]
    sorted_parts = by_length(parts)
    lengths = [p["completion_mask"].sum(1) + p["prompt_mask"].sum(1) for p in sorted_parts]
    assert all(a.max() <= b.min() for a, b in pairwise(lengths))
    for name in ("completion_ids", "advantages"):
        before, after = (torch.cat([p[name] for p in some]) for some in (parts, sorted_parts))
        assert sorted(map(str, before.tolist())) == sorted(map(str, after.tolist()))
    rows = {
        tuple(ids): a
        for p in parts
        for ids, a in zip(p["completion_ids"].tolist(), p["advantages"], strict=True)
    }
    for part in sorted_parts:
        assert all(
            rows[tuple(i)] == a
            for i, a in zip(part["completion_ids"].tolist(), part["advantages"], strict=True)
        )


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo"])
def test_an_update_is_that_of_trl_however_its_rows_are_put_together(loss_type, tmp_path, monkeypatch):
    """Several micro-batches an update, two updates a rollout batch, old log-probs: weights after three."""
    options = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 4, "steps_per_generation": 8}
    options |= {"loss_type": loss_type, "max_steps": 3}
    weights, orders = [], []
    for plain in (False, True):
        if plain:
            untrimmed(None, monkeypatch)
            monkeypatch.setattr(TrimmingTrainer, "_is_order_free", lambda trainer: False)
        trainer = make(tmp_path / str(plain), model=load_policy("dial-sft")[0], **options)
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        orders.append([len(b["completion_mask"]) for b in trainer._buffered_inputs])
    start = torch.cat([p.detach().flatten() for p in load_policy("dial-sft")[0].parameters()])
    assert orders[0] == orders[1] == [6] * 8
    assert (weights[0] - weights[1]).norm() < 2e-3 * (weights[1] - start).norm()


@pytest.mark.slow
def test_two_processes_with_responses_of_other_lengths_do_not_wait_for_ever(tmp_path):
    found = launch.run("tests.launch_functions:trimmed_step", {"folder": str(tmp_path)}, num_processes=2)
    assert found["passes"][0] == found["passes"][1] > 1
    alone = launch.run("tests.launch_functions:trimmed_step", {"folder": str(tmp_path)})
    assert math.isclose(found["gradient"], alone["gradient"], rel_tol=1e-4)
