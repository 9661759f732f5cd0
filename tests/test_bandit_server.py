"""Training against a real server on loopback that serves the dial LLM, and fails in the known ways."""

import math
import threading
import time

import pytest
import torch
from chat_server import completion, serving

from lib import dial_llm
from lib.adareasoner import (
    ActionSpace,
    BanditConfig,
    BanditTrainer,
    ConfigurationPolicy,
    LLMEnvironment,
    NoAnswersError,
)
from lib.llms import ChatServer, LocalLLM, Request, ServerError, ServerLLM
from lib.models import load_policy
from lib.runs import start_run

SPACE = ActionSpace.dial()
QUESTIONS = dial_llm.sample_kind_questions(12, seed=0, split="validation")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def dial():
    return LocalLLM(*load_policy("dial-llm"))


def answering(dial, lock):
    """A chat server's answer by the dial LLM, greedily: replies do not depend on who asks first."""

    def answer(prompt, attempt):
        with lock:
            (text,) = dial.ask([Request(prompt, 0.0)])
        return 200, completion(text)

    return answer


def trainer(url, folder, run=None, **options):
    server = ChatServer(url, "m", folder, **{"backoff": 0.01, "retries": 1, "timeout": 5.0, **options})
    environment = LLMEnvironment(
        ServerLLM(server),
        QUESTIONS,
        SPACE,
        render=lambda question, action: dial_llm.prompt(question, action.instruction, action.steps),
        reward=lambda question, reply: float(dial_llm.read_answer(reply) == question.answer),
    )
    torch.manual_seed(0)
    embeddings = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    config = BanditConfig(updates=4, batch_size=6, save_every=1)
    return BanditTrainer(ConfigurationPolicy(8, SPACE), embeddings, environment, config, run)


@pytest.fixture
def lock():
    return threading.Lock()


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.policy.parameters()])


def test_a_server_trains_the_policy_as_the_local_model_does(dial, lock, tmp_path):
    with serving(answering(dial, lock)) as (url, _, server):
        remote = trainer(url, tmp_path)
        remote.train()
        assert server.seen["top_p"] == 0.1 and server.seen["messages"][0]["role"] == "user"
        assert set(server.seen) >= {"temperature", "seed", "max_tokens"}
    local = trainer(url, tmp_path)
    greedy = LLMEnvironment(
        dial,
        QUESTIONS,
        SPACE,
        render=local.environment.render,
        reward=local.environment.reward,
    )
    for decision in remote.decisions:
        question, action = torch.tensor([decision["question"]]), SPACE.decode(decision["action"])
        cold = torch.tensor([SPACE.encode(action._replace(temperature=0.0))])
        assert greedy(question, cold, 0).tolist() == [decision["reward"]]
    assert {decision["reward"] for decision in remote.decisions} == {0.0, 1.0}


@pytest.mark.parametrize(
    "failure",
    [
        (429, {"error": "slow down"}),
        (500, b"oops"),
        (200, b"<html>"),
        (200, {"choices": []}),
        (200, completion("")),
    ],
)
def test_now_and_then_a_failure_is_left_out_and_the_run_goes_on(failure, dial, lock, tmp_path):
    works = answering(dial, lock)

    def answer(prompt, attempt):
        return failure if "think" in prompt else works(prompt, attempt)

    with serving(answer) as (url, *_):
        made = trainer(url, tmp_path)
        made.train()
    lost = [d for d in made.decisions if d["reward"] is None]
    assert lost and made.step == 4 and torch.isfinite(weights(made)).all()
    assert all(SPACE.decode(d["action"]).instruction == "think" for d in lost)


def test_a_slow_server_is_given_up_for_that_request_only(dial, lock, tmp_path):
    works = answering(dial, lock)

    def answer(prompt, attempt):
        if "Jot" in prompt:
            time.sleep(1.0)
        return works(prompt, attempt)

    with serving(answer) as (url, *_):
        made = trainer(url, tmp_path, timeout=0.4, retries=0)
        made.train(stop_at=2)
    assert any(d["reward"] is None for d in made.decisions)
    assert any(d["reward"] is not None for d in made.decisions)


def test_a_server_killed_in_between_stops_cleanly_and_the_run_goes_on_later(dial, lock, tmp_path):
    whole_run, run = start_run("whole", "cpu", {}), start_run("killed", "cpu", {})
    with serving(answering(dial, lock)) as (url, *_):
        whole = trainer(url, tmp_path / "a", whole_run)
        whole.train()
    with serving(answering(dial, lock)) as (url, *_):
        made = trainer(url, tmp_path / "b", run)
        made.train(stop_at=2)
    with pytest.raises(NoAnswersError, match="update 3"):  # nobody is there any more
        made.train()
    assert made.step == 2 and (run.checkpoint / "policy.safetensors").exists()
    kept = len(list((tmp_path / "b").glob("*.json")))
    assert kept > 0
    with serving(answering(dial, lock)) as (url, calls, _):
        again = trainer(url, tmp_path / "b", run)
        assert again.step == 2
        again.train()
        asked = sum(calls.values())
    assert asked == len(list((tmp_path / "b").glob("*.json"))) - kept  # nothing is asked twice
    assert torch.equal(weights(again), weights(whole)) and again.decisions == whole.decisions


def test_a_server_that_refuses_all_stops_at_once_and_keeps_the_checkpoint(tmp_path):
    run = start_run("refused", "cpu", {})
    with serving(lambda *_: (401, b"bad key")) as (url, *_):
        made = trainer(url, tmp_path, run)
        with pytest.raises(ServerError, match="Check the address, the key"):
            made.train()
    assert made.step == 0 and (run.checkpoint / "policy.safetensors").exists()
    assert not any(math.isnan(x) for x in weights(made).tolist())
