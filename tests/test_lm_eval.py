"""The task files for lm-eval: verdicts are ours; where lm-eval is installed they run on a tiny model."""

import importlib.util
import sys

import pytest
import yaml

from lib.runs import ROOT
from lib.thinking import CLOSE, OPEN

FOLDER = ROOT / "data" / "lm_eval"
TASKS = ["arm_gsm8k", "arm_math500", "nothinking_gsm8k", "nothinking_math500"]
GOOD = "<COT>\n15 * 6 = 90\n</COT>\n<ANSWER>\n30\n</ANSWER>"


class Tagged(yaml.SafeLoader):
    """YAML with lm-eval's names of functions."""


Tagged.add_constructor("!function", lambda loader, node: node.value)


def metrics(name):
    listed = yaml.load((FOLDER / name).read_text(), Tagged)["metric_list"]
    return {entry["metric"] for entry in listed}


@pytest.fixture(scope="module")
def utils():
    spec = importlib.util.spec_from_file_location("lm_eval_utils", FOLDER / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_tagged_response_is_read_strictly(utils):
    doc = {"answer": "30", "kind": "number"}
    found = utils.score_tagged(doc, [GOOD])
    assert (found["accuracy"], found["valid"], found["short_cot"], found["direct"]) == (1, 1, 1, 0)
    assert utils.score_tagged(doc, [f"{GOOD} and more"])["accuracy"] == 0
    assert utils.score_tagged(doc, ["30"])["valid"] == 0
    assert metrics("_arm_yaml") == found.keys()


def test_a_solution_is_read_after_the_thought_that_was_skipped(utils):
    doc = {"answer": "\\frac{3}{4}", "kind": "latex"}
    found = utils.score_solution(doc, ["Divide by 6: $\\boxed{0.75}$."])
    assert found == {"accuracy": 1.0, "thinks_again": 0.0}
    again = utils.score_solution(doc, [f"{OPEN}Wait{CLOSE} $\\boxed{{0.75}}$"])
    assert again == {"accuracy": 0.0, "thinks_again": 1.0}
    assert metrics("_nothinking_yaml") == found.keys()


def test_prompts_are_arm_s_frame_and_a_closed_thought(utils, tiny_qwen):
    known = {"data_folder": "data/samples", "pretrained": tiny_qwen}
    framed = utils.tasks("gsm8k", **known)["test"][0]
    assert framed["prompt"] == f"Human: {framed['question']}\nAssistant:"
    assert utils.tasks("math500", skip_thinking=True, **known)["test"][0]["prompt"].endswith(OPEN + CLOSE)


def test_lm_eval_runs_every_task_on_a_tiny_model(tiny_qwen, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install -e .[eval]")
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    model = {"pretrained": tiny_qwen, "dtype": "float32"}
    manager = TaskManager(
        include_path=str(FOLDER), include_defaults=False, metadata=model | {"data_folder": "data/samples"}
    )
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args=model,
        tasks=TASKS,
        task_manager=manager,
        gen_kwargs={"max_gen_toks": 8},
        device="cpu",
        limit=2,
        bootstrap_iters=0,
    )
    assert sorted(found["results"]) == TASKS
    for name in TASKS:
        assert found["results"][name]["accuracy,none"] == 0  # of a random model
        assert len(found["samples"][name]) == 2
        prompt = found["samples"][name][0]["arguments"][0][0]
        assert prompt.endswith("Assistant:" if name.startswith("arm") else OPEN + CLOSE)
