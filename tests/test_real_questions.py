"""The single_gpu profile of notebook 06, dry: a loopback server, and small models of the real kinds."""

import json
import threading

import pytest
import torch
from chat_server import completion, serving
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
)

from lib.course.declared import read_parameters
from lib.course.profiles import plan
from lib.course.runner import run_course
from lib.runs import ROOT
from lib.studies import real_questions

SIZES = {
    "vocab_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def save_models(folder, tokenizer):
    """A BERT encoder and a DeBERTa reward model with random weights, as folders."""
    torch.manual_seed(0)
    reward_model = DebertaV2ForSequenceClassification(DebertaV2Config(**SIZES, num_labels=1))
    for name, model in {"encoder": BertModel(BertConfig(**SIZES)), "reward": reward_model}.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def questions(count):
    """Rows as in AdaReasoner's file, in our own words."""
    stems = ("For this math question, please select the right answer: what is {n} plus 1?",)
    text = " Options: A: {a} B: {b} C: 0 D: 1000"
    return [
        {"question": (stems[0] + text).format(n=n, a=n + 1, b=n + 2), "answer": str(n + 1)}
        for n in range(2, 2 + count)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["", "reward"])
def test_the_real_part_runs_against_a_server_that_sometimes_fails(
    judge, word_level_tokenizer, tmp_path, private_runs, monkeypatch
):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    save_models(tmp_path, word_level_tokenizer)
    (tmp_path / "source.json").write_text(json.dumps(questions(40)))
    lock, seen = threading.Lock(), []

    def answer(prompt, attempt):
        with lock:
            seen.append(prompt)
        if len(seen) % 5 == 0 and attempt == 1:
            return 500, b"overloaded"
        return 200, completion(f"Let me see.\nAnswer: {'A' if len(prompt) % 2 else 'B'}")

    with serving(answer) as (url, _, server):
        overrides = {
            "SERVER_URL": url,
            "SERVER_MODEL": "some-model",
            "QUESTIONS_FILE": str(tmp_path / "source.json"),
            "ENCODER": str(tmp_path / "encoder"),
            "REWARD_MODEL": str(tmp_path / judge) if judge else "",
            "REAL_TRAIN": 10,
            "REAL_TEST": 20,
            "REAL_UPDATES": 3,
        }
        outcomes = run_course(profile="smoke", only=["06"], overrides=overrides)
        assert [outcome.status for outcome in outcomes] == ["ok"]
        assert server.seen["model"] == "some-model"
    metrics = json.loads((private_runs / "smoke" / "06_adareasoner_real" / "metrics.json").read_text())
    assert set(metrics["real_questions"]) == set(real_questions.METHODS)
    assert all(0 <= value <= 1 for value in metrics["real_questions"].values())
    replies = private_runs / "smoke" / "06_adareasoner_real" / "replies"
    assert len(list(replies.glob("*.json"))) >= 20
    assert all("plus 1?" in prompt for prompt in seen)


def test_the_profile_names_what_the_notebook_has():
    path = ROOT / "notebooks" / "06_adareasoner.ipynb"
    values = plan(path, "single_gpu", {}).given
    assert values["SERVER_URL"] and values["REWARD_MODEL"].startswith("OpenAssistant/")
    assert {"SERVER_URL", "ENCODER"} <= {parameter.name for parameter in read_parameters(path)}
