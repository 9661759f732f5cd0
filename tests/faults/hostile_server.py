"""A chat server that does everything wrong: refusals, bodies, transports, and what is odd but an answer."""

import gzip
import json
import socket
import socketserver
import threading
import time
from contextlib import contextmanager, suppress

from lib.studies.stand_in import completion

WORDS = "the model is asleep"
LONG = 10.0  # seconds, beyond any limit of these tests
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
PACKED = "Content-Encoding: gzip"
RIGHT = completion("right")
WHOLE = json.dumps(RIGHT).encode()
DEEP = b"[" * 200_000
BOMB = gzip.compress(b" " * 2**28, 9)  # 256 MB
CLIENT_ERRORS = (
    400,
    402,
    405,
    406,
    409,
    410,
    411,
    413,
    415,
    418,
    421,
    422,
    423,
    424,
    425,
    426,
    428,
    431,
    451,
)
LATER = (408, 429, 500, 501, 502, 503, 504, 505, 507, 508, 511, 520, 522, 524, 529, 599)
HALF, REPLACED = "\ud800", "\ufffd"  # of a character, which JSON can name alone, and what is kept of it
HALVED = "half a character"
USAGES = ("many", [], {}, None, *({"completion_tokens": value} for value in ("7", -3, None, 1.5)))


def answer(body, *, status=200, head=()):
    """A whole reply, as bytes."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", "Connection: close", *head]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def choice(**fields):
    return {"choices": [{"message": {"content": "right"}, "finish_reason": "stop"} | fields]}


def endless(start, part, pause=0.001):
    """What comes for ever, or until the client has gone."""

    def play(connection, _):
        end = time.monotonic() + LONG
        connection.sendall(start)
        while time.monotonic() < end:
            connection.sendall(part)
            time.sleep(pause)

    return play


def stalled(start):
    return endless(start, b"", 0.05)


def refusals():
    """name -> a status that is no success, with its words where it has some."""
    found = {
        f"status {code}": answer({"error": {"message": WORDS}}, status=code)
        for code in (*CLIENT_ERRORS, *LATER)
    }
    bodies = {
        "nothing": b"",
        "HTML": b"<html>asleep</html>",
        "text as error": {"error": WORDS},
        "null as error": {"error": None},
        "number as error": {"error": 7},
        "a dict as message": {"error": {"message": {"a": [1]}, "param": ["x"], "code": {"b": 2}}},
        "a list": [WORDS],
        "depth": DEEP,
        "no UTF-8": b"\xff\xfe\xfa",
    }
    for status in (400, 503):
        found |= {f"{status} with {name}": answer(body, status=status) for name, body in bodies.items()}
        first = f"HTTP/1.1 {status} Said\r\n".encode()
        found |= {
            f"{status} that stalls": stalled(first + b"Content-Length: 100\r\n\r\nasleep"),
            f"{status} that drips": endless(first + b"Content-Length: 99999\r\n\r\n", b".", 0.05),
            f"{status} without end": endless(first + b"\r\n", b"x" * 2**20),
            f"{status} as a bomb": answer(BOMB, status=status, head=[PACKED]),
            f"{status} as no gzip": answer(b"asleep", status=status, head=[PACKED]),
        }
    waits = ("0", "\xb2", "-1", "1.5", "nan", "999999999", "Wed, 21 Oct 2099 07:28:00 GMT", "soon")
    return found | {
        f"Retry-After {wait}": answer(b"", status=429, head=[f"Retry-After: {wait}"]) for wait in waits
    }


def wrong_bodies():
    """name -> a success that holds no chat completion."""
    digits = b'{"usage": ' + b"9" * 6000 + b', "choices": [{"message": {"content": "x"}}]}'
    stream = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\ndata: [DONE]\n\n'
    text = (
        b"",
        b"null",
        b"[]",
        b"{}",
        b"1",
        b'"x"',
        b"<html>",
        b"\xff\xfe",
        b'{"choices": [{"mess',
        DEEP,
        digits,
        stream,
    )
    shapes = [
        *({"choices": value} for value in (None, [], {}, "x", [None], [[]], ["x"], 3)),
        *(choice(message=value) for value in (None, [], "x", {}, {"content": None}, {"content": 3})),
        *(choice(message={"content": value}) for value in (["x"], {"text": "x"}, "", " \n", True)),
        *(choice(message={"content": "x", "reasoning": value}) for value in ({"a": 1}, [1], 7)),
        *(choice(finish_reason=value) for value in ("error", "abort", {"a": 1}, 3, ["stop"])),
        {"error": {"message": WORDS}},
        {"object": "error", "message": WORDS, "code": 429},
    ]
    return {f"{number} {str(body)[:60]}": answer(body) for number, body in enumerate([*text, *shapes])}


def broken_transport():
    """name -> bytes, or what plays them, that are no whole reply of HTTP."""
    return {
        "nothing at all": stalled(b""),
        "an end at once": b"",
        "an end after the status": OK,
        "an end after the head": OK + b"Content-Length: 100\r\n\r\n",
        "an end in the body": OK + b"Content-Length: 500\r\n\r\n" + WHOLE,
        "too short a length": OK + b"Content-Length: 20\r\n\r\n" + WHOLE,
        "a negative length": OK + b"Content-Length: -1\r\n\r\n" + WHOLE,
        "two lengths": OK + b"Content-Length: 3\r\nContent-Length: 400\r\n\r\n" + WHOLE,
        "a body that stalls": stalled(OK + b"Content-Length: 500\r\n\r\n" + WHOLE),
        "a body that drips": endless(OK + b"Content-Length: 99999\r\n\r\n", b" ", 0.05),
        "a body without end": endless(OK + b"\r\n", b" " * 2**20),
        "a head that drips": endless(OK, b"X-Y: z\r\n", 0.05),
        "a head without end": endless(OK, b"X-Y: z\r\n" * 1000),
        "one endless header": endless(OK + b"X-Y: ", b"z" * 2**16),
        "a status without end": endless(b"HTTP/1.1 200 ", b"z" * 2**16),
        "endless 100 Continue": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        "endless 103": endless(b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"),
        "another protocol": answer(WHOLE, status=101),
        "no content": answer(b"", status=204),
        "a chunk size that is none": CHUNKED + b"zz\r\nhello\r\n0\r\n\r\n",
        "a chunk size without end": endless(CHUNKED, b"0" * 1000),
        "chunks without end": endless(CHUNKED, b"1000\r\n" + b" " * 4096 + b"\r\n"),
        "chunks that drip": endless(CHUNKED, b"1\r\n \r\n", 0.05),
        "a chunk that is cut": CHUNKED + b"ffff\r\n{",
        "no HTTP": b"hello, who is there?\r\n\r\n",
        "a newer HTTP": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "noise": bytes(range(256)) * 100,
        "a status that is no number": b"HTTP/1.1 abc OK\r\n\r\n" + WHOLE,
        "a bomb": answer(BOMB, head=[PACKED]),
        "no gzip": answer(b"{}", head=[PACKED]),
        "half a gzip": answer(gzip.compress(WHOLE)[:30], head=[PACKED]),
    }


def answered(name):
    """The text that is kept of an oddity or of a good reply."""
    return f"right {REPLACED}" if name == HALVED else "right"


def oddities():
    """name -> bytes that hold an answer all the same; see `answered`."""
    ends = (None, "eos_token", "end_turn")
    return {
        **{f"usage {value}": answer(RIGHT | {"usage": value}) for value in USAGES},
        **{f"end by {value}": answer(choice(finish_reason=value)) for value in ends},
        "an unknown field": answer(RIGHT | {"x": 1}),
        HALVED: answer(choice(message={"content": f"right {HALF}"})),
        "half a character in thoughts": answer(choice(message={"content": "right", "reasoning": HALF})),
        "half a character in usage": answer(RIGHT | {"usage": {"x": [HALF], HALF: 1}}),
        "another type": answer(RIGHT, head=["Content-Type: text/html"]),
        "gzip": answer(gzip.compress(WHOLE), head=[PACKED]),
        "no length": OK + b"\r\n" + WHOLE,
        "one early hint": b"HTTP/1.1 103 Early Hints\r\n\r\n" + answer(RIGHT),
        "an older HTTP": b"HTTP/0.9 200 OK\r\n\r\n" + WHOLE,
        "another success": answer(RIGHT, status=201),
    }


@contextmanager
def playing(plays):
    """A server that sends what the prompt names, byte by byte; yields its address and the heads it saw."""
    heads = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            with suppress(OSError):
                lines = []
                while line := self.rfile.readline().decode("latin-1").strip():
                    lines.append(line)
                if not lines:
                    return
                heads.append(lines)
                named = dict(line.lower().split(": ", 1) for line in lines[1:])
                body = json.loads(self.rfile.read(int(named["content-length"])))
                play = plays[body["messages"][-1]["content"]]
                play(self.connection, body) if callable(play) else self.connection.sendall(play)
                self.connection.shutdown(socket.SHUT_WR)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, request_queue_size = True, 128

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", heads
        server.shutdown()
