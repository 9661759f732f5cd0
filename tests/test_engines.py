"""Engines: token ids in, token ids out; whoever asks in words gets the same from each of them."""

import json
import os
import signal
import socket
import socketserver
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from threading import Thread, Timer

import pytest
from chat_server import transformers_serving
from faults.hostile_server import broken_transport

from lib.dial import (
    WORLDS,
    dial_tasks,
    dial_tokenizer,
    gold_response,
    new_dial_model,
    parse_question,
    token_cost,
)
from lib.engines import serve
from lib.engines.ask import Response, ask, load_engine, read_tagged, respond, score
from lib.engines.base import Completion, Kept, Request, Sampling
from lib.engines.completions import ServerEngine
from lib.engines.local import TransformersEngine
from lib.engines.server import ServerError
from lib.formats import ReasoningFormat
from lib.methods.readings import accuracy_reward
from lib.policies.load import CHECKPOINTS
from lib.tasks import task_rows
from lib.verify import is_response_correct


@pytest.fixture(scope="module")
def engine():
    return TransformersEngine(new_dial_model(seed=0).eval(), dial_tokenizer())


def prompts_of(count, *depths):
    return [task.prompt for task in dial_tasks(count, seed=0, depths=depths)]


def test_batching_and_padding_change_nothing_and_the_prefix_counts(engine):
    prompts = prompts_of(7, 9, 1, 5)
    small = TransformersEngine(engine.model, engine.tokenizer, batch_size=3)
    few_tokens = TransformersEngine(engine.model, engine.tokenizer, batch_tokens=90)
    options = {"prefix": "<COT>\n", "max_new_tokens": 5}
    alone = [respond(engine, [prompt], **options)[0] for prompt in prompts]
    assert respond(small, prompts, **options) == respond(few_tokens, prompts, **options) == alone
    for response in alone:
        assert response.text.startswith("<COT>\n")
        assert response.tokens == 6 if response.truncated else response.tokens <= 6
    assert respond(engine, []) == []


def test_sampling_is_seeded(engine):
    prompts = prompts_of(4, 1, 5)
    one, same, other = (
        respond(engine, prompts, max_new_tokens=8, sampling=Sampling(1.0, seed=seed)) for seed in (0, 0, 1)
    )
    assert one == same != other
    with pytest.raises(ValueError, match="temperature takes a finite number from 0, got"):
        Sampling(-1.0)
    with pytest.raises(ValueError, match="top_p takes a finite number above 0 up to 1, got"):
        Sampling(1.0, top_p=0)


class Reciter:
    """An engine that knows what to write: a text for each prompt."""

    def __init__(self, texts):
        self.tokenizer, self.texts, self.asked = dial_tokenizer(), texts, 0

    def generate(self, requests, sampling):
        self.asked += len(requests)
        prompts = [self.tokenizer.decode(list(request.prompt_ids)) for request in requests]
        ids = [self.tokenizer(self.texts[prompt]).input_ids for prompt in prompts]
        return [Completion((*row, self.tokenizer.eos_token_id), truncated=False) for row in ids]


def test_gold_responses_are_right_at_their_closed_form_cost():
    tasks = dial_tasks(24, seed=0, depths=range(1, 13))
    gold = {t.prompt: gold_response(parse_question(t.question), ReasoningFormat.CODE) for t in tasks}
    rollouts = ask(Reciter(gold), tasks, mode="code", seed=3, method="gold")
    assert all(rollout.correct and not rollout.truncated for rollout in rollouts)
    assert [r.tokens for r in rollouts] == [token_cost(ReasoningFormat.CODE, t.depth) for t in tasks]
    assert {(r.method, r.mode, r.format, r.seed) for r in rollouts} == {("gold", "code", "code", 3)}
    wrong = ask(Reciter(gold), tasks, read=lambda text: (None, "x"))
    assert not any(rollout.correct for rollout in wrong)


@pytest.mark.parametrize("world", WORLDS)
def test_the_kind_of_a_task_reaches_measuring_and_training_alike(world):
    """The kind was guessed in two places, each in its own way: training never earned anything."""
    tasks = dial_tasks(12, split="train", seed=0, world=world)
    rows = task_rows(tasks)
    gold = [gold_response(parse_question(task.question), ReasoningFormat.DIRECT) for task in tasks]
    columns = {name: [row[name] for row in rows] for name in ("answer", "kind")}
    assert accuracy_reward(is_response_correct)(completions=gold, **columns) == [1.0] * 12
    scored = [
        score(task, Response(text, 4, False), read_tagged, sample=0, seed=0, method="", mode="")
        for task, text in zip(tasks, gold, strict=True)
    ]
    assert all(rollout.correct for rollout in scored)


def test_samples_of_a_task_are_counted():
    [task] = dial_tasks(1, seed=0)
    engine = Reciter({task.prompt: "It shows 3."})
    assert [(r.sample, r.text) for r in ask(engine, [task] * 3)] == [(n, "It shows 3.") for n in range(3)]


def test_a_killed_measurement_goes_on_where_it_was(tmp_path):
    tasks = dial_tasks(10, seed=0, distinct=True)
    texts = {
        task.prompt: gold_response(parse_question(task.question), ReasoningFormat.CODE) for task in tasks
    }
    path = tmp_path / "kept.jsonl"
    first = Kept(Reciter(texts), path, at_once=3)
    whole = ask(first, tasks * 2)
    assert first.engine.asked == 20 and len(path.read_text().splitlines()) == 20
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:11]) + lines[11][:20])  # killed in mid-write
    again = Kept(Reciter(texts), path, at_once=3)
    assert ask(again, tasks * 2) == whole and again.engine.asked == 9
    assert all(json.loads(line)["digest"] for line in path.read_text().splitlines())
    ask(again, tasks, seed=1)
    assert again.engine.asked == 19  # another question to the engine, not the same
    with pytest.raises(ValueError, match="give each a key of its own"):
        respond(again, [tasks[0].prompt] * 2)


def test_what_is_kept_is_what_the_engine_draws(engine, tmp_path):
    tasks = dial_tasks(6, seed=0)
    options = {"temperature": 1.0, "max_new_tokens": 8, "seed": 4}
    kept = Kept(engine, tmp_path / "kept.jsonl")
    drawn = ask(engine, tasks, **options)
    assert ask(kept, tasks, **options) == ask(kept, tasks, **options) == drawn


# ---- a server ------------------------------------------------------------------------------------


@contextmanager
def completing(reply):
    """`reply(body)` gives (status, choice) of /v1/completions; yields the address and what it saw."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, choice = reply(seen[-1])
            body = json.dumps({"id": "1", "object": "text_completion", "choices": [choice]}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_continues_token_ids(engine, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    tokenizer = engine.tokenizer
    end, digit = tokenizer.eos_token_id, tokenizer("7").input_ids[0]
    replies = {
        5: {"text": "7 7", "finish_reason": "stop", "token_ids": [digit, digit, end]},
        6: {"text": "7", "finish_reason": "length", "token_ids": [digit]},
        7: {"text": "7", "finish_reason": "stop"},  # a server that names no ids
    }
    with completing(lambda body: (200, {"index": 0} | replies[body["max_tokens"]])) as (url, seen):
        server = ServerEngine(url, "m", tokenizer)
        requests = [Request((1, 2), (3,), max_new_tokens=room) for room in replies]
        assert server.generate(requests, Sampling(0.7, 0.9, seed=4)) == [
            Completion((3, digit, digit, end), truncated=False),
            Completion((3, digit), truncated=True),
            Completion((3, digit, end), truncated=False),
        ]
    assert all(body["prompt"] == [1, 2, 3] and body["model"] == "m" for body in seen)
    assert {(body["temperature"], body["top_p"]) for body in seen} == {(0.7, 0.9)}
    assert len({body["seed"] for body in seen}) == 3  # else all samples of a prompt would be one


def test_a_server_that_fails_says_so_and_what_came_before_is_kept(engine, monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    works = {"text": "7", "finish_reason": "stop", "index": 0}
    with completing(lambda body: (401, works) if body["max_tokens"] == 9 else (200, works)) as (url, seen):
        kept = Kept(ServerEngine(url, "m", engine.tokenizer, retries=0), tmp_path / "kept.jsonl", at_once=2)
        requests = [Request((1,), max_new_tokens=room, key=("t", room)) for room in (5, 6, 9)]
        with pytest.raises(ServerError, match=r"gives no completion.*: .*401.*Check the address, the key"):
            kept.generate(requests, Sampling())
        asked = len(seen)
        assert len(kept.generate(requests[:2], Sampling())) == 2 and len(seen) == asked


@pytest.fixture
def asked_of(engine, monkeypatch):
    """A `ServerEngine` with a key at an address, and one request for it."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("A_KEY", "sk-very-secret")
    monkeypatch.setattr("lib.engines.server.LONGEST_WAIT", 0.05)

    def ask(url, rooms=(5,), **options):
        given = {"key_variable": "A_KEY", "timeout": 2.0, "retries": 1, **options}
        server = ServerEngine(url, "m", engine.tokenizer, **given)
        return server.generate([Request((1,), max_new_tokens=room) for room in rooms], Sampling())

    return ask


def text_of(word, **fields):
    return {"text": word, "finish_reason": "stop", "index": 0, **fields}


def test_nobody_at_a_servers_address_ends_soon(asked_of):
    begun = time.monotonic()
    with pytest.raises(ServerError, match=r"nobody is there: .*Check the address"):
        asked_of("http://127.0.0.1:9/v1", range(1, 300), retries=5)
    assert time.monotonic() - begun < 15


@pytest.mark.parametrize(
    "fault",
    [
        ("a body that drips", "no complete reply within 2 s"),
        ("a body that stalls", "no complete reply within 2 s"),
        ("a head that drips", "no complete reply within 2 s"),
        ("a body without end", "(more than|no complete reply)"),
        ("a bomb", "more than"),
        ("an end in the body", "no completion"),
        ("noise", "no completion"),
    ],
    ids=lambda fault: fault[0],
)
def test_a_servers_broken_reply_ends_within_its_time_and_its_size(fault, asked_of):
    name, said = fault
    play = broken_transport()[name]
    with listening(play) as url:
        begun = time.monotonic()
        with pytest.raises(ServerError, match=rf"no completion for 1 of 1 requests: .*{said}.* \(1 tries\)"):
            asked_of(url, retries=0)
        assert time.monotonic() - begun < 8


@contextmanager
def listening(play):
    """An address where every request gets these bytes, or what plays them."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            with suppress(OSError):
                self.request.recv(2**16)
                play(self.request, {}) if callable(play) else self.request.sendall(play)
                self.request.shutdown(socket.SHUT_WR)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


@pytest.mark.parametrize(
    "wrong",
    [
        text_of("7", finish_reason="abort"),
        text_of(None),
        text_of("7", token_ids=["a"]),
        text_of("7", token_ids=7),
        text_of("7", logprobs=[1]),
        None,
        [],
    ],
)
def test_a_completion_that_is_none_is_asked_for_again(wrong, asked_of):
    seen = []

    def reply(body):
        seen.append(body["max_tokens"])
        return 200, wrong if body["max_tokens"] == 6 and seen.count(6) == 1 else text_of("7")

    with completing(reply) as (url, _):
        assert len(asked_of(url, (5, 6, 8))) == 3 and sorted(seen) == [5, 6, 6, 8]


def test_half_a_character_in_a_completion_takes_no_other_with_it(engine, asked_of, tmp_path):
    halves = {6: text_of("7 \ud800"), 8: text_of("7", usage={"\ud800": "\ud800"}, token_ids=[1])}
    with completing(lambda body: (200, halves.get(body["max_tokens"], text_of("7")))) as (url, seen):
        found = asked_of(url, (5, 6, 8))
    end, (digit, unknown) = engine.tokenizer.eos_token_id, engine.tokenizer("7 \ufffd").input_ids
    assert [one.ids for one in found] == [(digit, end), (digit, unknown, end), (1,)] and len(seen) == 3


def test_one_completion_that_cannot_be_had_takes_no_other_with_it(engine, asked_of):
    broken = [6]

    def reply(body):
        return (503, "asleep") if body["max_tokens"] in broken else (200, text_of("7"))

    requests = [Request((1,), max_new_tokens=room) for room in (5, 6, 8)]
    with completing(reply) as (url, seen):
        server = ServerEngine(url, "m", engine.tokenizer, retries=1)
        with pytest.raises(ServerError, match=r"for 1 of 3 requests: HTTP 503: .*asleep.* \(2 tries\)"):
            server.generate(requests, Sampling())
        assert len(seen) == 4
        broken.clear()
        assert len(server.generate(requests, Sampling())) == 3 and len(seen) == 5  # one alone is sent
        server.generate(requests, Sampling())
        assert len(seen) == 8  # what was given is not kept


def test_first_tokens_that_were_had_are_not_asked_for_again(engine, asked_of):
    """A token that may not come first is kept away from a request of one token, and a second one goes on."""
    broken = [3]

    def reply(body):
        first, room = body["max_tokens"] == 1, body["max_tokens"]
        status = 503 if room in broken else 200
        return status, text_of("7", **({"finish_reason": "length", "token_ids": [5]} if first else {}))

    requests = [
        Request((room,), max_new_tokens=room + 1, key=("t", room), never_first=(4,)) for room in range(2, 12)
    ]
    with completing(reply) as (url, seen):
        server = ServerEngine(url, "m", engine.tokenizer, retries=0)
        with pytest.raises(ServerError, match="for 1 of 10 requests"):
            server.generate(requests, Sampling())
        assert len(seen) == 20
        broken.clear()
        found = server.generate(requests, Sampling())
        assert len(found) == 10 and len(seen) == 21 and not server.drawn


def test_a_completion_servers_words_come_without_the_key(asked_of):
    refusing = completing(lambda body: (400, "wrong key sk-very-secret"))
    with refusing as (url, _), pytest.raises(ServerError, match=r"wrong key \[key\]"):
        asked_of(url)


def test_ctrl_c_ends_a_call_of_a_completion_server(asked_of):
    with listening(broken_transport()["nothing at all"]) as url:
        Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            asked_of(url, range(1, 20), timeout=60.0)
        assert time.monotonic() - begun < 20


def test_an_engine_by_name():
    assert isinstance(load_engine("transformers", "dial-llm", batch_size=8), TransformersEngine)
    server = load_engine("server", "dial-llm", url="http://localhost:1/v1")
    assert isinstance(server, ServerEngine) and server.tokenizer.eos_token == "<end>"
    with pytest.raises(ValueError, match="'sglang' is not one of transformers, vllm, server"):
        load_engine("sglang", "dial-llm")
    with pytest.raises(ValueError, match='"server" needs url'):
        load_engine("server", "dial-llm")


def test_a_command_runs_beside_a_server_of_vllm(monkeypatch, capfd):
    served = []

    @contextmanager
    def serving(*named):
        served.append(named)
        yield "http://here/v1"

    monkeypatch.setattr(serve, "serving", serving)
    assert serve.main(["dial-arm", "--seed", "1", "--", "sh", "-c", "echo asked {url}; exit 7"]) == 7
    [(base, _, options)] = served
    assert (base, options) == (
        "dial-arm",
        ["--seed", "1"],
    ) and "asked http://here/v1" in capfd.readouterr().out
    with pytest.raises(SystemExit, match="COMMAND"):
        serve.main(["dial-arm"])


@pytest.mark.skipif(bool(find_spec("vllm")), reason="vLLM is here, and would start")
def test_without_vllm_it_says_so(tmp_path):
    with pytest.raises(ImportError, match=r"No module named 'vllm'.*see README"):
        load_engine("vllm", "dial-arm")
    with (
        pytest.raises(ServerError, match=r"(?s)not up \(exit status 1\).*No module named 'vllm'"),
        serve.serving("dial-arm", tmp_path / "log"),
    ):
        pass


@pytest.mark.slow
def test_transformers_serve_writes_what_the_engine_writes(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    checkpoint = CHECKPOINTS / "dial-arm"
    local, tasks = load_engine("transformers", "dial-arm"), dial_tasks(4, seed=0)
    with transformers_serving(checkpoint, tmp_path / "log") as (url, _):
        server = ServerEngine(url, str(checkpoint), local.tokenizer, as_text=True, workers=2)
        assert ask(server, tasks) == ask(local, tasks)
        assert ask(server, tasks, prefix="<COT>\n") == ask(local, tasks, prefix="<COT>\n")
