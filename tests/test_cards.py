"""Model cards and what may be published: from run folders as the notebooks leave them."""

import json
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from lib.runs import ROOT, RunFolderError, provenance, runs_folder, write_json
from lib.sources import SOURCES
from lib.studies import push as push_module
from lib.studies.cards import base_of, find_trained, write_cards
from lib.studies.push import check_result, push

QWEN = "Qwen/Qwen2.5-3B@3aab1f1954e9cc14eb9509a215f9e5ca08227a9b"


def weights(folder, **adapter):
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "config.json").write_text("{}")
    if adapter:
        write_json(folder / "adapter_config.json", adapter)
        (folder / "README.md").write_text("peft's own card, with base_model: /home/somebody")


def trained(run, base, rows, **settings):
    """What a training leaves in its folder."""
    usual = {
        "base": base,
        "weights": "qlora",
        "learning_rate": 2e-4,
        "seed": 7,
        "rows": "abc",
        "start": "def",
    }
    write_json(run / "checkpoint" / "config.json", usual | settings)
    write_json(run / "checkpoint" / "finished.json", provenance(facts={"steps": 350}))
    run.joinpath("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def sft(private_runs):
    """Notebook 02: an adapter on a hub model, and the policy that it was merged into."""
    run = private_runs / "single_gpu" / "02_qlora_sft"
    parameters = {
        "PROFILE": "single_gpu",
        "TEST_SOURCES": ["gsm8k"],
        "TEST_QUESTIONS": 600,
        "MAX_NEW_TOKENS": 64,
    }
    write_json(run / "config.json", parameters)
    write_json(
        run / "metrics.json",
        {"qlora": {"valid_share": 0.98765, "by": [1, 2], "format_share": {"easy": {"code": 0.25}}}},
    )
    trained(run, QWEN, [{"id": "1", "source": "aqua_rat"}] * 3 + [{"id": "2", "source": "gsm8k"}])
    weights(run / "checkpoint" / "result", base_model_name_or_path="Qwen/Qwen2.5-3B")
    weights(run / "checkpoint" / "merged")
    weights(run / "checkpoint" / "checkpoint-100")
    return run


@pytest.fixture
def arm(sft, private_runs):
    """Notebook 03 at the same profile: it starts from the merged policy."""
    run, start = private_runs / "single_gpu" / "03_ada_grpo", sft / "checkpoint" / "merged"
    write_json(run / "config.json", {"PROFILE": "single_gpu", "TEST_SOURCES": ["csqa"], "TEST_QUESTIONS": 9})
    write_json(run / "metrics.json", {"ada_grpo": {"accuracy": 0.5, "tiers": {"easy": {"accuracy": 0.75}}}})
    place = run / "ada_grpo"
    trained(
        place, str(start), [{"id": "csqa/1"}] * 2, method="ada_grpo", reading="formats", trainer={"top_k": 1}
    )
    weights(place / "checkpoint" / "result", base_model_name_or_path=str(start))
    weights(place / "policy")
    return run


def test_a_card_names_method_base_data_settings_and_numbers(sft):
    assert [path.parent.name for path in write_cards(sft)] == ["merged", "result"]
    card = ModelCard.load(sft / "checkpoint" / "merged" / "README.md")
    assert card.data.base_model == "Qwen/Qwen2.5-3B" and card.data.library_name == "transformers"
    assert card.data.datasets == [SOURCES["aqua_rat"].hub, SOURCES["gsm8k"].hub]
    for words in (
        "QLoRA (LoRA on a base in NF4), merged",
        "at revision `3aab1f1954e9cc14eb9509a215f9e5ca08227a9b`",
        f"- aqua_rat: 3 training rows ({SOURCES['aqua_rat'].home}",
        f"`{SOURCES['gsm8k'].hub}` at `{SOURCES['gsm8k'].revision}`",
        "learning_rate: 0.0002",
        "notebook 02_qlora_sft",
        "seed 7, 350 steps",
        "| valid_share | 0.9877 |\n| format_share.easy.code | 0.25 |",
        "On 600 test questions of gsm8k",
        "AutoModelForCausalLM.from_pretrained",
        "Choose one that they allow",
    ):
        assert words in card.text, words
    adapter = ModelCard.load(sft / "checkpoint" / "result" / "README.md")
    assert adapter.data.base_model == "Qwen/Qwen2.5-3B" and adapter.data.library_name == "peft"
    assert "PeftModel.from_pretrained(base" in adapter.text and "load it so" in adapter.text
    assert 'from_pretrained("Qwen/Qwen2.5-3B", revision=\'3aab' in adapter.text


def test_rows_from_local_files_have_no_revision(sft, private_runs):
    rows = private_runs / "single_gpu" / "01_data_formatting" / "sft_set" / "sft.jsonl"
    parameters = json.loads((sft / "config.json").read_text()) | {"SFT_ROWS": str(rows)}
    write_json(sft / "config.json", parameters)
    for folder, known in (("", True), ("data/samples", False)):
        write_json(rows.parent.parent / "config.json", {"DATA_FOLDER": folder})
        write_cards(sft)
        card = ModelCard.load(sft / "checkpoint" / "merged" / "README.md")
        assert (card.data.datasets is not None) == known and ("local files" in card.text) != known


def test_a_policy_of_ours_leads_back_to_the_hub_and_its_adapter_fits_no_other_base(sft, arm):
    write_cards(sft)
    write_cards(arm)
    policy = ModelCard.load(arm / "ada_grpo" / "policy" / "README.md")
    assert policy.data.base_model == "Qwen/Qwen2.5-3B"
    assert "a local policy, `merged`, which was trained from `Qwen/Qwen2.5-3B`" in policy.text
    assert "| accuracy | 0.5 |\n| tiers.easy.accuracy | 0.75 |" in policy.text and "<LONG_COT>" in policy.text
    adapter = ModelCard.load(arm / "ada_grpo" / "checkpoint" / "result" / "README.md")
    assert adapter.data.base_model is None and "the/local/policy/named/above" in adapter.text


def test_no_card_names_a_place_on_this_machine(sft, arm):
    for path in write_cards(sft) + write_cards(arm):
        text = path.read_text()
        assert not [place for place in (runs_folder(), ROOT, "/home/somebody") if str(place) in text]


def test_a_card_that_says_the_same_is_not_touched(sft):
    first = {path: path.stat().st_mtime_ns for path in write_cards(sft)}
    assert {path: path.stat().st_mtime_ns for path in write_cards(sft)} == first


def test_shipped_bases_are_no_hub_names():
    assert base_of("dial-sft")[0] is base_of("data/checkpoints/dial-sft")[0] is None


# ---- push --------------------------------------------------------------------------------------


class Hub:
    """In place of HfApi: nothing leaves this machine."""

    def __init__(self):
        self.calls = []

    def create_repo(self, repo, **options):
        self.calls.append((repo, options))

    def upload_folder(self, **options):
        self.calls.append(options)
        return SimpleNamespace(commit_url="https://hub/commit")


def test_push_is_private_and_sends_weights_tokenizer_and_card_alone(sft):
    hub, folder = Hub(), sft / "checkpoint" / "merged"
    assert push(folder, "me/arm", api=hub) == "https://hub/commit"
    assert hub.calls[0] == ("me/arm", {"private": True, "exist_ok": True})
    assert hub.calls[1]["folder_path"] == folder and (folder / "README.md").exists()
    sent = hub.calls[1]["allow_patterns"]
    assert "*.safetensors" in sent and not {"*", "*.bin", "*.json", "*.pt"} & set(sent)


def test_what_nobody_could_use_is_not_pushed(sft, arm, tmp_path):
    with pytest.raises(RunFolderError, match=r"holds no weights as safetensors. Push one of .*merged"):
        check_result(sft)
    with pytest.raises(RunFolderError, match=r"names a base on this machine"):
        check_result(arm / "ada_grpo" / "checkpoint" / "result")
    weights(tmp_path / "loose")
    with pytest.raises(RunFolderError, match="has no card"):
        check_result(tmp_path / "loose")
    with pytest.raises(RunFolderError, match="There is no folder"):
        check_result(tmp_path / "nowhere")


def test_the_command_says_no_token(sft, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(push_module, "HfApi", Hub)
    words = ["push", str(sft / "checkpoint" / "merged"), "--repo", "me/arm"]
    monkeypatch.setattr("sys.argv", words)
    assert push_module.main() == 0
    monkeypatch.setattr("sys.argv", [*words[:1], str(sft), *words[2:]])
    assert push_module.main() == 1
    said = capsys.readouterr()
    assert "secret" not in said.out + said.err and "error: " in said.err


def test_results_are_found_and_steps_on_the_way_are_not(sft, arm):
    found = {str(t.folder.relative_to(runs_folder().resolve())) for t in find_trained(runs_folder())}
    assert found == {
        "single_gpu/02_qlora_sft/checkpoint/merged",
        "single_gpu/02_qlora_sft/checkpoint/result",
        "single_gpu/03_ada_grpo/ada_grpo/policy",
        "single_gpu/03_ada_grpo/ada_grpo/checkpoint/result",
    }
