"""Chat servers on this machine: one that answers as a test tells it to, and `transformers serve`."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text, **choice):
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}]
    }


@contextmanager
def serving(answer):
    """A server; `answer(prompt, attempt)` gives (status, body, *headers). Yields url, calls and server."""
    calls, lock = Counter(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
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

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.seen = {}
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", calls, server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def transformers_serving(checkpoint, log, *, patience=180.0):
    """`transformers serve` for a checkpoint, on a port that the system picks; yields url and process."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(checkpoint)]
    command += ["--device", "cpu", "--host", "127.0.0.1", "--port", "0"]
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | offline)
    deadline = time.monotonic() + patience
    try:
        # It says so once the checkpoint is loaded and the port is open.
        while not (running := re.search(r"running on (http://[\d.:]+)", log.read_text())):
            assert process.poll() is None, f"the server ended:\n{log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"no server within {patience:g} s:\n{log.read_text()[-2000:]}"
            time.sleep(0.05)
        yield f"{running[1]}/v1", process
    finally:
        process.kill()
        process.wait()
