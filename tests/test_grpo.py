import math

import pytest
import torch
from trl.trainer.utils import nanstd

from lib.methods.grpo import (
    clipped_loss,
    group_relative_advantages,
    grpo_loss,
    is_clipped,
    kl_estimate,
    masked_mean,
)


@pytest.fixture
def batch():
    """Random log-probabilities of 6 responses (3 groups of 2) with 5 tokens, some of them padding."""
    draw = torch.Generator().manual_seed(0)
    log_probs, old, ref = (-3 * torch.rand(6, 5, generator=draw, dtype=torch.double) for _ in range(3))
    mask = (torch.arange(5)[None] < torch.tensor([5, 3, 1, 4, 2, 5])[:, None]).double()
    return log_probs, old, ref, torch.randn(6, generator=draw, dtype=torch.double), mask


def slow_loss(log_probs, old, ref, advantages, mask, epsilon, beta, groups):
    """Equation 6 of ARM, token by token: the mean over groups of the mean over the group's tokens."""
    total = 0.0
    for group in groups:
        tokens, value = 0, 0.0
        for i in group:
            for k in range(log_probs.size(1)):
                if not mask[i, k]:
                    continue
                ratio = math.exp(log_probs[i, k] - old[i, k])
                a = advantages[i].item()
                difference = (ref[i, k] - log_probs[i, k]).item()
                kl = math.exp(difference) - difference - 1
                value += min(ratio * a, min(max(ratio, 1 - epsilon), 1 + epsilon) * a) - beta * kl
                tokens += 1
        total += value / tokens
    return -total / len(groups)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_loss_is_equation_6(batch, beta):
    log_probs, old, ref, advantages, mask = batch
    options = {"ref_log_probs": ref, "beta": beta, "epsilon": 0.2}
    groups = {2: [[0, 1], [2, 3], [4, 5]], None: [range(6)], 1: [[i] for i in range(6)]}
    for size, members in groups.items():
        found = grpo_loss(log_probs, old, advantages, mask, group_size=size, **options)
        assert found.item() == pytest.approx(slow_loss(*batch, 0.2, beta, members), abs=1e-12)


def test_the_three_means_differ(batch):
    values, mask = batch[0], batch[-1]
    sizes = (None, 1, 2)
    assert len({round(masked_mean(values, mask, size).item(), 6) for size in sizes}) == 3
    padding = values + 1e6 * (1 - mask)
    assert all(masked_mean(padding, mask, size) == masked_mean(values, mask, size) for size in sizes)


def test_gradients_pass_where_the_clip_lets_them():
    ratio = torch.tensor([[1.3], [1.3], [0.7], [0.7]], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    clipped_loss(ratio, advantages, epsilon=0.2).sum().backward()
    assert torch.equal(is_clipped(ratio, advantages, epsilon=0.2), ratio.grad == 0)
    assert (ratio.grad.flatten() != 0).tolist() == [False, True, True, False]


def test_the_kl_estimate_has_the_right_mean_and_is_never_negative():
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.double)
    reference = torch.tensor([0.4, 0.35, 0.25], dtype=torch.double)
    exact = (policy * (policy / reference).log()).sum().item()
    found = kl_estimate(policy.log(), reference.log())
    assert (policy * found).sum().item() == pytest.approx(exact) and found.min() >= 0


def test_the_clamp_of_verl_stops_at_ten():
    log_probs = torch.tensor([[-5.0, -1.0]], requires_grad=True)
    found = kl_estimate(log_probs, torch.tensor([[0.0, -1.5]]), "k3_clamped")
    plain = kl_estimate(log_probs, torch.tensor([[0.0, -1.5]]), "k3")
    assert found[0, 0] == 10 < plain[0, 0] and found[0, 1] == plain[0, 1]
    found.sum().backward()
    assert log_probs.grad[0, 0] == 0 != log_probs.grad[0, 1]


def test_the_clamped_estimate_has_a_gradient_however_far_the_policies_are_apart():
    """exp overflows beyond 88 in single precision; ARM's gradient is NaN there."""
    differences = torch.tensor([-200.0, -20.0, -3.0, 1.0, 2.5, 9.0, 20.0, 89.0, 1000.0])
    log_probs = torch.zeros_like(differences, requires_grad=True)
    found = kl_estimate(log_probs, differences, "k3_clamped")
    plain = kl_estimate(log_probs, differences, "k3").clamp(-10, 10)
    assert torch.equal(found, plain)
    found.sum().backward()
    expected = torch.where(plain.detach() < 10, 1 - differences.exp(), 0.0)
    torch.testing.assert_close(log_probs.grad, expected)


def test_advantages_use_the_sample_deviation():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    found = group_relative_advantages(rewards, eps=1e-4)
    expected = (rewards - rewards.mean(1, keepdim=True)) / (nanstd(rewards, dim=1)[:, None] + 1e-4)
    torch.testing.assert_close(found, expected)
    assert (found[1] == 0).all()
    assert group_relative_advantages(rewards, scale="none")[0].tolist() == [0.75, -0.25, -0.25, -0.25]


@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [2, 3, 7, 8, 12, 16, 64])
def test_equal_rewards_have_advantages_of_zero(size, dtype, scale):
    draws = torch.rand(200, generator=torch.Generator().manual_seed(size))
    values = torch.cat([torch.tensor([8 / 3, 0.1, 1 / 3, 1e-3, 4.0, -0.7, 0.0]), 10 * draws - 5]).to(dtype)
    found = group_relative_advantages(values[:, None].expand(-1, size), scale=scale)
    assert found.dtype == dtype and not found.any()


def test_inputs_stay_as_they_are(batch):
    copies = [tensor.clone() for tensor in batch]
    log_probs, old, ref, advantages, mask = batch
    grpo_loss(log_probs, old, advantages, mask, ref_log_probs=ref, beta=0.1)
    group_relative_advantages(log_probs)
    assert all(torch.equal(now, before) for now, before in zip(batch, copies, strict=True))


def test_bad_input_is_named(batch):
    log_probs, old, _, advantages, mask = batch
    for call, message in (
        (lambda: group_relative_advantages(torch.ones(8)), r"rewards must have the shape \(B, G\)"),
        (lambda: group_relative_advantages(torch.ones(8, 1)), r"G of 2 or more"),
        (lambda: group_relative_advantages(torch.ones(2, 2), scale="batch"), "scale must be group or none"),
        (lambda: kl_estimate(log_probs, old, "k4"), "kind must be k3 or k3_clamped"),
        (lambda: masked_mean(log_probs, mask, group_size=4), "no whole groups of group_size 4"),
        (lambda: grpo_loss(log_probs, old, advantages, mask, beta=0.1), "ref_log_probs are needed"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
