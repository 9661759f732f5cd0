"""Safe to run twice: a finished training is found again, and no training meets another's checkpoints."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from lib.checked import identity
from lib.dial import dial_tasks, dial_tokenizer, new_dial_model, sample_questions
from lib.dial.pretrain import PretrainConfig, pretrain
from lib.dial.responses import gold_response
from lib.formats import ReasoningFormat
from lib.methods import training
from lib.methods.ada_grpo import AdaGRPO
from lib.methods.fit import fit, train
from lib.methods.sft import SFTConfig, train_sft
from lib.methods.training import last_checkpoint, load_trained
from lib.policies.save import save_policy
from lib.runs import Run, start_run, write_json
from lib.tasks import task_rows

ROWS = [
    {"prompt": question.prompt, "completion": gold_response(question, ReasoningFormat.DIRECT)}
    for question in sample_questions(20, seed=0)
]
QUESTIONS = task_rows(dial_tasks(4, split="train", seed=0, depths=[1]))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    save_policy(new_dial_model(seed=0, layers=1, width=32), dial_tokenizer(), folder)
    return str(folder)


@pytest.fixture
def sft(base):
    return replace(
        SFTConfig.cpu(base),
        weights="lora",
        max_steps=4,
        batch_size=4,
        micro_batch_size=4,
        log_every=1,
        save_every=2,
    )


@pytest.fixture
def never_trains(monkeypatch):
    def use():
        monkeypatch.setattr(training, "run_training", lambda *given: pytest.fail("it was trained again"))

    return use


def same_weights(one, other):
    """All but the embeddings that an adapter replaces."""
    weights = other.state_dict()
    used = {name: value for name, value in one.state_dict().items() if "original_module" not in name}
    return all(torch.equal(value, weights[name]) for name, value in used.items())


def test_a_finished_training_is_loaded_and_not_repeated(sft, never_trains):
    run, said = start_run("a", "cpu", {}), []
    model, _, facts = train_sft(sft, ROWS[4:], ROWS[:4], run)
    logged = run.metrics()
    never_trains()
    again, tokenizer, same = train_sft(sft, ROWS[4:], ROWS[:4], Run(run.folder, {}), say=said.append)
    assert same_weights(model, again) and same == facts and len(tokenizer) == len(dial_tokenizer())
    assert run.metrics() == logged
    assert "trained before" in said[0] and str(run.checkpoint) in said[0]


def test_a_crash_in_the_evaluation_costs_nothing(base, never_trains):
    """As in notebook 03: the trainings lie in folders of the run; what comes after is what fails."""
    run = start_run("03_x", "cpu", {"TEST_QUESTIONS": 10})
    config = AdaGRPO.cpu(base, batches=2, prompts=2, micro_batch_size=16, max_completion_length=8)
    (run.folder / "grpo").mkdir()
    rows = run.folder / "grpo" / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    call = {"config": config.as_json(), "rows": str(rows), "folder": str(run.folder / "grpo")}
    facts = train(call)
    run = start_run("03_x", "cpu", {"TEST_QUESTIONS": 20})  # mended, and run again
    never_trains()
    assert train(call) == facts
    load_trained(config, Run(run.folder / "grpo", {}))


def test_a_changed_setting_does_not_resume_the_other_run(base, capsys):
    """It did in the folders grpo/ and ada_grpo/ of notebook 03: the result was that of the old setting."""
    config = AdaGRPO.cpu(
        base, batches=3, prompts=2, micro_batch_size=16, max_completion_length=8, save_every=1
    )
    run, fresh = Run(start_run("03_x", "cpu", {}).folder / "grpo", {}), start_run("fresh", "cpu", {})
    fit(config, QUESTIONS, run, stop_at=1)
    changed = replace(config, learning_rate=1e-2)
    actual, _, facts = fit(changed, QUESTIONS, run, say=print)
    assert not facts["resumed"] and "learning_rate 0.01, was 0.0003" in capsys.readouterr().out
    expected, _, _ = fit(changed, QUESTIONS, fresh)
    assert same_weights(actual, expected)
    _, _, facts = fit(config, QUESTIONS, run)
    assert facts["resumed"], "the first setting's checkpoints come back with it"


def test_other_rows_or_other_weights_under_the_same_name_are_other_settings(sft, base, tmp_path):
    start, run = tmp_path / "start", start_run("a", "cpu", {})
    save_policy(new_dial_model(seed=0, layers=1, width=32), dial_tokenizer(), start)
    sft = replace(sft, base=str(start), max_steps=2)
    first, _, _ = train_sft(sft, ROWS[4:], ROWS[:4], run)
    other_rows, _, _ = train_sft(sft, ROWS[5:], ROWS[:4], run)
    assert not same_weights(first, other_rows)
    save_policy(new_dial_model(seed=1, layers=1, width=32), dial_tokenizer(), start)
    other_start, _, _ = train_sft(sft, ROWS[4:], ROWS[:4], run)
    assert not same_weights(first, other_start)
    assert len(list((run.folder / "previous").iterdir())) == 2


def test_another_reward_of_the_same_name_is_another_setting(base):
    config = AdaGRPO.cpu(base, batches=1, prompts=2, micro_batch_size=16, max_completion_length=8)
    run = start_run("a", "cpu", {})

    def reward(completion_ids, **others):
        return [float(ids[0] % 2) for ids in completion_ids]

    fit(config, QUESTIONS, run, reward=reward)

    def reward(completion_ids, **others):
        return [float(ids[0] % 3) for ids in completion_ids]

    fit(config, QUESTIONS, run, reward=reward)
    assert len(list((run.folder / "previous").iterdir())) == 1


def paying(least, rule=lambda ids: ids[0] % 2):
    def reward(completion_ids, **others):
        return [max(least, float(rule(ids))) for ids in completion_ids]

    return reward


def test_what_a_reward_was_made_with_is_a_setting():
    """Its text alone took make(0.1) for make(0.9), and a partial had an address in its name."""
    assert identity(paying(0.1)) != identity(paying(0.9)) and identity(paying(0.1)) == identity(paying(0.1))
    assert identity(paying(0.1, lambda ids: ids[0] % 3)) != identity(paying(0.1))
    assert identity(partial(paying, 0.1)) == identity(partial(paying, 0.1)) != identity(partial(paying, 0.9))

    def default(completion_ids, least=0.1):
        return [least for _ in completion_ids]

    before = identity(default)
    default.__defaults__ = (0.9,)
    assert identity(default) != before


def test_a_reward_that_nothing_tells_apart_is_refused_until_it_is_named():
    scorer = paying(torch.nn.Linear(2, 2))
    for reward in (scorer, partial(paying, object()), [1].count, math.sqrt):
        with pytest.raises(ValueError, match=r"nothing says what it is .* give it an attribute `setting`"):
            identity(reward)
    scorer.setting = "scorer of May"
    assert identity(scorer) == "scorer of May"


def test_a_kill_between_the_last_step_and_the_result_costs_no_step(sft):
    run = start_run("a", "cpu", {})
    model, _, _ = train_sft(sft, ROWS[4:], ROWS[:4], run)
    logged = run.metrics()
    (run.checkpoint / "finished.json").unlink()
    (run.checkpoint / "result" / "adapter_model.safetensors").write_bytes(b"half")
    again, _, facts = train_sft(sft, ROWS[4:], ROWS[:4], run)
    assert facts["resumed"] and facts["steps"] == 4 and same_weights(model, again)
    assert run.metrics() == logged
    assert train_sft(sft, ROWS[4:], ROWS[:4], run)[2] == facts  # now it is finished, and whole


def test_an_empty_trainer_state_is_passed_over(tmp_path):
    write_json(tmp_path / "checkpoint-2" / "trainer_state.json", {"global_step": 2})
    for step, text in ((4, ""), (6, '{"global_step": 6, "log_hi')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(text)
    assert last_checkpoint(tmp_path).name == "checkpoint-2"


@pytest.mark.parametrize("kept", [0, -1])
def test_a_checkpoint_with_a_torn_file_is_passed_over(kept, sft):
    """Its trainer state was whole, and all steps were lost at the weights."""
    run = start_run("a", "cpu", {})
    train_sft(replace(sft, weights="full"), ROWS[4:], ROWS[:4], run)
    newest = run.checkpoint / "checkpoint-4"
    assert last_checkpoint(run.checkpoint) == newest
    files = [path for path in newest.iterdir() if path.suffix in (".safetensors", ".json", ".pt", ".pth")]
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} < {f.name for f in files}
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole.rstrip()[:kept])
        assert last_checkpoint(run.checkpoint).name == "checkpoint-2", file
        file.write_bytes(whole)


def test_rl_keeps_an_older_checkpoint(base):
    config = AdaGRPO.cpu(base, batches=3, prompts=2, micro_batch_size=16, max_completion_length=8)
    run = start_run("a", "cpu", {})
    fit(replace(config, save_every=1), QUESTIONS, run)
    assert sorted(path.name for path in run.checkpoint.glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-3",
    ]


CHILD = """
    import json, os, signal, sys
    from lib.methods.sft import SFTConfig, train_sft
    from lib.runs import Run
    given = json.load(open(sys.argv[1]))
    signal.signal(signal.SIGHUP, getattr(signal, sys.argv[3]))  # these tests may run under nohup
    def stop(line):
        if line.startswith("step     1 "):
            os.kill(os.getpid(), int(sys.argv[2]))
    run = Run(__import__("pathlib").Path(given["folder"]), {})
    train_sft(SFTConfig(**given["config"]), given["rows"], given["validation"], run, say=stop)
"""


def train_in_a_child(given, how, hangup="SIG_DFL"):
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(given), str(int(how)), hangup]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_scheduler_that_ends_a_job_loses_nothing(how, sft, tmp_path):
    sft = replace(sft, save_every=4)
    run, straight = start_run("ended", "cpu", {}), start_run("straight", "cpu", {})
    given = {"config": vars(sft), "rows": ROWS[4:], "validation": ROWS[:4], "folder": str(run.folder)}
    write_json(tmp_path / "given.json", given)
    child = train_in_a_child(tmp_path / "given.json", how)
    assert child.returncode == -how, child.stderr
    assert "saved at step 2" in child.stdout
    actual, _, facts = train_sft(sft, ROWS[4:], ROWS[:4], run)
    expected, _, _ = train_sft(sft, ROWS[4:], ROWS[:4], straight)
    assert facts["resumed"] and same_weights(actual, expected)


@pytest.mark.slow
def test_under_nohup_a_closed_terminal_ends_nothing(sft, tmp_path):
    run = start_run("nohup", "cpu", {})
    given = {"config": vars(sft), "rows": ROWS[4:], "validation": ROWS[:4], "folder": str(run.folder)}
    write_json(tmp_path / "given.json", given)
    child = train_in_a_child(tmp_path / "given.json", signal.SIGHUP, "SIG_IGN")
    assert child.returncode == 0, child.stderr
    assert (run.checkpoint / "result").exists()


def test_signals_are_given_back_where_training_fails(sft, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    run = start_run("a", "cpu", {})
    monkeypatch.setattr(Run, "log", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_sft(sft, ROWS[4:], ROWS[:4], run)
    assert signal.getsignal(signal.SIGTERM) is before


# ---- pre-training --------------------------------------------------------------------------------


PRETRAIN = PretrainConfig(steps=8, documents_per_step=4, warmup_steps=2, growing_steps=4, save_every=2)


def test_pretraining_passes_over_a_checkpoint_that_a_kill_cut_short(tmp_path):
    tokenizer, run = dial_tokenizer(), start_run("killed", "cpu", {})
    expected, _ = pretrain(PRETRAIN, tokenizer, start_run("straight", "cpu", {}))
    pretrain(PRETRAIN, tokenizer, run, stop_at=4)
    torn = run.checkpoint / "checkpoint-6"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    actual, facts = pretrain(PRETRAIN, tokenizer, run)
    assert facts["resumed"] and same_weights(actual, expected)


def test_pretraining_is_not_repeated_and_other_settings_do_not_resume_it(never_trains):
    tokenizer, run = dial_tokenizer(), start_run("a", "cpu", {})
    first, facts = pretrain(PRETRAIN, tokenizer, run)
    other, other_facts = pretrain(replace(PRETRAIN, learning_rate=1e-2), tokenizer, run)
    assert not other_facts["resumed"] and not same_weights(first, other)
    never_trains()
    again, same = pretrain(PRETRAIN, tokenizer, run)
    assert same_weights(first, again) and same == facts


def test_a_training_that_stopped_early_does_not_go_one_step_further():
    tokenizer, run = dial_tokenizer(), start_run("a", "cpu", {})
    first, _ = pretrain(PRETRAIN, tokenizer, run, stop_at=4)
    again, facts = pretrain(PRETRAIN, tokenizer, run, stop_at=4)
    assert facts["steps"] == 4 and same_weights(first, again)
    assert not Path(run.checkpoint / "finished.json").exists()
