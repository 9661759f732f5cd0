import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch

from lib.dial import TIERS, dial_tokenizer, new_dial_model, oracle_format, parse_question, sample_questions
from lib.dial.pretrain import STYLE_WEIGHT, Corpus, PretrainConfig, pack, pretrain, response_loss
from lib.formats import ReasoningFormat, detect_format
from lib.policies import load
from lib.policies.load import CHECKPOINTS, load_policy
from lib.policies.save import save_policy
from lib.runs import CheckpointError, start_run

SMALL = PretrainConfig(steps=12, documents_per_step=8, warmup_steps=2, growing_steps=6, save_every=4)


@pytest.fixture(scope="module")
def tokenizer():
    return dial_tokenizer()


def encoded(tokenizer, count):
    documents = [Corpus(PretrainConfig())[200_000 + i] for i in range(count)]
    return [
        (tokenizer(prompt).input_ids, [*tokenizer(response).input_ids, tokenizer.eos_token_id])
        for prompt, response in documents
    ]


def test_the_corpus_is_fixed_untagged_and_uses_training_questions_only():
    corpus = Corpus(PretrainConfig())
    documents = [corpus[200_000 + i] for i in range(600)]
    assert documents == [corpus[200_000 + i] for i in range(600)]
    asked = 0
    for prompt, response in documents:
        if "Say " in prompt:  # a document that only repeats words may hold tags, as words
            assert prompt.split("Say ", 1)[1].removesuffix("\nAssistant:") == response
            continue
        asked += 1
        question = parse_question(prompt.removeprefix("Human: ").removesuffix("\nAssistant:"))
        assert question.split == "train"
        assert detect_format(response) is None and "<" not in response
        assert response.endswith(f"It shows {question.answer}.")
    assert 0.9 < asked / 600 < 1


def test_style_goes_with_difficulty_most_of_the_time():
    corpus = Corpus(PretrainConfig())
    rng = random.Random(0)
    for question in sample_questions(12, seed=0, depths=range(1, 13)):
        styles = [corpus._style(rng, question) for _ in range(500)]
        assert 0.5 < styles.count(oracle_format(question.depth)) / 500 < 0.7
        assert set(styles) == set(ReasoningFormat)


def test_questions_grow_and_then_follow_the_mix():
    corpus = Corpus(PretrainConfig(tier_mix=(1.0, 0.0, 0.0)))
    rng = random.Random(0)
    assert {corpus._depth(rng, 0) for _ in range(200)} == {1, 2}
    assert {corpus._depth(rng, 999) for _ in range(900)} >= set(range(1, 12))
    assert {corpus._depth(rng, 1000) for _ in range(200)} == set(TIERS["easy"])


def test_packing_loses_nothing_and_keeps_documents_apart(tokenizer):
    documents = encoded(tokenizer, 40)
    batch = pack(documents, 256)
    model = new_dial_model(seed=0).eval()
    with torch.inference_mode():
        packed = response_loss(
            model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits,
            batch["input_ids"],
            batch["weights"],
        )
        total = weight = 0.0
        for prompt, response in documents:  # the slow way: one document at a time
            ids = torch.tensor([[*prompt, *response]])
            log_probs = model(input_ids=ids).logits.log_softmax(-1)[0]
            for place in range(len(prompt), ids.shape[1]):
                share = STYLE_WEIGHT if place == len(prompt) else len(response) ** -0.5
                total -= log_probs[place - 1, ids[0, place]].item() * share
                weight += share
    assert packed.item() == pytest.approx(total / weight, rel=1e-5)
    assert (batch["weights"] > 0).sum() == sum(len(response) for _, response in documents)
    assert (batch["input_ids"] != 0).sum() == sum(len(p) + len(r) for p, r in documents)


def test_a_document_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="document of 12 tokens does not fit into a row of 10"):
        pack([([5] * 6, [6] * 6)], 10)


def test_the_model_is_about_0_4_million_parameters_and_seeded():
    one, same, other = (new_dial_model(seed=seed) for seed in (0, 0, 1))
    assert 350_000 < one.num_parameters() < 450_000
    weights = [m.state_dict()["model.embed_tokens.weight"] for m in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_training_lowers_the_loss_and_can_stop_early_on_the_same_path(tokenizer):
    torch.manual_seed(0)
    full = start_run("full", "cpu", {})
    _, facts = pretrain(replace(SMALL, steps=40), tokenizer, full)
    losses = {row["step"]: row["loss"] for row in full.metrics()}
    assert losses[40] < losses[1] - 0.5
    assert facts["steps"] == 40 and facts["tokens"] > 40 * 8 * 20
    part = start_run("part", "cpu", {})
    _, facts = pretrain(replace(SMALL, steps=40), tokenizer, part, stop_at=20)
    assert facts["steps"] == 20
    assert {row["step"]: row["loss"] for row in part.metrics()} == {s: losses[s] for s in (1, 10, 20)}


CHILD = """
    import sys
    from lib.dial import dial_tokenizer
    from lib.dial.pretrain import PretrainConfig, pretrain
    from lib.runs import start_run
    run = start_run("killed", "cpu", {})
    config = PretrainConfig(steps=60, documents_per_step=8, warmup_steps=2, growing_steps=6, save_every=20)
    pretrain(config, dial_tokenizer(), run, say=lambda line: print(line, flush=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_training_resumes_to_the_same_end(how, private_runs, tokenizer):
    config = PretrainConfig(steps=60, documents_per_step=8, warmup_steps=2, growing_steps=6, save_every=20)
    straight = start_run("straight", "cpu", {})
    torch.set_num_threads(1)
    expected, _ = pretrain(config, tokenizer, straight)

    command = [sys.executable, "-c", textwrap.dedent(CHILD)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in child.stdout:
        if line.startswith("step    30"):
            break
    child.send_signal(how)
    errors = child.communicate()[1]
    assert child.returncode != 0
    run = start_run("killed", "cpu", {})
    saved = [int(p.name.split("-")[1]) for p in run.checkpoint.glob("checkpoint-*")]
    if how is signal.SIGINT:
        assert "KeyboardInterrupt: saved at step" in errors
        assert saved and saved[0] >= 30  # saved where it was stopped
    actual, facts = pretrain(config, tokenizer, run)
    assert facts["resumed"]
    for name, weights in expected.state_dict().items():
        torch.testing.assert_close(weights, actual.state_dict()[name], atol=1e-6, rtol=1e-5)
    logged, whole = run.metrics(), straight.metrics()
    assert [row["step"] for row in logged] == [row["step"] for row in whole]
    assert logged[-1]["loss"] == pytest.approx(whole[-1]["loss"], abs=1e-5)


def test_a_saved_policy_is_checked_when_loaded(tmp_path, tokenizer):
    folder = tmp_path / "policy"
    save_policy(new_dial_model(seed=0), tokenizer, folder, seed=0, command="test")
    model, loaded = load_policy(folder)
    assert loaded.padding_side == "left" and len(loaded) == len(tokenizer)
    assert loaded.decode(loaded("Human: Say +4.").input_ids) == "Human: Say +4."
    record = json.loads((folder / "provenance.json").read_text())
    assert record["parameters"] == model.num_parameters() and set(record["sha256"]) >= {"model.safetensors"}

    weights = folder / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged or was changed"):
        load_policy(folder)


def test_a_misspelt_checkpoint_is_named_and_the_hub_is_not_asked():
    with pytest.raises(CheckpointError, match=r"no shipped checkpoint 'dial-bsae'; .*dial-base"):
        load_policy("dial-bsae")


def test_an_incomplete_shipped_checkpoint_is_refused(tmp_path, monkeypatch):
    shutil.copytree(CHECKPOINTS / "dial-base", tmp_path / "dial-base")
    (tmp_path / "dial-base" / "provenance.json").unlink()
    monkeypatch.setattr(load, "CHECKPOINTS", tmp_path)
    with pytest.raises(CheckpointError, match=r"provenance.json is missing"):
        load_policy("dial-base")
