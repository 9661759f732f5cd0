import math

import pytest
import torch
from trl.trainer.utils import nanstd

from lib.methods.grpo import (
    clip_share,
    clipped_loss,
    group_relative_advantages,
    grpo_loss,
    kl_estimate,
    masked_mean,
    per_token_log_probs,
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
    groups = {"group": [[0, 1], [2, 3], [4, 5]], "token": [range(6)], "sequence": [[i] for i in range(6)]}
    for level, members in groups.items():
        found = grpo_loss(log_probs, old, advantages, mask, level=level, group_size=2, **options)
        assert found.item() == pytest.approx(slow_loss(*batch, 0.2, beta, members), abs=1e-12)


def test_the_three_means_differ(batch):
    values, mask = batch[0], batch[-1]
    assert len({round(masked_mean(values, mask, m, group_size=2).item(), 6) for m in LEVELS}) == 3
    padding = values + 1e6 * (1 - mask)
    for level in LEVELS:
        assert masked_mean(padding, mask, level, group_size=2) == masked_mean(
            values, mask, level, group_size=2
        )


LEVELS = ("token", "sequence", "group")


def test_gradients_pass_where_the_clip_lets_them():
    old = torch.zeros(4, 1)
    log_probs = torch.log(torch.tensor([[1.3], [1.3], [0.7], [0.7]])).requires_grad_()
    advantages, mask = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.ones(4, 1)
    clipped_loss(log_probs, old, advantages, epsilon=0.2).sum().backward()
    assert (log_probs.grad.flatten() != 0).tolist() == [False, True, True, False]
    assert clip_share(log_probs, old, advantages, mask) == 0.5


def test_log_probs_are_those_of_the_tokens_at_the_temperature():
    logits, tokens = torch.randn(2, 3, 7), torch.randint(0, 7, (2, 3))
    found = per_token_log_probs(logits, tokens, temperature=0.7)
    for i in range(2):
        for k in range(3):
            assert found[i, k] == pytest.approx((logits[i, k] / 0.7).log_softmax(0)[tokens[i, k]].item())


def test_kl_estimators_estimate_the_kl():
    """k1 and k3 have the right mean under the policy, k2 nearly; only k1 is ever negative."""
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.double)
    reference = torch.tensor([0.4, 0.35, 0.25], dtype=torch.double)
    exact = (policy * (policy / reference).log()).sum().item()
    values = {kind: kl_estimate(policy.log(), reference.log(), kind) for kind in ("k1", "k2", "k3")}
    means = {kind: (policy * value).sum().item() for kind, value in values.items()}
    assert means["k1"] == pytest.approx(exact) == means["k3"]
    assert means["k2"] == pytest.approx(exact, rel=0.05) and means["k2"] != pytest.approx(exact, rel=1e-6)
    assert values["k1"].min() < 0 <= min(values["k2"].min(), values["k3"].min())


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
        (lambda: kl_estimate(log_probs, old, "k4"), "kind must be k1, k2, k3 or k3_clamped"),
        (lambda: masked_mean(log_probs, mask, "batch"), "level must be token, sequence or group"),
        (lambda: masked_mean(log_probs, mask, "group", group_size=4), "no whole groups of group_size 4"),
        (lambda: grpo_loss(log_probs, old, advantages, mask, beta=0.1), "ref_log_probs are needed"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
