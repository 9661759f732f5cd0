"""The chat client against a real HTTP server on this machine, which fails in every way we know of."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from chat_server import completion, serving

from lib.engines.server import ChatServer, ServerError


def requests(*prompts, max_tokens=10):
    return [{"messages": [{"role": "user", "content": p}], "max_tokens": max_tokens} for p in prompts]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def client(url, folder, **options):
    return ChatServer(url, "m", folder, **{"backoff": 0.01, "timeout": 5.0, "retries": 3, **options})


def test_replies_come_in_order_and_from_the_cache_the_second_time(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(lambda prompt, _: (200, completion(prompt.upper()))) as (url, calls, server):
        prompts = [f"p{i}" for i in range(20)] + ["p3"]
        server_client = client(url, tmp_path)
        replies = server_client.ask(requests(*prompts), show=lambda _: None)
        assert [reply.text for reply in replies] == [prompt.upper() for prompt in prompts]
        assert set(calls.values()) == {1} and len(calls) == 20
        assert server.seen["path"] == "/v1/chat/completions" and server.seen["model"] == "m"
        assert server.seen["authorization"] == "Bearer secret"
        again = server_client.ask(requests(*prompts), show=lambda _: None)
        assert again == replies and sum(calls.values()) == 20
        assert "secret" not in "".join(path.read_text() for path in tmp_path.iterdir()) + repr(server_client)
        other = server_client.ask(requests("p3", max_tokens=11), show=lambda _: None)
        assert other[0].text == "P3" and calls["p3"] == 2  # another request, not another spelling of it


def test_the_cost_is_shown_before_the_first_request(tmp_path):
    with serving(lambda *_: (200, completion("x"))) as (url, calls, _):
        shown = []

        def show(line):
            shown.append((sum(calls.values()), line))

        server = client(url, tmp_path, price=(1.0, 10.0))
        server.ask(requests("a"), show=lambda _: None)
        calls.clear()
        server.ask(requests("a", "b" * 4000, "c", max_tokens=1_000_000), show=show)
        assert shown[0][0] == 0
        assert "3 requests to send (0 more are cached)" in shown[0][1]
        assert "at most 3,000,000 out, at most about 30.00 $" in shown[0][1]
        server.ask(requests("a", "d"), show=show)
        assert "1 requests to send (1 more are cached)" in next(line for _, line in shown if "d (1" in line)


@pytest.mark.parametrize(
    "failure",
    [
        (429, {"error": "slow down"}),
        (429, {"error": "slow down"}, ("Retry-After", "0")),
        (500, b"oops"),
        (503, b""),
        (529, b"overloaded"),
        (429, b"", ("Retry-After", "\xb2")),
        (200, b"[" * 100_000),
        (200, b"<html>not JSON</html>"),
        (200, b'{"choices": [{"message": {"cont'),
        (200, {"error": {"message": "overloaded"}}),
        (200, {"choices": []}),
        (200, completion("")),
        (200, completion(None)),
        (200, {"choices": [{"message": {"content": "x", "reasoning": {"a": 1}}, "finish_reason": "stop"}]}),
    ],
)
def test_a_failure_is_tried_again_and_never_taken_for_an_answer(failure, tmp_path):
    with serving(lambda _, n: failure if n < 3 else (200, completion("right"))) as (url, calls, _):
        (reply,) = client(url, tmp_path).ask(requests("p"), show=lambda _: None)
        assert reply.text == "right" and calls["p"] == 3
    with serving(lambda *_: failure) as (url, calls, _):
        (reply,) = client(url, tmp_path / "new").ask(requests("p"), show=lambda _: None)
        assert reply.text is None and "(4 tries)" in reply.problem and calls["p"] == 4
        assert not list((tmp_path / "new").glob("*.json"))  # asked again, it is sent again
        client(url, tmp_path / "new").ask(requests("p"), show=lambda _: None)
        assert calls["p"] == 8


def test_waits_grow_and_the_server_may_name_its_own(tmp_path, monkeypatch):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr("lib.engines.server.asyncio.sleep", sleep)
    monkeypatch.setattr("lib.engines.server.random.uniform", lambda low, _: low)
    with serving(lambda _, n: (429, b"", ("Retry-After", "7")) if n == 3 else (500, b"")) as (url, *_):
        client(url, tmp_path, backoff=2.0, retries=4).ask(requests("p"), show=lambda _: None)
    assert waits == [2.0, 4.0, 7.0, 16.0]


def test_a_slow_answer_is_given_up_after_the_timeout(tmp_path):
    over = threading.Event()

    def slowly(prompt, attempt):
        if attempt == 1:
            over.wait(60)
        return 200, completion("late")

    with serving(slowly) as (url, calls, _):
        start = time.monotonic()
        (reply,) = client(url, tmp_path, timeout=2.0).ask(requests("p"), show=lambda _: None)
        assert reply.text == "late" and calls["p"] == 2 and time.monotonic() - start < 20
        over.set()


def test_a_server_that_drips_is_given_up_too(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip():
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                try:
                    for _ in range(300):
                        connection.sendall(b" ")
                        time.sleep(0.1)
                except OSError:
                    pass

        threading.Thread(target=drip, daemon=True).start()
        start = time.monotonic()
        server = client(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", tmp_path, timeout=0.5, retries=0)
        (reply,) = server.ask(requests("p"), show=lambda _: None)
        assert "no complete reply within 0.5 s" in reply.problem and time.monotonic() - start < 15


def test_an_address_without_a_scheme_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"url must start with http:// or https://.*got 'localhost:8000/v1'"):
        client("localhost:8000/v1", tmp_path)


def test_any_option_of_a_request_is_sent_as_it_is(tmp_path):
    with serving(lambda *_: (200, completion("x"))) as (url, _, server):
        asked = requests("p")[0] | {"temperature": 0.3, "chat_template_kwargs": {"enable_thinking": False}}
        client(url, tmp_path).ask([asked], show=lambda _: None)
        sent = {name: value for name, value in server.seen.items() if name not in ("path", "authorization")}
        assert sent == {"model": "m", **asked}


def test_ctrl_c_does_not_wait_for_the_retries(tmp_path):
    with serving(lambda *_: (503, b"")) as (url, *_):
        program = (
            "import signal, sys; from pathlib import Path; from lib.engines.server import ChatServer\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "ask = [{'messages': [{'role': 'user', 'content': 'p'}], 'max_tokens': 10}]\n"
            "print('ready', flush=True)\n"
            "ChatServer(sys.argv[1], 'm', Path(sys.argv[2]), backoff=60).ask(ask)"
        )
        command = [sys.executable, "-c", program, url, str(tmp_path)]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        run.stdout.readline()
        time.sleep(1.0)
        run.send_signal(signal.SIGINT)
        start = time.monotonic()
        _, errors = run.communicate(timeout=30)
        assert time.monotonic() - start < 10 and "KeyboardInterrupt" in errors
        assert "was destroyed" not in errors


def test_nobody_there_ends_soon_and_one_who_answered_before_is_waited_for(tmp_path):
    begun, asked = time.monotonic(), requests(*map(str, range(30)))
    nobody = ChatServer("http://127.0.0.1:9/v1", "m", tmp_path)  # its retries would take 36 s
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9/v1.*nobody is there: .*Check the address"):
        nobody.ask(asked, show=lambda _: None)
    assert time.monotonic() - begun < 15
    with serving(lambda *_: (200, completion("x"))) as (url, *_):
        client(url, tmp_path).ask(asked[:1], show=lambda _: None)
    (reply,) = client(url, tmp_path, retries=1).ask(asked[1:2], show=lambda _: None)
    assert reply.text is None and "(2 tries)" in reply.problem


def test_a_server_that_is_gone_for_a_while_is_waited_for(tmp_path):
    port = []

    def once(prompt, _):
        return 200, completion(prompt)

    with serving(once) as (url, *_):
        port.append(int(url.split(":")[-1].split("/")[0]))
        server = client(url, tmp_path, retries=8, backoff=0.1)
        server.ask(requests("first"), show=lambda _: None)
    found = []
    asking = threading.Thread(
        target=lambda: found.extend(server.ask(requests("second"), show=lambda _: None))
    )
    asking.start()
    time.sleep(0.7)
    with serving(once, port[0]):
        asking.join(20)
    assert [reply.text for reply in found] == ["second"]


def test_a_request_that_is_wrong_is_not_tried_again(tmp_path):
    answer = lambda prompt, _: (400, b"too long") if prompt == "long" else (200, completion("x"))  # noqa: E731
    with serving(answer) as (url, calls, _):
        replies = client(url, tmp_path).ask(requests("long", "short"), show=lambda _: None)
        assert replies[0].problem == "HTTP 400: too long" and replies[1].text == "x" and calls["long"] == 1


def test_a_wrong_key_stops_everything_at_once(tmp_path):
    with serving(lambda *_: (401, b"bad key")) as (url, calls, _):
        with pytest.raises(ServerError, match=r"HTTP 401: bad key\. Check the address, the key"):
            client(url, tmp_path, workers=1).ask(requests(*map(str, range(100))), show=lambda _: None)
        assert sum(calls.values()) < 10


def test_a_killed_run_resumes_and_asks_nothing_twice(tmp_path):
    prompts = [f"p{i}" for i in range(40)]

    def answer(prompt, _):
        time.sleep(0.03)
        return 200, completion(prompt.upper())

    with serving(answer) as (url, calls, _):
        program = (
            "import sys; from pathlib import Path; from lib.engines.server import ChatServer\n"
            "ask = [{'messages': [{'role': 'user', 'content': p}], 'max_tokens': 10} for p in sys.argv[3:]]\n"
            "ChatServer(sys.argv[1], 'm', Path(sys.argv[2]), workers=2).ask(ask)"
        )
        run = subprocess.Popen(
            [sys.executable, "-c", program, url, str(tmp_path), *prompts], stdout=subprocess.DEVNULL
        )
        try:
            while len(list(tmp_path.glob("*.json"))) < 8:
                assert run.poll() is None, "the run ended before it could be killed"
                time.sleep(0.01)
            os.kill(run.pid, signal.SIGKILL)
        finally:
            run.kill()
            run.wait()
        saved = len(list(tmp_path.glob("*.json")))
        assert 8 <= saved < 40
        time.sleep(0.2)  # what was under way ends
        before = sum(calls.values())
        replies = client(url, tmp_path).ask(requests(*prompts), show=lambda _: None)
        assert [reply.text for reply in replies] == [prompt.upper() for prompt in prompts]
        assert sum(calls.values()) - before == 40 - saved
