"""What a chat server can do wrong: nothing hangs, ends the other requests, fills memory or leaks the key."""

import json
import resource
import time

import pytest
from chat_server import completion
from faults.hostile_server import (
    CLIENT_ERRORS,
    LATER,
    RIGHT,
    USAGES,
    WORDS,
    answer,
    answered,
    broken_transport,
    choice,
    oddities,
    playing,
    refusals,
    wrong_bodies,
)

from lib.bandit.llms import CUT, Request, ServerLLM
from lib.engines import server as client
from lib.engines.server import ChatServer, ServerError

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("A_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "another-secret")
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.05)


def ask(url, folder, prompts, **options):
    requests = [{"messages": [{"role": "user", "content": prompt}], "max_tokens": 10} for prompt in prompts]
    options = {
        "key_variable": "A_KEY",
        "timeout": 2.0,
        "retries": 1,
        "workers": 16,
        "backoff": 0.01,
        **options,
    }
    replies = ChatServer(url, "m", folder, **options).ask(requests, show=lambda line: None)
    return dict(zip(prompts, replies, strict=True))


@pytest.mark.timeout(180)
def test_every_fault_is_a_problem_and_the_other_requests_are_answered(tmp_path):
    bad, odd = refusals() | wrong_bodies() | broken_transport(), oddities()
    good = {f"good {number}": answer(RIGHT) for number in range(20)}
    peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with playing(good | bad | odd) as (url, heads):
        replies = ask(url, tmp_path, [*good, *bad, *odd])
    seconds, grown = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    print(f"{len(bad)} faults, {len(odd)} oddities: {seconds:.1f} s, {grown / 2**10:.0f} MB more")
    for name in bad:
        print(f"   {name:60.60} {replies[name].problem!s:.110}")
    assert len(bad) >= 112 and seconds < 100 and grown < 2**20
    assert [name for name in bad if replies[name].text is not None or not replies[name].problem] == []
    assert [name for name in (*good, *odd) if replies[name].text != answered(name)] == []
    assert all(replies[f"usage {value}"].tokens is None for value in USAGES)
    said = [f"status {code}" for code in (*CLIENT_ERRORS, *LATER)]
    assert all(name.split()[1] in replies[name].problem and WORDS in replies[name].problem for name in said)
    assert len(list(tmp_path.glob("*.json"))) == len(odd) + len(good)
    fields = [line.partition(": ") for lines in heads for line in lines]
    assert {value for name, _, value in fields if name.lower() == "authorization"} == {f"Bearer {KEY}"}
    assert not any(KEY in path.read_text() for path in tmp_path.iterdir())
    assert not any(KEY in str(reply) for reply in replies.values())


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
@pytest.mark.parametrize(
    "place", ["http://localhost:{}/v1/chat/completions", "//localhost:{}/x", "/elsewhere", "", "ftp://x"]
)
def test_no_redirect_is_followed_wherever_it_leads(status, place, tmp_path):
    with playing({"p": answer(RIGHT)}) as (stranger, heads):
        location = "Location: " + place.format(stranger.split(":")[-1].split("/")[0])
        with playing({"p": answer(b"", status=status, head=[location])}) as (url, seen):
            with pytest.raises(ServerError, match=f"HTTP {status}.*Check the address, the key"):
                ask(url, tmp_path, ["p"])
            assert len(seen) == 1 and heads == [] and not list(tmp_path.iterdir())


def test_one_request_that_is_forbidden_does_not_end_the_others(tmp_path):
    plays = {f"{number}": answer(RIGHT) for number in range(9)}
    with playing(plays | {"flagged": answer(b"flagged", status=403)}) as (url, _):
        replies = ask(url, tmp_path, ["flagged", *plays], workers=2)
        assert replies["flagged"].problem == "HTTP 403: flagged" and replies["8"].text == "right"
        assert ask(url, tmp_path, ["flagged"])["flagged"].problem == "HTTP 403: flagged"  # it answered before


def test_a_key_that_a_server_repeats_is_masked(tmp_path):
    plays = {
        "text": answer(completion(f"you said {KEY}")),
        "error": answer({"error": {"message": f"wrong key {KEY}"}}, status=400),
        "head": f"HTTP/1.1 {KEY}\r\n\r\n".encode(),
    }
    with playing(plays) as (url, _):
        replies = ask(url, tmp_path, list(plays))
        assert replies["text"].text == "you said [key]" and "wrong key [key]" in replies["error"].problem
        assert KEY not in "".join(path.read_text() for path in tmp_path.iterdir()) + str(replies)
    plays = {"p": answer(f"wrong key {KEY}".encode(), status=401)}
    with playing(plays) as (url, _), pytest.raises(ServerError, match=r"HTTP 401: wrong key \[key\]"):
        ask(url, tmp_path / "new", ["p"])


def test_a_key_is_masked_however_json_spells_it(tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", 'sk-"secret"/1')
    replies = {"text": completion('you said sk-"secret"/1'), "error": {"message": 'wrong key sk-"secret"/1'}}
    escaped = {name: json.dumps(reply).replace("/", "\\/").encode() for name, reply in replies.items()}
    plays = {name: answer(body, status=400 if name == "error" else 200) for name, body in escaped.items()}
    with playing(plays) as (url, _):
        replies = ask(url, tmp_path, list(plays))
    assert replies["text"].text == "you said [key]" and "wrong key [key]" in replies["error"].problem
    assert "secret" not in "".join(path.read_text() for path in tmp_path.iterdir()) + str(replies)


@pytest.mark.parametrize("key", ["none", "EMPTY", "x", "1", "dummy"])
def test_a_word_in_place_of_a_key_is_left_in_a_reply(key, tmp_path, monkeypatch):
    """A server without keys is given any word, and its replies were cached and scored without that word."""
    monkeypatch.setenv("A_KEY", key)
    said = "none of 1 x are EMPTY, dummy"
    with playing({"p": answer(completion(said) | {"usage": {"completion_tokens": 11}})}) as (url, _):
        reply = ask(url, tmp_path, ["p"])["p"]
    assert (reply.text, reply.tokens) == (said, 11)


def test_the_key_is_named_and_never_given(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="not the key itself") as caught:
        ChatServer("http://x/v1", "m", tmp_path, key_variable=KEY)
    assert KEY not in str(caught.value)
    with pytest.raises(
        ValueError, match="must start with http:// or https:// and hold no password"
    ) as caught:
        ChatServer(f"https://me:{KEY}@x/v1", "m", tmp_path)
    assert KEY not in str(caught.value)
    monkeypatch.delenv("A_KEY")
    with pytest.raises(ValueError, match="there is no environment variable A_KEY"):
        ChatServer("http://x/v1", "m", tmp_path, key_variable="A_KEY")


# ---- models that refuse an option ----------------------------------------------------------------

SAID = {  # as servers say it
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. "
    "Use 'max_completion_tokens' instead.",
    "temperature": "Unsupported value: 'temperature' does not support 0.2 with this model. "
    "Only the default (1) value is supported.",
    "top_p": "`temperature` and `top_p` cannot both be specified for this model. Please use only one.",
    "seed": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}],
}


def choosy(*names, said=SAID, asked):
    """Refuses a request that has one of these options; else its reply names the options that it saw."""

    def play(connection, body):
        asked.append(body)
        refused = next((name for name in names if name in body), None)
        seen = sorted(body.keys() - {"messages", "model"})
        error = {"error": {"message": said.get(refused)}}
        connection.sendall(
            answer(error, status=422 if refused == "seed" else 400)
            if refused
            else answer(completion(f"{seen}"))
        )

    return play


def options(**changes):
    asked = {
        "messages": [{"role": "user", "content": "p"}],
        "max_tokens": 10,
        "temperature": 0.2,
        "top_p": 0.1,
        "seed": 3,
    }
    return asked | changes


@pytest.mark.parametrize("names", [*((name,) for name in SAID), tuple(SAID)])
def test_what_a_model_refuses_is_left_out_once_and_for_all(names, tmp_path):
    asked = []
    with playing({"p": choosy(*names, asked=asked)}) as (url, _):
        server = ChatServer(url, "m", tmp_path, workers=1, retries=0)
        with pytest.warns(UserWarning, match="m refuses") as warned:
            (reply,) = server.ask([options()], show=lambda line: None)
        left = {"max_tokens", "temperature", "top_p", "seed"} - set(names)
        expected = sorted(left | ({"max_completion_tokens"} if "max_tokens" in names else set()))
        assert reply.text == str(expected) and len(asked) == 1 + len(names) == 1 + len(warned)
        assert asked[-1].get("max_completion_tokens", 10) == 10
        (again,) = server.ask([options(seed=4)], show=lambda line: None)
        assert again == reply and len(asked) == 2 + len(names)  # learnt: one request, no warning
        assert server.ask([options()], show=lambda line: None) == [reply] and len(asked) == 2 + len(names)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(
    "said",
    [
        "'max_tokens' is too large: 5000. This model's maximum context length is 4096 tokens.",
        "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3 instead.",
        "This question about temperature is not allowed.",
        "",
    ],
)
def test_another_complaint_is_no_refusal_of_an_option(said, tmp_path):
    asked = []
    with playing({"p": choosy("temperature", said={"temperature": said}, asked=asked)}) as (url, _):
        server = ChatServer(url, "m", tmp_path)
        (reply,) = server.ask([options()], show=lambda line: None)
        assert (
            said in reply.problem and "HTTP 400" in reply.problem and len(asked) == 1 and not server.refused
        )


def test_a_model_that_refuses_an_option_that_is_not_there_is_given_up(tmp_path):
    refuse = answer({"error": {"message": SAID["temperature"]}}, status=400)
    with playing({"p": refuse}) as (url, seen), pytest.warns(UserWarning, match="refuses temperature"):
        (reply,) = ChatServer(url, "m", tmp_path).ask([options()], show=lambda line: None)
    assert "'temperature' does not support" in reply.problem and len(seen) == 2


# ---- replies that were cut -------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["length", "max_tokens", "content_filter"])
@pytest.mark.parametrize(
    "message", [{"content": "Answer: 1"}, {"content": None, "reasoning": "hm"}, {"content": ""}]
)
def test_a_cut_reply_is_a_failure_of_the_model_and_is_not_paid_for_twice(reason, message, tmp_path):
    reply = choice(message=message, finish_reason=reason) | {"usage": {"completion_tokens": 10}}
    with playing({"p": answer(reply)}) as (url, seen):
        for _ in range(2):
            found = ask(url, tmp_path, ["p"])["p"]
            assert (found.text, found.cut, found.tokens) == (None, True, 10) and reason in found.problem
        assert len(seen) == 1
        server = ChatServer(url, "m", tmp_path / "llm")
        assert ServerLLM(server, max_tokens=10).ask([Request("p", 0.0)]) == [CUT]


def test_a_failure_of_the_server_warns_in_its_words(tmp_path):
    with playing({"p": answer({"error": WORDS}, status=503), "q": answer(RIGHT)}) as (url, _):
        llm = ServerLLM(ChatServer(url, "m", tmp_path, retries=0))
        with pytest.warns(UserWarning, match=f"no reply from m: HTTP 503: .*{WORDS}"):
            assert llm.ask([Request("p", 0.0), Request("q", 0.0)]) == [None, "right"]


def test_space_around_a_reply_is_no_part_of_it(tmp_path):
    with playing({"p": answer(choice(message={"content": " right\n"}))}) as (url, _):
        assert ServerLLM(ChatServer(url, "m", tmp_path)).ask([Request("p", 0.0)]) == ["right"]


def test_progress_says_how_long_and_what_went_wrong(tmp_path):
    lines = []
    with playing({"p": answer(RIGHT), "q": answer(WORDS.encode(), status=400)}) as (url, _):
        requests = [{"messages": [{"role": "user", "content": p}], "max_tokens": 10} for p in "pq"]
        ChatServer(url, "m", tmp_path, workers=1).ask(requests, show=lines.append)
    assert lines[1].startswith("1 of 2 requests done, about 0 s left, 0 failed")
    assert lines[2] == f"2 of 2 requests done, about 0 s left, 1 failed, the last by HTTP 400: {WORDS}"
