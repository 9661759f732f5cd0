"""What stands in for the world outside in a dry run: a chat server, and small random models."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lib.formats import ReasoningFormat, render_response
from lib.runs import RunFolderError, runs_folder
from lib.sources import SOURCES, load
from lib.tasks import Task

Answer = Callable[[str, int], tuple[Any, ...]]  # prompt, attempt -> (status, body, *headers)
PROGRAM = "def solve():\n    return {{'answer': {0!r}}}\n\n>>> solve()\n\noutput = {{'answer': {0!r}}}"
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


# ---- a chat server -----------------------------------------------------------------------------


def completion(text: str, **choice: Any) -> dict[str, Any]:
    """A chat server's reply."""
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}]
    }


@contextmanager
def serving(answer: Answer, port: int = 0) -> Iterator[tuple[str, Counter[str], Any]]:
    """A chat server in this process, at `port` if it is free; yields url, count of prompts, server."""
    calls: Counter[str] = Counter()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = request["messages"][-1]["content"]
            with lock:
                calls[prompt] += 1
                attempt = calls[prompt]
            server.seen = {"path": self.path, "authorization": self.headers.get("Authorization"), **request}
            status, body, *headers = answer(prompt, attempt)
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            try:
                self.send_response(status)
                for name, value in (*headers, ("Content-Length", str(len(body)))):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client gave up waiting

        def log_message(self, *_: Any) -> None:
            pass

    server: Any
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError:  # somebody has that port
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.seen = {}
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", calls, server
    finally:
        server.shutdown()
        server.server_close()


def sample_answers(folder: Path) -> Answer:
    """Knows the answers to the questions of a folder of samples; other questions get an A."""
    tasks = [
        task
        for name in SOURCES
        for path in (*folder.glob(f"{name}_*.jsonl"), *folder.glob(f"{name}.json"))
        for task in load(name, path).examples
    ]

    def answer(prompt: str, _: int) -> tuple[int, dict[str, Any]]:
        task = next((task for task in tasks if task.question in prompt), None)
        return 200, completion(_reply(prompt, task))

    return answer


def _reply(prompt: str, task: Task | None) -> str:
    """In the layout that the prompt asks for: a program, thoughts before an answer block, or one line."""
    right = task.answer if task else "A"
    if "<CODE>" in prompt:
        return render_response(ReasoningFormat.CODE, PROGRAM.format(right), right)
    if "<ANSWER>" in prompt:
        return f"<think>I go through it once, and once more: {right}.</think>\n<ANSWER>\n{right}\n</ANSWER>"
    return f"Let me see.\nAnswer: {right}"


# ---- models ------------------------------------------------------------------------------------


def stand_in_model(name: str) -> Path:
    """The folder of a small random model of the architecture that a hub name tells; made where missing."""
    kinds = {"deberta": _random_judge, "bert": _random_encoder, "qwen3": None, "qwen": None}
    kind = next((kind for kind in kinds if kind in name.lower()), None)
    if kind is None:
        known = ", ".join(kinds)
        raise RunFolderError(f"{name}: a dry run has random models in place of {known}, and of no other.")
    made = f"random-{'qwen2' if kind == 'qwen' else kind}"
    folder = runs_folder() / "models" / made
    if not folder.exists():
        from lib.studies.random_models import random_model

        own = kinds[kind]
        own(folder) if own else random_model(made, folder)
    return folder


def _random_encoder(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    _save(lambda **sizes: BertModel(BertConfig(**sizes)), folder)


def _random_judge(folder: Path) -> None:
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    _save(lambda **sizes: DebertaV2ForSequenceClassification(DebertaV2Config(**sizes, num_labels=1)), folder)


def _save(build: Callable[..., Any], folder: Path) -> None:
    from transformers import set_seed

    from lib.policies.save import save_policy
    from lib.studies.random_models import SAMPLES, byte_level_tokenizer

    texts = [path.read_text(encoding="utf-8") for path in sorted(SAMPLES.glob("*.jsonl"))]
    tokenizer = byte_level_tokenizer(texts)
    set_seed(0)
    save_policy(build(vocab_size=len(tokenizer), **SIZES), tokenizer, folder)
