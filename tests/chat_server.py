"""`transformers serve` on this machine; one that answers as a test tells it to is `lib.studies.stand_in`."""

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager

from lib.studies.stand_in import completion, serving

__all__ = ["completion", "save_chat_checkpoint", "serving", "transformers_serving"]


def save_chat_checkpoint(folder):
    """A copy of the dial LLM that a chat server can serve: the one message is the prompt, as it is."""
    from lib.policies.load import load_policy

    model, tokenizer = load_policy("dial-llm")
    tokenizer.chat_template = "{{ messages[0].content }}"
    # Without this, `transformers serve` reads replies of this architecture as Qwen's, with other end marks.
    fields = {"content": {"close": tokenizer.eos_token, "content": "text"}}
    tokenizer.response_template = {"start_anchor": "Assistant:", "fields": fields}
    model.generation_config.do_sample = True  # else it answers greedily whatever it is asked
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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
