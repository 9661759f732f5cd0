import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bitsandbytes import matmul_4bit
from bitsandbytes.functional import dequantize_4bit, get_4bit_type, quantize_4bit
from peft import PeftModel
from transformers import AutoModelForCausalLM, DataCollatorForLanguageModeling

from lib.dial import dial_tokenizer, gold_response, new_dial_model, parse_question, sample_questions
from lib.engines import launch
from lib.formats import ReasoningFormat, render_response
from lib.methods.sft import (
    OPENING_WEIGHT,
    SFTConfig,
    loss_weights,
    make_trainer,
    train_sft,
)
from lib.methods.sft_rows import IGNORED, by_length, encode, encode_rows, masking_faults, read_rows
from lib.methods.training import accumulation_steps
from lib.policies.adapters import merge_adapter, start_embeddings
from lib.policies.load import load_policy
from lib.policies.save import save_policy
from lib.runs import start_run
from lib.studies import faults
from lib.studies.qlora import (
    batch_of,
    drift,
    guessed_digits,
    loss_levels,
    memory_plan,
    padded,
    ways_to_merge,
    weight_error,
)
from lib.studies.random_models import byte_level_tokenizer
from lib.tasks import FRAME


def dial_rows(count, seed, split):
    rows = [
        {"prompt": question.prompt, "completion": gold_response(question, format)}
        for question in sample_questions(count, seed=seed, split=split)
        for format in ReasoningFormat
    ]
    random.Random(seed).shuffle(rows)
    return rows


ROWS, VALIDATION = dial_rows(24, 0, "train"), dial_rows(4, 1, "validation")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random model on disk; its width is no multiple of the 64 weights in a block of NF4."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    save_policy(new_dial_model(seed=0, layers=2, width=96), dial_tokenizer(), folder)
    return str(folder)


@pytest.fixture
def config(base):
    return replace(
        SFTConfig.cpu(base), max_steps=12, batch_size=16, micro_batch_size=16, log_every=1, save_every=4
    )


def losses(run):
    return {row["step"]: row["loss"] for row in run.metrics() if "loss" in row}


# ---- data --------------------------------------------------------------------------------------


def test_the_prompt_has_no_loss_and_the_end_token_has(config):
    trainer = make_trainer(config, ROWS, VALIDATION, start_run("a", "cpu", {}))
    tokenizer = trainer.processing_class
    for row, encoded in zip(ROWS, trainer.train_dataset, strict=True):
        size = len(tokenizer(row["prompt"]).input_ids)
        assert encoded["input_ids"][:size] == tokenizer(row["prompt"]).input_ids
        assert encoded["labels"][:size] == [IGNORED] * size
        assert encoded["labels"][size:] == encoded["input_ids"][size:]
        assert tokenizer.decode(encoded["labels"][size:-1]) == row["completion"]
        assert encoded["labels"][-1] == tokenizer.eos_token_id
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    assert ((batch["labels"] == tokenizer.eos_token_id).sum(1) == 1).all()
    assert masking_faults(batch, tokenizer.eos_token_id) == []


def test_no_token_spans_prompt_and_response():
    texts = [row["prompt"] + row["completion"] for row in ROWS]
    tokenizer = byte_level_tokenizer(texts, vocabulary=600)
    row = ROWS[0]
    prompt = tokenizer(row["prompt"]).input_ids
    together = tokenizer(row["prompt"] + row["completion"]).input_ids
    assert together[: len(prompt)] != prompt, "the case this test is about: ':<' is one token"
    encoded = encode(row, tokenizer)
    assert encoded["input_ids"][: len(prompt)] == prompt
    assert tokenizer.decode(encoded["labels"][len(prompt) : -1]) == row["completion"]


def test_rows_that_are_too_long_are_left_out_whole():
    tokenizer = dial_tokenizer()
    lengths = [len(encode(row, tokenizer)["input_ids"]) for row in ROWS]
    cut = sorted(lengths)[len(lengths) // 2]
    kept = encode_rows(ROWS, tokenizer, cut)
    assert len(kept) == sum(length <= cut for length in lengths) < len(ROWS)
    assert all(row["input_ids"][-1] == tokenizer.eos_token_id for row in kept)
    with pytest.raises(ValueError, match="none of the 96 rows fits into 5 tokens"):
        encode_rows(ROWS, tokenizer, 5)


def test_faults_of_masking_are_found(config):
    trainer = make_trainer(config, ROWS, VALIDATION, start_run("a", "cpu", {}))
    tokenizer, collate = trainer.processing_class, trainer.data_collator
    rows, end = list(trainer.train_dataset)[:8], tokenizer.eos_token_id
    no_end = [{name: ids[:-1] for name, ids in row.items()} for row in rows]
    assert masking_faults(collate(no_end), end) == ["8 of 8 rows do not end with the end token"]
    no_mask = [row | {"labels": row["input_ids"]} for row in rows]
    assert masking_faults(collate(no_mask), end) == [
        "8 of 8 rows have loss on their first token, so on the prompt"
    ]
    # The collator of transformers masks padding by its id, and with it every end token.
    tokenizer.pad_token = tokenizer.eos_token
    by_id = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    tokenizer.padding_side = "right"
    batch = by_id([{"input_ids": row["input_ids"]} for row in rows])
    assert "8 of 8 rows have no loss on their last token" in masking_faults(batch, end)
    batch = collate(rows)
    batch["labels"][batch["attention_mask"] == 0] = end
    assert [fault.split(" rows ")[1] for fault in masking_faults(batch, end)] == ["have loss on padding"]


def test_padding_with_the_end_token_still_teaches_to_end(config, base):
    model, tokenizer = load_policy(base)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(base + "-pad")
    model.save_pretrained(base + "-pad")
    trainer = make_trainer(replace(config, base=base + "-pad"), ROWS, VALIDATION, start_run("a", "cpu", {}))
    batch = next(iter(trainer.get_train_dataloader()))
    assert trainer.processing_class.pad_token_id == trainer.processing_class.eos_token_id
    assert masking_faults(batch, tokenizer.eos_token_id) == []


def test_an_end_that_is_missing_and_one_without_a_label_are_the_same_fault(base):
    model, tokenizer = load_policy(base)
    rows = [encode(row, tokenizer) for row in ROWS[:6]]
    losses, found = {}, {}
    for name, spoil in faults.FAULTS.items():
        batch = padded(spoil(rows), tokenizer, model.device)
        losses[name] = model(**batch).loss.item()
        found[name] = bool(masking_faults(batch, tokenizer.eos_token_id))
    assert found == {"sound": False, "no_end": True, "pad_is_end": True, "no_mask": True}
    assert losses["no_end"] == pytest.approx(losses["pad_is_end"], rel=1e-5)


def test_a_faulty_first_batch_stops_training(config, monkeypatch):
    def unmasked(row, tokenizer):
        ids = encode(row, tokenizer)["input_ids"]
        return {"input_ids": ids, "labels": ids}

    monkeypatch.setattr("lib.methods.sft_rows.encode", unmasked)
    with pytest.raises(ValueError, match=r"16 of 16 rows have loss on their first token"):
        train_sft(config, ROWS, VALIDATION, start_run("a", "cpu", {}))


# ---- loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["token", "response"])
def test_micro_batches_do_not_change_the_loss(config, weighting):
    config = replace(config, weights="full", weighting=weighting)
    first = {}
    for name, size in (("whole", 16), ("micro", 4)):
        run = start_run(name, "cpu", {})
        train_sft(replace(config, micro_batch_size=size), ROWS[:16], VALIDATION, run, stop_at=1)
        first[name] = run.metrics()[0]
    assert first["micro"]["loss"] == pytest.approx(first["whole"]["loss"], rel=1e-5)
    assert first["micro"]["grad_norm"] == pytest.approx(first["whole"]["grad_norm"], rel=1e-4)
    for format in ReasoningFormat:
        assert first["micro"][f"loss_{format}"] == pytest.approx(first["whole"][f"loss_{format}"], rel=1e-5)


def test_rows_of_like_length_share_a_micro_batch():
    lengths = [[5, 2], [7, 3], [4, 6]]
    batches = []
    for pair in lengths:
        mask = (torch.arange(max(pair)) < torch.tensor(pair)[:, None]).long()
        ids = torch.tensor(pair)[:, None] * mask
        batches.append({"input_ids": ids, "labels": ids.where(mask > 0, -100), "attention_mask": mask})
    found = by_length(batches)
    assert [batch["attention_mask"].sum(1).tolist() for batch in found] == [[2, 3], [4, 5], [6, 7]]
    for batch in found:
        real = batch["attention_mask"] > 0
        assert batch["input_ids"].shape[1] == real.sum(1).max()
        assert (batch["labels"][~real] == -100).all() and (batch["labels"] == batch["input_ids"])[real].all()


def test_the_loss_of_each_format_is_the_mean_over_its_tokens(config, base):
    run = start_run("a", "cpu", {})
    train_sft(replace(config, weights="full", new_tokens={}), ROWS[:16], VALIDATION, run, stop_at=1)
    logged = run.metrics()[0]
    model, tokenizer = load_policy(base)
    totals = {format: [0.0, 0] for format in ReasoningFormat}
    for row in ROWS[:16]:
        encoded = encode(row, tokenizer)
        format = next(f for f in ReasoningFormat if row["completion"].startswith(f.prefix))
        ids, labels = torch.tensor([encoded["input_ids"]]), torch.tensor([encoded["labels"]])
        with torch.inference_mode():
            loss = model(input_ids=ids, labels=labels).loss.item()
        size = int((labels != IGNORED).sum())
        totals[format][0] += loss * size
        totals[format][1] += size
    for format, (total, size) in totals.items():
        assert logged[f"loss_{format}"] == pytest.approx(total / size, rel=1e-4)
    mean = sum(total for total, _ in totals.values()) / sum(size for _, size in totals.values())
    assert logged["loss"] == pytest.approx(mean, rel=1e-4)


def test_weights_by_response_leave_the_choice_of_format_alone():
    # Responses of 4 and 6 targets; their tags have 1 and 2 tokens.
    no = IGNORED
    labels = torch.tensor([[no, no, 5, 6, 7, 8, no], [no, 5, 6, 7, 7, 7, 8]])
    openings = torch.tensor([1, 2])
    token = loss_weights(labels, openings, "token")
    assert token.tolist() == [[0, 0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 1]]
    weights = loss_weights(labels, openings, "response")
    o, a, b = OPENING_WEIGHT, 1 / 4, 1 / 6
    expected = torch.tensor([[0, 0, o, a, a, a, 0], [0, o, o, b, b, b, b]])
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize(
    ("processes", "steps"), [(1, 32), (2, 16), (4, 8), (8, 4)]
)  # ARM: 4 responses x 8 steps x 4 GPUs = 128
def test_a_step_holds_as_many_responses_on_any_number_of_processes(processes, steps):
    assert accumulation_steps(128, 4, processes) == steps
    assert 4 * processes * steps == 128


@pytest.mark.parametrize("processes", [3, 64])
def test_a_batch_that_cannot_be_shared_is_refused(processes):
    with pytest.raises(ValueError, match="make batch_size a multiple of"):
        accumulation_steps(128, 4, processes)


def test_the_paper_preset_is_the_papers():
    paper = SFTConfig.paper("Qwen/Qwen2.5-7B")
    assert (paper.lora_rank, paper.learning_rate, paper.epochs) == (8, 2e-4, 6)
    assert (paper.batch_size, paper.warmup_share, paper.max_length) == (128, 0.1, 4096)
    assert paper.weighting == "token" and paper.max_steps == -1


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_every_method_lowers_the_loss_and_is_silent(config, method, capfd):
    run = start_run(method, "cpu", {})
    config = replace(config, weights=method)
    model, _, facts = train_sft(config, ROWS, VALIDATION, run)
    assert losses(run)[12] < losses(run)[1] - 0.5
    rows = [row for row in run.metrics() if "eval_perplexity" in row]
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert facts["perplexity"] == min(row["eval_perplexity"] for row in rows)
    assert facts["tokens_per_second"] > 0 and facts["memory_mb"] > 100
    share = facts["trained_parameters"] / model.num_parameters()
    assert share == 1 if method == "full" else share < 0.35
    assert capfd.readouterr() == ("", "")
    frozen = [p for name, p in model.named_parameters() if "lora_" not in name and "embed" not in name]
    assert all(p.requires_grad == (method == "full") for p in frozen)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight, "still tied"


def test_new_tokens_start_from_known_ones_and_are_trained(config, base):
    tokenizer = dial_tokenizer()
    vocabulary = tokenizer.get_vocab()
    new, known = vocabulary["<ANSWER>\n"], vocabulary["shows"]
    original, _ = load_policy(base)
    original = original.get_input_embeddings().weight
    trainer = make_trainer(config, ROWS, VALIDATION, start_run("a", "cpu", {}))
    rows = trainer.model.get_input_embeddings().weight
    assert torch.equal(rows[new], rows[known]) and not torch.equal(original[new], original[known])
    torch.testing.assert_close(rows[known], original[known], rtol=0.01, atol=0.001)  # TRL rounds to bfloat16
    trainer.train()
    rows = trainer.model.get_input_embeddings().weight
    assert not torch.equal(rows[new], rows[known]) and not torch.equal(rows[known], original[known])
    with pytest.raises(ValueError, match="new_tokens names '<TALK>'"):
        start_embeddings(load_policy(base)[0], tokenizer, {"<TALK>": "shows"})


def test_nf4_takes_less_memory_and_leaves_the_output_layer_alone(base):
    full, _ = load_policy(base)
    quantised, _ = load_policy(base, quantised=True)
    layer = quantised.model.layers[0].mlp.up_proj
    assert layer.weight.dtype == torch.uint8 and layer.weight.quant_state.nested
    assert quantised.lm_head.weight.dtype == torch.float32
    linear = sum(m.weight.numel() for n, m in full.named_modules() if "_proj" in n)
    saved = (full.get_memory_footprint() - quantised.get_memory_footprint()) / 2**20
    assert saved == pytest.approx(linear * (4 - 0.5) / 2**20, rel=0.05)


def test_the_memory_of_7b_is_known_without_its_weights():
    plan = memory_plan(["Qwen/Qwen2.5-7B"])
    gib = plan.groupby(["method", "kind"])["gib"].sum()
    assert gib["lora", "weights"] == pytest.approx(2 * 7.62e9 / 2**30, rel=0.02)  # 7.61B, says its model card
    assert gib["full", "optimiser"] == pytest.approx(2 * gib["full", "gradients"])
    assert gib["qlora", "weights"] < 0.4 * gib["lora", "weights"]
    assert set(plan["kind"]) == {"weights", "gradients", "optimiser", "activations"}
    assert plan.groupby("method")["trained"].first()["qlora"] < 0.01


def test_the_level_of_a_loss_is_what_must_be_guessed():
    """Two direct answers of four tokens: one within reach, one beyond."""
    prompts = [
        "The red dial shows 3. Turn it +4 x7. Now?",
        "The red dial shows 3. Turn it +4 x7 then +1. Now?",
    ]
    rows = [
        {"prompt": FRAME.format(question=text), "completion": "<ANSWER>\n9\n</ANSWER>", "format": "direct"}
        for text in prompts
    ]
    level = loss_levels(rows, dial_tokenizer())["direct"]
    assert level == pytest.approx((2 * math.log(4) + math.log(10)) / 8)
    deep = parse_question("The red dial shows 3. Turn it +4 x7 then +1 +1 later +1 +1 +1 +1 +1. Now?")
    assert deep.depth == 9 and guessed_digits(deep, ReasoningFormat.CODE) == 1


@pytest.fixture
def adapter(config):
    """A briefly trained QLoRA model, and where its adapter lies."""
    run = start_run("adapter", "cpu", {})
    model, tokenizer, _ = train_sft(replace(config, max_steps=8), ROWS, VALIDATION, run)
    return model, tokenizer, run.checkpoint / "result"


def test_merging_into_the_dequantised_base_alone_keeps_the_model(adapter, base, tmp_path):
    model, tokenizer, folder = adapter
    batch = batch_of(VALIDATION, tokenizer, torch.device("cpu"))
    merged = merge_adapter(base, folder, quantised=True)
    assert weight_error(model, merged) < 1e-7
    assert drift(model, merged, batch)["kl"] < 1e-6 and drift(model, merged, batch)["other_choice"] < 0.01
    apart, wrong = ways_to_merge(base, folder, torch.float32)
    for other in wrong.values():
        assert weight_error(apart, other) > 1e-4 and drift(apart, other, batch)["kl"] > 1e-5

    assert all(parameter.dtype == torch.float32 for parameter in merged.parameters())
    save_policy(merged, tokenizer, tmp_path / "merged")
    loaded, _ = load_policy(tmp_path / "merged")
    ids = batch["input_ids"]
    assert torch.equal(loaded(ids).logits, merged(ids).logits)


def test_plain_peft_loads_the_adapter(adapter, base):
    model, tokenizer, folder = adapter
    ids = tokenizer([row["prompt"] for row in VALIDATION], return_tensors="pt", padding=True).input_ids
    quantised, _ = load_policy(base, quantised=True)
    before = quantised(ids).logits
    loaded = PeftModel.from_pretrained(quantised, folder).eval()
    assert loaded.peft_config["default"].base_model_name_or_path == base
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert (loaded(ids).logits - before).abs().max() > 0.1


def test_the_best_checkpoint_is_kept(config):
    config = replace(config, weights="full", learning_rate=1e-2, max_steps=40, save_every=5, log_every=5)
    run = start_run("a", "cpu", {})
    model, tokenizer, facts = train_sft(config, ROWS[:16], VALIDATION, run)  # learns 16 rows by heart
    curve = {row["step"]: row["eval_perplexity"] for row in run.metrics() if "eval_perplexity" in row}
    assert facts["best_step"] == min(curve, key=curve.get) < 40, "the case this test is about"
    total = count = 0
    for row in VALIDATION:
        encoded = encode(row, tokenizer)
        labels = torch.tensor([encoded["labels"]])
        with torch.inference_mode():
            loss = model(input_ids=torch.tensor([encoded["input_ids"]]), labels=labels).loss
        total += loss.item() * int((labels != IGNORED).sum())
        count += int((labels != IGNORED).sum())
    assert 2.718281828 ** (total / count) == pytest.approx(min(curve.values()), rel=1e-3)


CHILD = """
    import json, os, signal, sys
    import torch
    from lib.runs import start_run
    from lib.methods.sft import SFTConfig, train_sft
    torch.set_num_threads(1)
    given = json.load(open(sys.argv[1]))
    def die_at_step_6(line):
        if line.startswith("step     6"):
            os.kill(os.getpid(), signal.SIGKILL)
    run = start_run("killed", "cpu", {})
    train_sft(SFTConfig(**given["config"]), given["rows"], given["validation"], run, say=die_at_step_6)
"""


@pytest.mark.slow
def test_a_killed_training_resumes_with_the_same_next_loss(config, tmp_path):
    torch.set_num_threads(1)
    straight = start_run("straight", "cpu", {})
    expected, _, _ = train_sft(config, ROWS, VALIDATION, straight)
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"config": vars(config), "rows": ROWS, "validation": VALIDATION}))
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(given)]
    child = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert child.returncode == -signal.SIGKILL, child.stderr
    run = start_run("killed", "cpu", {})
    assert max(losses(run)) == 6 and not (run.checkpoint / "result").exists()
    torn = run.checkpoint / "checkpoint-6"  # as a kill in the midst of saving leaves it
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"half")
    actual, _, facts = train_sft(config, ROWS, VALIDATION, run)
    assert facts["resumed"]
    assert losses(run) == pytest.approx(losses(straight), abs=1e-5)
    assert [row["step"] for row in run.metrics()] == [row["step"] for row in straight.metrics()]
    weights = actual.state_dict()
    for name, value in expected.state_dict().items():
        if "lora_" in name or "embed" in name:
            torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=1e-4)


def test_an_interrupt_saves_and_the_same_call_goes_on(config):
    straight = start_run("straight", "cpu", {})
    train_sft(config, ROWS, VALIDATION, straight)
    run = start_run("stopped", "cpu", {})

    def interrupt(line):
        if line.startswith("step     6"):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="saved at step 7"):
        train_sft(config, ROWS, VALIDATION, run, say=interrupt)
    train_sft(config, ROWS, VALIDATION, run)
    assert losses(run) == pytest.approx(losses(straight), abs=1e-5)
    _, _, facts = train_sft(config, ROWS, VALIDATION, run)
    assert facts["steps"] == config.max_steps and facts["resumed"], "a finished run is not trained again"
    assert losses(run) == pytest.approx(losses(straight), abs=1e-5)


# ---- the real world ----------------------------------------------------------------------------


def real_rows():
    """GSM8K as direct and short CoT rows, from the files of the project where they are at hand."""
    folder = os.environ.get("REAL_DATA_DIR")
    if folder:
        lines = (Path(folder) / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()[:24]
        pairs = [(row["question"], row["answer"]) for row in map(json.loads, lines)]
    else:
        pairs = [
            (f"Ann has {n} pens and buys {n + 2} more. How many pens has she?", str(2 * n + 2))
            for n in range(24)
        ]
    return [
        {
            "prompt": FRAME.format(question=question),
            "completion": render_response(format, rationale, answer),
        }
        for question, answer in pairs
        for format, rationale in (
            (ReasoningFormat.DIRECT, ""),
            (ReasoningFormat.SHORT_COT, f"The answer is {answer}"),
        )
    ]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_real_architecture_learns_real_questions_under_qlora(tiny_qwen, precision):
    rows = real_rows()
    config = replace(
        SFTConfig.paper(tiny_qwen),
        precision=precision,
        learning_rate=1e-2,
        max_steps=8,
        batch_size=8,
        log_every=1,
        save_every=4,
    )
    run = start_run("qwen", "cpu", {})
    model, tokenizer, facts = train_sft(config, rows[:40], rows[40:], run)
    assert facts["steps"] == 8 and facts["too_long"] == 0
    assert losses(run)[8] < losses(run)[1] - 0.2
    assert model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.uint8
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert len(adapted) == 2 * 7 and not any("lm_head" in name for name in adapted)
    plain = AutoModelForCausalLM.from_pretrained(tiny_qwen)
    loaded = PeftModel.from_pretrained(plain, run.checkpoint / "result").state_dict()
    trained = model.state_dict()
    assert all(torch.equal(loaded[name], trained[name].float()) for name in loaded if "lora_" in name)
    assert any(loaded[name].abs().max() > 0 for name in loaded if "lora_B" in name)
    ids = tokenizer(rows[0]["prompt"], return_tensors="pt").input_ids
    merged = merge_adapter(config.base, run.checkpoint / "result", quantised=True, dtype=config.dtype)
    with torch.inference_mode():
        difference = (model(ids).logits.float() - merged(ids).logits.float()).abs().max()
    assert difference < (1e-4 if precision == "float32" else 0.1)


# ---- several processes -------------------------------------------------------------------------


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_bad_line_of_the_rows_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [ROWS[0], {"prompt": "Human: 1\nAssistant:", "completion": ""}])
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2: 'completion' must be text"):
        read_rows(path)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["token", "response"])
def test_two_processes_take_the_steps_of_one(config, tmp_path, weighting, monkeypatch):
    """The same batches, shared out: the sums over tokens and responses are those of one process."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = replace(
        config, max_steps=4, save_every=2, micro_batch_size=4, weighting=weighting, learning_rate=1e-2
    )
    given = {
        "sft": vars(config),
        "rows": write_rows(tmp_path / "rows.jsonl", ROWS),
        "validation_rows": write_rows(tmp_path / "validation.jsonl", VALIDATION),
    }
    curves = []
    for processes in (1, 2):
        run = start_run(f"by_{processes}", "cpu", {})
        facts = launch.run(
            "lib.methods.sft:train", given | {"folder": str(run.folder)}, num_processes=processes
        )
        assert facts["processes"] == processes and facts["steps"] == 4
        rows = run.metrics()
        curves.append([(row["step"], row.get("loss", row.get("eval_loss"))) for row in rows])
        PeftModel.from_pretrained(load_policy(config.base)[0], run.checkpoint / "result")
    assert [step for step, _ in curves[0]] == [step for step, _ in curves[1]]
    assert [loss for _, loss in curves[0]] == pytest.approx([loss for _, loss in curves[1]], abs=2e-3)


@pytest.mark.parametrize("width", [96, 64, 160])
def test_nf4_is_what_the_equations_say_at_any_width(width, tiny_qwen):
    """bitsandbytes 0.50 alone is wrong on the CPU where the width is no multiple of 64."""
    load_policy(tiny_qwen, quantised=True)  # mends it
    levels = get_4bit_type("nf4", device="cpu")
    weight = torch.randn(20, width, generator=torch.manual_seed(0))
    blocks = weight.reshape(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    expected = (levels[(blocks[:, :, None] / scales[:, :, None] - levels).abs().argmin(2)] * scales).view_as(
        weight
    )
    packed, state = quantize_4bit(weight, quant_type="nf4", blocksize=64)
    torch.testing.assert_close(dequantize_4bit(packed, state), expected)
    x = torch.randn(3, width, requires_grad=True)
    outputs = matmul_4bit(x, packed, state)
    torch.testing.assert_close(outputs, x @ expected.T)
    outputs.sum().backward()
    torch.testing.assert_close(x.grad, expected.sum(0).expand(3, -1))
