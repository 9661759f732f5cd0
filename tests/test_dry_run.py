"""Dry runs: a profile's notebooks in a chain, with sizes cut and nothing else changed."""

import importlib.util
import json
import urllib.request

import pytest
import yaml
from test_course import profile as write_profile
from test_course import write

from lib.course.notebooks import NOTEBOOKS, CourseError, find_notebooks
from lib.course.profiles import plan, read_values
from lib.formats import ReasoningFormat
from lib.runs import RunFolderError
from lib.sources import load
from lib.studies import dry_run as dry
from lib.studies.dry_run import SAMPLES, dry_plan, dry_run, size_faults
from lib.studies.sft_set import check_response
from lib.studies.stand_in import sample_answers, serving, stand_in_model
from lib.studies.teachers import chat_teacher

PROFILES = NOTEBOOKS / "profiles"
REAL = sorted({file.parent.name for file in PROFILES.glob("*_*/0*.yaml")} - {"dry_run"})
URL = "http://127.0.0.1:1/v1"
KEPT = (
    "WEIGHTS",
    "PARALLEL",
    "PRESET",
    "LORA_RANK",
    "LEARNING_RATE",
    "UPDATES",
    "TRAIN_SOURCES",
    "PILOT_SOURCES",
    "TEST_SOURCES",
)
KEPT += ("VARIANT", "DELTA", "TEMPERATURE", "START", "THREADS", "TEACHER_MODEL", "SERVER_MODEL")


@pytest.fixture(autouse=True)
def no_models(monkeypatch, request):
    """Names of models are enough where none is loaded."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(dry, "stand_in_model", lambda name: f"/random/for/{name}")


@pytest.mark.parametrize("overlay", sorted((PROFILES / "dry_run").glob("*.yaml")), ids=lambda file: file.stem)
def test_an_overlay_names_sizes_alone(overlay):
    assert not list(size_faults(overlay.stem, read_values(overlay), overlay.name))


@pytest.mark.parametrize("profile", REAL)
@pytest.mark.parametrize("vllm", [True, False])
def test_a_dry_run_keeps_every_setting_of_a_profile(profile, vllm, monkeypatch):
    spec = importlib.util.find_spec
    monkeypatch.setattr(
        dry.importlib.util, "find_spec", lambda name: vllm or None if name == "vllm" else spec(name)
    )
    for path in find_notebooks():
        full, (planned, said) = plan(path, profile, {}), dry_plan(path, profile, {}, URL)
        if full.left_out or path.stem == "08_scale_up":
            continue
        assert not planned.left_out, path.stem
        assert not list(planned.faults)
        for name in KEPT:
            if name in full.values and not (name == "UPDATES" and path.stem.startswith("06")):
                assert planned.values[name] == full.values[name], name
        processes = full.values.get("NUM_PROCESSES", 1)
        assert planned.values.get("NUM_PROCESSES", 1) == min(processes, 2)
        assert any("2 processes for" in line for line in said) == (processes > 2)
        wanted = full.values.get("TRAINER", {})
        engine = full.values.get("ENGINE", "transformers")
        if vllm:
            assert planned.values.get("TRAINER", {}) == wanted
            assert planned.values.get("ENGINE", engine) == engine
        else:
            left_out = bool(wanted.get("use_vllm")) or engine == "vllm"
            assert any("without vLLM" in line for line in said) == left_out
            assert "vllm" not in f"{planned.values.get('TRAINER')} {planned.values.get('ENGINE')}"
        numbers = [name for name, value in full.values.items() if isinstance(value, int) and value > 0]
        assert all(planned.values[name] <= full.values[name] for name in numbers)
        text = json.dumps(planned.given)
        assert f"runs/{profile}/" not in text and "localhost" not in text


def test_what_is_no_size_is_refused(tmp_path, private_runs):
    folder = tmp_path / "notebooks"
    parameters = 'PROFILE: str = "cpu"  # [name]\nSTEPS: int = 9  # [1..]\nRATE: float = 0.5  # [0..1]\n'
    path = write(folder, "00_a", "print(PROFILE, STEPS, RATE)", parameters=parameters)
    write_profile(folder, "large", "00_a", STEPS=1000)
    write_profile(folder, "dry_run", "00_a", RATE=0.1, STEPS=2)
    with pytest.raises(CourseError, match=r"dry_run/00_a.yaml: RATE is no size"):
        dry_run("large", folder=folder)
    assert not private_runs.exists()
    write_profile(folder, "dry_run", "00_a", STEPS=2)
    assert dry_plan(path, "large", {}, URL)[0].given == {"STEPS": 2, "PROFILE": "large_dry_run"}
    assert dry_plan(path, "large", {"STEPS": 7}, URL)[0].given["STEPS"] == 7
    write_profile(folder, "large", "00_a", STEPS=1)
    assert dry_plan(path, "large", {}, URL)[0].given["STEPS"] == 1


def test_notebooks_that_read_one_another_run_in_order_and_others_beside_them():
    plans = [dry_plan(path, "single_gpu", {}, URL)[0] for path in find_notebooks()]
    chain, others = dry._lanes([planned for planned in plans if not planned.left_out])
    assert [planned.path.stem[:2] for planned in chain] == ["01", "02", "03", "04"]
    assert {"05", "06"} <= {planned.path.stem[:2] for planned in others}


# ---- what stands in ----------------------------------------------------------------------------


def test_the_stand_in_server_teaches_right_responses(tmp_path, monkeypatch):
    from lib.engines.server import ChatServer

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    tasks = load("aqua_rat", SAMPLES / "aqua_rat_train.jsonl", split="train").examples[:2]
    asked = [(task, format) for task in tasks for format in (ReasoningFormat.CODE, ReasoningFormat.LONG_COT)]
    with serving(sample_answers(SAMPLES)) as (url, *_):
        replies = chat_teacher(ChatServer(url, "some/model", tmp_path), show=lambda line: None)(asked)
        body = json.dumps({"messages": [{"role": "user", "content": "Who knows?"}]}).encode()
        with urllib.request.urlopen(f"{url}/chat/completions", body) as other:
            assert "Answer: A" in json.load(other)["choices"][0]["message"]["content"]
    for (task, format), reply in zip(asked, replies, strict=True):
        assert reply.text and check_response(task, format, reply.text) is None


def test_a_port_that_is_taken_is_no_obstacle():
    answer = sample_answers(SAMPLES)
    with serving(answer) as (first, _, server), serving(answer, server.server_port) as (second, *_):
        assert first != second


def test_every_dataset_of_a_profile_has_samples():
    for file in PROFILES.glob("*_*/*.yaml"):
        values = yaml.safe_load(file.read_text())
        for split in ("train", "test"):
            for name in values.get(f"{split.upper()}_SOURCES", []):
                assert load(name, SAMPLES / f"{name}_{split}.jsonl", split=split).examples
    assert len(load("adareasoner", SAMPLES / "adareasoner.json").examples) >= 10


def test_a_model_of_an_unknown_architecture_has_no_stand_in():
    with pytest.raises(RunFolderError, match="mistralai/Mistral-7B: a dry run has random models in place of"):
        stand_in_model("mistralai/Mistral-7B")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("profile", "only"), [("single_gpu", ["01", "02"]), ("multi_gpu", ["01", "02", "03", "05"])]
)  # all of them: make dry-run
def test_the_notebooks_of_a_profile_run_dry_one_after_the_other(profile, only, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    outcomes = dry_run(profile, only=only)
    assert {outcome.status for outcome in outcomes} <= {
        "ok",
        f"not in profile {profile}",
        "has no dry-run file",
    }
    assert sum(outcome.status == "ok" for outcome in outcomes) == len(only)
