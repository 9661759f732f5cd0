"""The configuration bandit: action space, formulas against autograd, learning on a known surface."""

import math
import os
import signal
import time
from dataclasses import fields

import numpy as np
import pytest
import torch

from lib.bandit.actions import HEADS, Action, ActionSpace
from lib.bandit.environments import LLMEnvironment
from lib.bandit.learner import (
    ConfigurationPolicy,
    annealed_temperature,
    boltzmann_probabilities,
    choose,
    entropy,
    linear_temperature,
    reinforce_loss,
    released_loss,
    zscores,
)
from lib.bandit.llms import LocalLLM, Request, ServerLLM
from lib.bandit.training import BanditConfig, BanditTrainer, NoAnswersError
from lib.dial.surface import Surface
from lib.engines.server import ChatServer
from lib.policies.load import load_policy
from lib.runs import HeldError, start_run
from lib.studies import simulated_surface
from lib.studies.off_policy import action_probabilities

SMALL = ActionSpace(("a", "b", "c"), (0.0, 0.5), (1, 2, 4, 8))


# ---- action space


def test_the_papers_space_has_the_papers_sizes():
    space = ActionSpace.paper()
    assert (len(space.instructions), len(space.temperatures), len(space.steps)) == (100, 11, 8)
    assert space.size == 8800 and space.steps == tuple(range(3, 11))
    assert space.temperatures[0] == 0.0 and space.temperatures[-1] == 1.0
    assert ActionSpace.released_code().size == 7000


def test_encode_and_decode_are_a_bijection_on_all_actions():
    space = ActionSpace.paper()
    actions = [space.decode(index) for index in range(space.size)]
    assert len(set(actions)) == 8800
    assert [space.encode(action) for action in actions] == list(range(8800))


def test_indices_per_head_and_of_actions_agree_with_decode():
    indices = torch.arange(SMALL.size)
    parts = SMALL.split(indices)
    assert torch.equal(SMALL.join(parts), indices)
    for index in range(SMALL.size):
        action = SMALL.decode(index)
        assert action.instruction == SMALL.instructions[parts["instruction"][index]]
        assert action.temperature == SMALL.temperatures[parts["temperature"][index]]
        assert action.steps == SMALL.steps[parts["steps"][index]]


def test_what_is_not_in_the_space_is_named():
    for index in (-1, 24):
        with pytest.raises(ValueError, match="0 to 23"):
            SMALL.decode(index)
    with pytest.raises(ValueError, match=r"temperature 0\.3 is not"):
        SMALL.encode(Action("a", 0.3, 1))
    with pytest.raises(ValueError, match="instructions must hold"):
        ActionSpace(("a", "a"), (0.0,), (1,))
    with pytest.raises(ValueError, match="steps must hold"):
        ActionSpace(("a",), (0.0,), ())


# ---- formulas


def test_boltzmann_by_hand():
    probs = boltzmann_probabilities(torch.tensor([0.0, math.log(3.0)]), 1.0)
    assert probs.tolist() == pytest.approx([0.25, 0.75])
    assert boltzmann_probabilities(torch.tensor([0.0, math.log(3.0)]), 0.5).tolist() == pytest.approx(
        [0.1, 0.9]
    )
    with pytest.raises(ValueError, match="above 0"):
        boltzmann_probabilities(torch.zeros(2), 0.0)


def test_annealing_by_hand():
    assert [annealed_temperature(t, 2.0, 0.5) for t in range(4)] == [2.0, 1.0, 0.5, 0.25]
    assert linear_temperature(99) == pytest.approx(0.9901)
    assert linear_temperature(9000) == pytest.approx(0.1) and linear_temperature(20000) == 0.1


def random_batch(seed=0, batch=5):
    generator = torch.Generator().manual_seed(seed)
    logits = {
        head: torch.randn(batch, size, generator=generator, dtype=torch.float64, requires_grad=True)
        for head, size in SMALL.sizes.items()
    }
    actions = {head: torch.randint(size, (batch,), generator=generator) for head, size in SMALL.sizes.items()}
    return logits, actions, torch.rand(batch, generator=generator, dtype=torch.float64)


def test_reinforce_loss_by_hand():
    logits = {"steps": torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]])}
    loss = reinforce_loss(logits, {"steps": torch.tensor([0, 1])}, torch.tensor([1.0, 0.5]))
    assert loss.item() == pytest.approx(-(math.log(0.5) + 0.5 * math.log(0.75)) / 2)
    with_baseline = reinforce_loss(
        logits, {"steps": torch.tensor([0, 1])}, torch.tensor([1.0, 0.5]), baseline=0.5
    )
    assert with_baseline.item() == pytest.approx(-0.5 * math.log(0.5) / 2)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_the_gradient_is_the_closed_form(temperature):
    logits, actions, rewards = random_batch()
    reinforce_loss(logits, actions, rewards, temperature=temperature, baseline=0.3).backward()
    for head in logits:
        chosen = torch.nn.functional.one_hot(actions[head], SMALL.sizes[head])
        probs = torch.softmax(logits[head].detach() / temperature, -1)
        expected = -(rewards - 0.3)[:, None] * (chosen - probs) / (temperature * len(rewards))
        assert torch.allclose(logits[head].grad, expected, atol=1e-6, rtol=0)


def test_the_expected_gradient_is_that_of_the_expected_reward():
    """Summed over all actions with their probabilities, REINFORCE ascends J itself, at any temperature."""
    logits, _, _ = random_batch(batch=1)
    values = torch.rand(SMALL.size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    tau = 0.7

    def joint(logits):
        probs = [boltzmann_probabilities(logits[head][0], tau) for head in HEADS]
        return torch.einsum("i,t,s->its", *probs).flatten()

    exact = torch.autograd.grad((joint(logits) * values).sum(), tuple(logits.values()))
    estimate = [torch.zeros_like(g) for g in exact]
    probabilities = joint(logits).detach()
    for index in range(SMALL.size):
        choice = SMALL.split(torch.tensor([index]))
        loss = reinforce_loss(logits, choice, values[index : index + 1], temperature=tau, baseline=0.37)
        for total, g in zip(estimate, torch.autograd.grad(loss, tuple(logits.values())), strict=True):
            total -= probabilities[index] * g
    for a, b in zip(exact, estimate, strict=True):
        assert torch.allclose(a, b, atol=1e-8)


def test_zscores_are_those_of_the_released_code_one_by_one():
    generator = torch.Generator().manual_seed(0)
    rewards, kept = torch.rand(70, generator=generator), []
    expected = []
    for reward in rewards.tolist():
        kept = [*kept, reward][-20:]
        expected.append((reward - np.mean(kept)) / (np.std(kept) + 1e-8))
    found = zscores(rewards[30:], rewards[:30], 20)
    assert found.tolist() == pytest.approx(expected[30:], abs=1e-4)
    assert zscores(rewards[:5], rewards[:0], 20).tolist() == pytest.approx(expected[:5], abs=1e-4)


def test_a_zscore_is_bounded_by_its_window_and_zero_where_all_is_equal():
    first = zscores(torch.ones(3), torch.zeros(100), 100)
    assert first[0].item() == pytest.approx(99**0.5, rel=1e-4) and first.argmax() == 0
    for value in torch.rand(50, generator=torch.Generator().manual_seed(0)):
        assert zscores(value.expand(4), value.expand(100), 100).abs().max() < 1e-4


def test_the_released_update_is_the_released_one():
    """One decision: the chosen logit moves by -rate * z / p(a), p at the temperature of sampling."""
    logits, actions, _ = random_batch(batch=1)
    tau, z = 0.5, torch.tensor([0.7], dtype=torch.float64)
    gradients = torch.autograd.grad(
        released_loss(logits, actions, z, temperature=tau), tuple(logits.values())
    )
    for head, gradient in zip(logits, gradients, strict=True):
        p = torch.softmax(logits[head][0] / tau, -1)[actions[head][0]]
        expected = torch.zeros_like(gradient)
        expected[0, actions[head][0]] = z[0] / p
        assert torch.allclose(gradient, expected, rtol=1e-4)  # the code adds 1e-8 to p


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_entropy_and_its_gradient_are_finite_where_a_probability_is_zero(dtype):
    logits = torch.tensor([[0.0, -200.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    found = entropy(boltzmann_probabilities(logits, 1.0))
    assert found.tolist() == pytest.approx([math.log(3), math.log(4)], rel=4e-3)
    found.sum().backward()
    assert torch.isfinite(logits.grad).all()


# ---- policy


def test_shapes_and_a_uniform_start():
    policy = ConfigurationPolicy(16, ActionSpace.paper())
    logits = policy(torch.randn(3, 16))
    assert {head: tuple(values.shape) for head, values in logits.items()} == {
        "instruction": (3, 100),
        "temperature": (3, 11),
        "steps": (3, 8),
    }
    assert all(not values.any() for values in logits.values())
    assert ConfigurationPolicy(16, SMALL, joint=True)(torch.randn(3, 16))["joint"].shape == (3, 24)
    factorised = sum(p.numel() for head in policy.heads.values() for p in head[-1].parameters())
    assert factorised == 119 * 65  # the sum of the head sizes, not their product
    with pytest.raises(ValueError, match="width takes a whole number from 1, got 0\nhead_layers takes"):
        ConfigurationPolicy(4, SMALL, width=0, head_layers=0)


def test_without_a_shared_trunk_each_head_has_its_own():
    policy = ConfigurationPolicy(6, SMALL, shared=False)
    assert len(policy.trunks) == 3
    torch.nn.init.normal_(policy.heads["steps"][-1].weight)
    policy(torch.randn(2, 6))["steps"].sum().backward()
    assert [trunk[0].weight.grad is not None for trunk in policy.trunks] == [False, False, True]


@pytest.mark.parametrize("head", ["steps", "joint"])
def test_propensities_multiply_to_the_joint_and_sampling_follows_them(head):
    torch.manual_seed(1)
    policy = ConfigurationPolicy(6, SMALL, joint=head == "joint")
    torch.nn.init.normal_(policy.heads[head][-1].weight)
    embedding = torch.randn(1, 6)
    decisions = choose(policy, embedding.expand(20_000, -1), temperature=0.5, seed=4)
    joint = action_probabilities(policy, embedding, 0.5)[0]
    assert joint.sum().item() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(decisions.propensity, joint[decisions.actions], atol=1e-6)
    shares = torch.bincount(decisions.actions, minlength=SMALL.size) / 20_000
    assert (shares - joint).abs().max() < 0.015


def test_greedy_takes_the_largest_logit_and_seeds_repeat():
    torch.manual_seed(1)
    policy = ConfigurationPolicy(6, SMALL)
    torch.nn.init.normal_(policy.heads["steps"][-1].weight)
    embeddings = torch.randn(50, 6)
    greedy = choose(policy, embeddings)
    assert torch.equal(greedy.choices["steps"], policy(embeddings)["steps"].argmax(-1))
    first, again, other = (choose(policy, embeddings, temperature=1.0, seed=s).actions for s in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)


# ---- learning


@pytest.mark.slow
def test_400_updates_are_enough_and_the_released_rule_ends_below_random():
    found = simulated_surface.surface_shares(1)
    assert found["ours"]["share"] >= 0.95
    assert found["ours"]["regret_second_half"] < 0.5 * found["ours"]["regret_first_half"]
    assert found["released"]["share"] < 0.7 * found["random"]["share"]
    assert found["released_sign_mended"]["share"] > 1.5 * found["random"]["share"]


class Probe:
    """An environment that counts its calls; `fail` may say which answers get lost."""

    def __init__(self, surface, *, fail=lambda call: None):
        self.surface, self.fail, self.calls, self.setting = surface, fail, 0, surface.setting

    def __call__(self, questions, actions, seed):
        self.calls += 1
        lost = self.fail(self.calls)
        rewards = self.surface(questions, actions, seed)
        return rewards if lost is None else torch.where(lost, math.nan, rewards)


def make(run=None, fail=lambda call: None, flipped=False, **options):
    embeddings, surface = simulated_surface.simulated_surface(SMALL, seed=2, questions=20)
    surface = Surface(1 - surface.values, surface.contexts) if flipped else surface
    torch.manual_seed(0)
    config = BanditConfig(**{"updates": 12, "batch_size": 8, "save_every": 4, **options})
    environment = Probe(surface, fail=fail)
    return BanditTrainer(ConfigurationPolicy(16, SMALL), embeddings, environment, config, run), environment


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])


def test_a_resumed_run_is_the_same_run(tmp_path):
    whole, _ = make()
    whole.train()
    run = start_run("t", "cpu", {})
    part, _ = make(run)
    part.train(stop_at=5)
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0}\n{"ste')  # what a killed run leaves behind
    resumed, environment = make(run)
    assert resumed.step == 5
    resumed.train()
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.decisions == whole.decisions and environment.calls == 7
    assert [row["step"] for row in run.metrics()] == list(range(1, 13))
    other, _ = make(seed=1)
    other.train()
    assert not torch.equal(weights(other), weights(whole))


def test_ctrl_c_saves_and_the_same_call_goes_on():
    """While the environment is asked it does not wait for the reply: nothing is learnt before."""
    run = start_run("t", "cpu", {})

    def interrupt(call):
        if call == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)

    trainer, _ = make(run, fail=interrupt)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="saved at update 2"):
        trainer.train()
    assert time.monotonic() - begun < 10
    again, environment = make(run)
    again.train()
    whole, _ = make()
    whole.train()
    assert again.step == 12 and environment.calls == 10 and torch.equal(weights(again), weights(whole))


def test_ctrl_c_between_two_questions_waits_for_the_update(monkeypatch):
    run = start_run("t", "cpu", {})
    trainer, _ = make(run)
    record = trainer._record
    stops = iter([False, True])
    monkeypatch.setattr(
        trainer, "_record", lambda *a: (next(stops) and os.kill(os.getpid(), signal.SIGINT), record(*a))[1]
    )
    with pytest.raises(KeyboardInterrupt, match="saved at update 2"):
        trainer.train()
    assert make(run)[0].step == 2 and len(run.metrics()) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_scheduler_that_ends_a_job_loses_no_update(number, monkeypatch):
    """The process would end by the signal; here it is only noted."""
    run, ended = start_run("t", "cpu", {}), []
    monkeypatch.setattr("signal.raise_signal", ended.append)
    before = signal.signal(number, signal.SIG_DFL)
    trainer, _ = make(run, fail=lambda call: os.kill(os.getpid(), number) if call == 3 else None)
    with pytest.raises(KeyboardInterrupt, match="saved at update 2"):
        trainer.train()
    assert ended == [number] and signal.signal(number, before) == signal.SIG_DFL
    assert make(run)[0].step == 2


def test_a_kill_before_the_first_save_leaves_no_rows_behind(monkeypatch):
    run = start_run("t", "cpu", {})
    trainer, _ = make(run, fail=lambda call: 1 / 0 if call == 3 else None)
    monkeypatch.setattr(trainer, "save", lambda: None)  # a kill does not save
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    make(run)[0].train()
    assert [row["step"] for row in run.metrics()] == list(range(1, 13))


def test_two_trainers_of_one_run_train_it_once():
    """Both were built before either trained: twelve rows for six updates, and the first was lost."""
    run = start_run("t", "cpu", {})
    (first, _), (second, asked) = make(run, updates=6), make(run, updates=6)
    first.train()
    rows = run.metrics()
    assert [row["step"] for row in second.train()] == list(range(1, 7)) and asked.calls == 0
    assert run.metrics() == rows and torch.equal(weights(first), weights(second))
    assert second.decisions == first.decisions and second.train() == rows


def test_a_trainer_goes_on_with_its_own_settings_whoever_trained_since():
    run = start_run("t", "cpu", {})
    first, _ = make(run)
    first.train(stop_at=5)
    other, _ = make(run, seed=1)
    other.train(stop_at=7)
    first.train()
    assert [row["step"] for row in run.metrics()] == list(range(1, 13))
    whole, _ = make()
    whole.train()
    assert torch.equal(weights(first), weights(whole)) and first.decisions == whole.decisions
    assert make(run, seed=1)[0].step == 7


def test_two_processes_cannot_train_one_policy():
    run = start_run("t", "cpu", {})
    trainer, _ = make(run)
    with run.alone():
        with pytest.raises(HeldError, match="Another process trains in"):
            make(run)
        with pytest.raises(HeldError, match="Another process trains in"):
            trainer.train()


def test_what_was_not_answered_is_not_learnt_from():
    lost = torch.tensor([True, False] * 4)
    trainer, _ = make(fail=lambda call: lost, updates=3)
    trainer.train()
    assert sum(d["reward"] is None for d in trainer.decisions) == 12
    assert trainer.history[0]["answered"] == 0.5
    assert torch.isfinite(weights(trainer)).all()


def test_no_answer_at_all_stops_and_keeps_what_was_learnt():
    run = start_run("t", "cpu", {})
    trainer, _ = make(run, fail=lambda call: torch.ones(8, dtype=bool) if call == 7 else None)
    with pytest.raises(NoAnswersError, match="update 7"):
        trainer.train()
    again, _ = make(run)
    assert again.step == 6 and len(again.decisions) == 48
    again.train()
    whole, _ = make()
    whole.train()
    assert torch.equal(weights(again), weights(whole))


def test_heads_that_do_not_choose_stay_random():
    trainer, _ = make(heads=("steps",), updates=30, batch_size=32)
    trainer.train()
    used = torch.bincount(SMALL.split(torch.tensor([d["action"] for d in trainer.decisions]))["instruction"])
    assert (used / used.sum() - 1 / 3).abs().max() < 0.06
    assert all(d["propensities"]["instruction"] == pytest.approx(1 / 3) for d in trainer.decisions)
    assert not trainer.policy.heads["instruction"][-1].weight.any()


BAD_VALUES = ["no_such_name", None, -1, 0.5, float("nan"), True, (), ("step",)]


@pytest.mark.parametrize("field", [field.name for field in fields(BanditConfig)])
def test_every_field_refuses_what_it_does_not_allow(field):
    refused = [value for value in BAD_VALUES if not accepts(field, value)]
    assert len(refused) >= 4 and "no_such_name" in refused
    for value in refused:
        with pytest.raises(ValueError, match=rf"BanditConfig\.{field}\S* takes "):
            BanditConfig(**{field: value})


def accepts(field, value):
    try:
        BanditConfig(**{field: value})
    except ValueError:
        return False
    return True


def test_an_llm_as_environment_scores_replies_and_never_failures():
    class Echo:
        def ask(self, requests):
            self.requests = requests
            return [None if "q2" in r.prompt else r.prompt for r in requests]

    llm = Echo()
    environment = LLMEnvironment(
        llm,
        ["q0", "q1", "q2"],
        SMALL,
        render=lambda q, a: f"{q} {a.instruction} {a.steps}",
        reward=lambda q, reply: float("q0" in reply),
    )
    actions = torch.tensor([SMALL.encode(("b", 0.5, 4)), SMALL.encode(("a", 0.0, 1)), 0, 0])
    rewards = environment(torch.tensor([0, 1, 2, 0]), actions, seed=7)
    assert rewards[[0, 1, 3]].tolist() == [1.0, 0.0, 1.0] and rewards[2].isnan()
    assert llm.requests[0] == Request("q0 b 4", 0.5, 28)
    assert llm.requests[1].seed == 0  # greedy: the same answer whatever the seed


def test_a_surface_says_what_does_not_fit():
    with pytest.raises(ValueError, match="values must lie"):
        Surface(torch.tensor([[2.0]]), torch.tensor([0]))
    with pytest.raises(ValueError, match="contexts name row 3"):
        Surface(torch.tensor([[0.5]]), torch.tensor([3]))


def test_another_configuration_does_not_resume_the_checkpoint_of_the_last(capsys):
    run = start_run("t", "cpu", {})
    make(run)[0].train()
    changed, _ = make(run, learning_rate=0.1)
    assert changed.step == 0 and "learning_rate 0.1, was" in capsys.readouterr().out
    changed.train()
    expected, _ = make(learning_rate=0.1)
    expected.train()
    assert torch.equal(weights(changed), weights(expected)) and changed.decisions == expected.decisions


def test_another_environment_is_another_training_and_the_last_one_comes_back(capsys):
    run = start_run("t", "cpu", {})
    first, _ = make(run)
    first.train()
    assert "is used" not in capsys.readouterr().out
    changed, environment = make(run, flipped=True)
    assert changed.step == 0 and "(environment " in capsys.readouterr().out
    changed.train()
    expected, _ = make(flipped=True)
    expected.train()
    assert environment.calls == 12 and torch.equal(weights(changed), weights(expected))
    again, environment = make(run)
    assert "trained before, on" in capsys.readouterr().out and again.train() == first.history
    assert environment.calls == 0 and torch.equal(weights(again), weights(first))


class Replies:
    """A frozen LLM that is known by a name."""

    def __init__(self, name="m"):
        self.setting = name

    def ask(self, requests):
        return [request.prompt for request in requests]


def an_environment(**changed):
    def reward(question, reply):
        return float(len(reply) > len(question))

    given = {"llm": Replies(), "questions": ["q0", "q1"], "action_space": SMALL, "reward": reward}
    return LLMEnvironment(**given | {"render": lambda q, a: f"{q} {a.instruction} {a.steps}"} | changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"llm": Replies("another")},
        {"questions": ["q0", "q2"]},
        {"questions": ["q0"]},
        {"action_space": ActionSpace(("a", "b", "d"), (0.0, 0.5), (1, 2, 4, 8))},
        {"action_space": ActionSpace(("a", "b", "c"), (0.0, 0.7), (1, 2, 4, 8))},
        {"render": lambda question, action: f"{question} {action.instruction} {action.steps}!"},
        {"reward": lambda question, reply: 1.0},
        {"samples": 2},
    ],
)
def test_whatever_decides_a_reward_is_in_the_setting_of_the_environment(changed):
    assert an_environment().setting == an_environment().setting != an_environment(**changed).setting


def test_frozen_llms_say_what_they_are(tmp_path):
    servers = [ChatServer("http://x/v1", name, tmp_path) for name in ("m", "n")]
    made = [ServerLLM(servers[0]), ServerLLM(servers[1]), ServerLLM(servers[0], max_tokens=9)]
    made += [ServerLLM(servers[0], top_p=0.5)]
    made += [LocalLLM(load_policy("dial-llm"), max_new_tokens=room) for room in (160, 9)]
    made += [LocalLLM(load_policy("dial-sft"))]
    assert len({str(llm.setting) for llm in made}) == len(made)
    moved = ServerLLM(ChatServer("http://elsewhere/v1", "m", tmp_path))
    assert moved.setting == made[0].setting  # the same model may move
    assert LocalLLM(load_policy("dial-llm")).setting == made[4].setting


def test_an_environment_that_nothing_describes_is_refused():
    run, (trainer, _) = start_run("t", "cpu", {}), make()
    with pytest.raises(ValueError, match="give it an attribute `setting`"):
        BanditTrainer(trainer.policy, trainer.embeddings, Replies().ask, run=run)
