"""A server beside a notebook: a stand-in for vLLM's, which is started in the same way."""

import os
import signal
import subprocess
import sys
import time

import pytest

SERVER = """
import http.server, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Healthy).serve_forever()
"""
ASKER = """
import sys, time
from pathlib import Path
from lib.engines.serve import serving
with serving("dial-arm", Path(sys.argv[1])) as url:
    print(url, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="other systems do not tell a child that its parent is gone"
)
def test_a_server_ends_with_the_process_that_was_killed(tmp_path):
    """As a notebook's kernel that a runner ends: nothing may go on holding a card."""
    folder = tmp_path / "vllm" / "entrypoints" / "openai"
    folder.mkdir(parents=True)
    (folder / "api_server.py").write_text(SERVER)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-c", ASKER, str(tmp_path / "log")]
    asker = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    port = asker.stdout.readline().rpartition(":")[2].partition("/")[0]
    asker.send_signal(signal.SIGKILL)
    asker.wait()
    deadline = time.monotonic() + 20
    while running(f"--port {port}") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert port.isdecimal() and not running(f"--port {port}")


def running(words):
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return words in lines
