"""Training through a chat server on loopback: one that fails on demand, and `transformers serve`."""

import math
import threading
import time

import pandas as pd
import pytest
import torch
from chat_server import completion, save_chat_checkpoint, serving, transformers_serving
from test_real_contest import dial_contest

from lib.bandit.environments import LLMEnvironment
from lib.bandit.learner import ConfigurationPolicy
from lib.bandit.llms import CUT, LocalLLM, Request, ServerLLM
from lib.bandit.training import BanditConfig, BanditTrainer, NoAnswersError
from lib.dial import frozen_llm
from lib.engines.server import ChatServer, ServerError
from lib.policies.load import load_policy
from lib.runs import start_run
from lib.studies import real_tables

SPACE = frozen_llm.action_space()
QUESTIONS = frozen_llm.sample_mixture_questions(12, seed=0, split="validation")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def dial():
    return LocalLLM(load_policy("dial-llm"))


def answering(dial, lock):
    """A chat server's answer by the dial LLM, greedily: replies do not depend on who asks first."""

    def answer(prompt, attempt):
        with lock:
            (text,) = dial.ask([Request(prompt, 0.0)])
        return 200, completion(text)

    return answer


def trainer(url, folder, run=None, *, updates=4, model="m", **options):
    server = ChatServer(url, model, folder, **{"backoff": 0.01, "retries": 1, "timeout": 5.0, **options})
    environment = LLMEnvironment(
        ServerLLM(server),
        QUESTIONS,
        SPACE,
        render=lambda question, action: frozen_llm.prompt(question, action.instruction, action.steps),
        reward=lambda question, reply: float(frozen_llm.read_answer(reply) == question.answer),
    )
    torch.manual_seed(0)
    embeddings = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    config = BanditConfig(updates=updates, batch_size=6, save_every=1)
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
            time.sleep(4.0)
        return works(prompt, attempt)

    with serving(answer) as (url, *_):
        made = trainer(url, tmp_path, timeout=2.0, retries=0)
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


# ---- a real server: `transformers serve` with the dial LLM's checkpoint


@pytest.fixture(scope="module")
def chat_checkpoint(tmp_path_factory):
    return save_chat_checkpoint(tmp_path_factory.mktemp("dial-llm"))


@pytest.fixture(scope="module")
def served(chat_checkpoint, tmp_path_factory):
    with transformers_serving(chat_checkpoint, tmp_path_factory.mktemp("server") / "log") as (url, _):
        yield url


@pytest.mark.slow
def test_a_real_server_replies_as_the_local_model_does(dial, served, chat_checkpoint, tmp_path):
    server = ChatServer(served, str(chat_checkpoint), tmp_path, timeout=60.0)
    remote = ServerLLM(server, max_tokens=dial.max_new_tokens, top_p=1.0)
    prompts = [frozen_llm.prompt(q, style, 4) for q in QUESTIONS for style in frozen_llm.STYLES]
    requests = [Request(prompt, 0.0) for prompt in prompts]
    assert remote.ask(requests) == dial.ask(requests)
    sampled = [Request(prompts[0], 1.0, seed) for seed in range(8)]
    assert len(set(remote.ask(sampled))) > 1
    assert ServerLLM(server, max_tokens=3).ask(requests[:1]) == [CUT]
    refused = ChatServer(served, "another-model", tmp_path)
    assert "pinned" in refused.ask([{"messages": [], "max_tokens": 1}], show=lambda _: None)[0].problem


@pytest.mark.slow
def test_all_rivals_meet_through_a_real_server_and_pay_once(served, chat_checkpoint, tmp_path):
    server = ChatServer(served, str(chat_checkpoint), tmp_path / "replies", timeout=60.0)
    llm = ServerLLM(server, max_tokens=60, top_p=1.0)
    made, lines = dial_contest(llm, budget=24, test=6), []
    assert "requests to send (0 more are cached)" in made.estimate()
    answers = made.run(start_run("contest", "cpu", {}), show=lines.append)
    assert "min in all" in lines[0] and answers["correct"].isin([0.0, 1.0]).all()
    table = real_tables.summary(answers)
    print(table.round(2).to_string(), real_tables.spent(tmp_path / "replies"))
    assert (table["n"] == 6).all() and table.loc["learned", "learnt from"] == 24
    spent = real_tables.spent(tmp_path / "replies")
    assert spent["tokens out"] > 0 and spent["replies"] <= len(made.requests()) + 1
    gone = ChatServer("http://127.0.0.1:9/v1", str(chat_checkpoint), tmp_path / "replies", retries=0)
    again = dial_contest(ServerLLM(gone, max_tokens=60, top_p=1.0), budget=24, test=6)
    pd.testing.assert_frame_equal(again.run(show=lines.append), answers)  # nobody is there: all is kept


@pytest.mark.slow
def test_a_policy_is_trained_through_a_real_server(dial, served, chat_checkpoint, tmp_path):
    made = trainer(served, tmp_path, model=str(chat_checkpoint), timeout=60.0)
    begun = weights(made)
    made.train()
    assert made.step == 4 and not torch.equal(weights(made), begun) and torch.isfinite(weights(made)).all()
    assert {decision["reward"] for decision in made.decisions} == {0.0, 1.0}  # nothing was lost
    greedy = [d for d in made.decisions if SPACE.decode(d["action"]).temperature == 0]
    local = LLMEnvironment(dial, QUESTIONS, SPACE, made.environment.render, made.environment.reward)
    columns = [torch.tensor([decision[name] for decision in greedy]) for name in ("question", "action")]
    assert greedy and local(*columns, 0).tolist() == [decision["reward"] for decision in greedy]


@pytest.mark.slow
def test_a_real_server_killed_in_mid_training_loses_nothing_that_was_answered(chat_checkpoint, tmp_path):
    run, replies, log = start_run("real_killed", "cpu", {}), tmp_path / "replies", tmp_path / "log"
    options = {"model": str(chat_checkpoint), "updates": 40, "timeout": 60.0}

    def kept():
        return {path.name: path.read_bytes() for path in replies.glob("*.json")}

    with transformers_serving(chat_checkpoint, log) as (url, process):
        made = trainer(url, replies, run, **options)

        def kill_soon():
            while len(kept()) < 15 and process.poll() is None:
                time.sleep(0.01)
            process.kill()

        killer = threading.Thread(target=kill_soon, daemon=True)
        killer.start()
        with pytest.raises(NoAnswersError, match="it goes on from here"):
            made.train()
        killer.join()
    before = kept()
    assert len(before) >= 15 and 2 <= made.step < 40
    replay = trainer(url, replies, **options)  # nobody is there: every reward comes from what was kept
    replay.train(stop_at=made.step)
    assert replay.decisions == made.decisions and torch.equal(weights(replay), weights(made))
    with transformers_serving(chat_checkpoint, log) as (url, _):
        again = trainer(url, replies, run, **options)
        assert again.step == made.step and again.decisions == made.decisions
        again.train(stop_at=made.step + 3)
    assert again.step == made.step + 3 and all(d["reward"] is not None for d in again.decisions[-18:])
    after = kept()
    assert before.items() <= after.items()
    assert log.read_text().count("POST /v1/chat/completions") == len(after) - len(before)  # none asked twice
