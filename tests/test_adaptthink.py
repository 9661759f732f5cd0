import json
import math
import random
from dataclasses import asdict, replace
from types import SimpleNamespace

import nbformat
import pytest
import torch
from tokenizers import AddedToken
from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed

from lib.course.declared import read_parameters
from lib.course.notebooks import NOTEBOOKS
from lib.course.profiles import plan
from lib.dial import dial_task, dial_tasks, dial_tokenizer, new_dial_model, sample_questions
from lib.dial.thinker import thinker_rows
from lib.engines import launch
from lib.engines.ask import as_engine, ask
from lib.engines.base import Kept
from lib.methods import METHODS, adaptthink
from lib.methods.adaptthink import (
    UNREAD,
    VARIANTS,
    AdaptThink,
    adaptthink_advantages,
)
from lib.methods.base import Progress
from lib.methods.fit import build, fit
from lib.methods.readings import accuracy_reward
from lib.methods.training import load_trained
from lib.policies.load import load_policy
from lib.policies.save import save_policy
from lib.runs import Run
from lib.studies import thinking_runs
from lib.studies.cold_start import adaptthink_loss
from lib.studies.random_models import byte_level_tokenizer
from lib.studies.reference_samples import sample_reference
from lib.studies.thinking_baselines import mixed_rows, shortest_pairs, train_dpo
from lib.tasks import Rollout, Task, rollout_table, task_rows
from lib.thinking import (
    CLOSE,
    NOTHINKING,
    THINKING,
    ModeTokens,
    is_solution_right,
    read_solution,
    read_thinking,
    thinking_prompt,
    thinking_tasks,
    with_reference,
)


def tensors(*lists):
    return [torch.tensor(values) for values in lists]


# ---- advantages --------------------------------------------------------------------------------


def test_advantages_by_hand():
    """delta 0.05: right and wrong in both modes, for a reference that is right 3 times of 4."""
    rewards, reference, skipped = tensors([1.0, 0.0, 1.0, 0.0], [0.75] * 4, [True, True, False, False])
    advantages = adaptthink_advantages(rewards, reference, skipped, 0.05)
    assert advantages.tolist() == pytest.approx([0.30, -0.70, 0.25, -0.75])


def test_delta_is_the_smallest_step_that_pays_for_giving_up():
    """With K = 16, a wrong NoThinking answer gains where the reference is never right, and only there."""
    reference = torch.arange(17) / 16
    gave_up = torch.zeros(17), reference, torch.ones(17, dtype=torch.bool)
    assert (adaptthink_advantages(*gave_up, 0.05) > 0).nonzero().flatten().tolist() == [0]
    assert (adaptthink_advantages(*gave_up, 0.075) > 0).nonzero().flatten().tolist() == [0, 1]
    assert not (adaptthink_advantages(*gave_up, 0.0) > 0).any()


# ---- losses ------------------------------------------------------------------------------------


def slow_loss(log_probs, old, advantages, mask, skipped, share=0.5, epsilon=0.2, variant="geometric_mean"):
    """The same with plain numbers, response by response."""
    total = 0.0
    for new_row, old_row, advantage, mask_row, skip in zip(
        log_probs.tolist(), old.tolist(), advantages.tolist(), mask.tolist(), skipped.tolist(), strict=True
    ):
        if variant != "unadjusted":
            old_row = [math.log(share if skip else 1 - share), *old_row[1:]]
        steps = [n - o for n, o, m in zip(new_row, old_row, mask_row, strict=True) if m]
        if variant == "sequence":
            ratios = [math.exp(sum(steps))]
        elif variant == "geometric_mean":
            ratios = [math.exp(sum(steps) / len(steps))]
        else:
            ratios = [math.exp(step) for step in steps]
        clipped = [min(max(r, 1 - epsilon), 1 + epsilon) for r in ratios]
        values = [-min(r * advantage, c * advantage) for r, c in zip(ratios, clipped, strict=True)]
        total += sum(values) / len(values)
    return total / len(log_probs)


def batch(seed, count=24, length=7):
    """Log-probs near each other, and some far apart, so that some ratios are clipped and some are not."""
    draw = torch.Generator().manual_seed(seed)
    old = -torch.rand(count, length, generator=draw, dtype=torch.float64) * 2 - 0.05
    new = old + torch.randn(count, length, generator=draw, dtype=torch.float64) * 0.2
    lengths = torch.randint(1, length + 1, (count, 1), generator=draw)
    mask = (torch.arange(length) < lengths).long()
    advantages = torch.randn(count, generator=draw, dtype=torch.float64)
    skipped = torch.rand(count, generator=draw) < 0.5
    return new, old, advantages, mask, skipped


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("share", "epsilon"), [(0.5, 0.2), (0.25, 0.1)])
def test_loss_and_gradient_equal_a_slow_reference(variant, share, epsilon):
    new, old, advantages, mask, skipped = batch(3)
    settings = {"epsilon": epsilon, "variant": variant}
    new.requires_grad_()
    loss = adaptthink_loss(new, old, advantages, mask, skipped, nothinking_ratio=share, **settings)
    loss.backward()
    assert loss.item() == pytest.approx(
        slow_loss(new, old, advantages, mask, skipped, share, **settings), rel=1e-9
    )
    step = 1e-6
    for row, column in [(0, 0), (1, 0), (2, 1), (5, 0), (9, 2), (20, 0)]:
        up, down = new.detach().clone(), new.detach().clone()
        up[row, column] += step
        down[row, column] -= step
        slope = (
            slow_loss(up, old, advantages, mask, skipped, share, **settings)
            - slow_loss(down, old, advantages, mask, skipped, share, **settings)
        ) / (2 * step)
        assert new.grad[row, column].item() == pytest.approx(slope, rel=1e-4, abs=1e-9)


def test_losses_by_hand():
    """One NoThinking response of two tokens, A = 0.55, P(</think>) = 0.1, the second token unchanged.

    sequence: ratio 0.1 / 0.5 = 0.2; geometric mean: sqrt(0.2); token: 0.2 and 1; unadjusted: 1 and 1.
    """
    log_probs = torch.tensor([[math.log(0.1), -0.7]])
    rest = log_probs.clone(), torch.tensor([0.55]), torch.ones(1, 2), torch.tensor([True])
    losses = {variant: adaptthink_loss(log_probs, *rest, variant=variant).item() for variant in VARIANTS}
    assert losses == pytest.approx(
        {
            "geometric_mean": -0.55 * math.sqrt(0.2),
            "sequence": -0.11,
            "token": -0.55 * 0.6,
            "unadjusted": -0.55,
        }
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_likely_first_token_is_clipped_by_hand(variant):
    """P(</think>) = 0.9 in a response of one token, A = 1: the ratio 1.8 is clipped to 1.2 where adjusted."""
    log_probs = torch.tensor([[math.log(0.9)]], requires_grad=True)
    rest = log_probs.detach(), torch.ones(1), torch.ones(1, 1), torch.tensor([True])
    loss = adaptthink_loss(log_probs, *rest, variant=variant)
    loss.backward()
    adjusted = variant != "unadjusted"
    assert loss.item() == pytest.approx(-1.2 if adjusted else -1.0)
    assert (log_probs.grad.item() == 0) == adjusted


def test_no_input_is_changed():
    """The released code overwrites the old log-probs in place."""
    given = batch(5)
    kept = [tensor.clone() for tensor in given]
    for variant in VARIANTS:
        adaptthink_loss(*given, variant=variant)
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))


def test_padding_does_not_matter():
    new, old, advantages, mask, skipped = batch(7)
    junk = torch.where(mask.bool(), new, torch.full_like(new, -50.0))
    for variant in VARIANTS:
        rest = old, advantages, mask, skipped
        assert torch.equal(
            adaptthink_loss(new, *rest, variant=variant), adaptthink_loss(junk, *rest, variant=variant)
        )


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"variant 'geometric'.*geometric_mean"):
        adaptthink_loss(*batch(1), variant="geometric")
    with pytest.raises(ValueError, match="nothinking_ratio"):
        adaptthink_loss(*batch(1), nothinking_ratio=1.0)


# ---- cold start and fixed point ----------------------------------------------------------------


def released_weight(p, length, advantage, variant):
    """The weight on grad log P(</think>) of one NoThinking response of `length` tokens."""
    log_probs = torch.full((1, length), -0.1, dtype=torch.float64)
    log_probs[0, 0] = math.log(p)
    log_probs.requires_grad_()
    rest = log_probs.detach().clone(), torch.tensor([advantage]), torch.ones(1, length), torch.tensor([True])
    adaptthink_loss(log_probs, *rest, variant=variant).backward()
    return -log_probs.grad[0, 0].item()


def test_which_loss_can_leave_the_start():
    """Table of papers/adaptthink.md, section 1.4: A = 0.55, 300 tokens."""
    assert released_weight(1e-6, 300, 0.55, "geometric_mean") == pytest.approx(1.75e-3, rel=5e-3)
    assert released_weight(0.3, 300, 0.55, "geometric_mean") == pytest.approx(1.83e-3, rel=5e-3)
    assert released_weight(1e-6, 300, 0.55, "unadjusted") == pytest.approx(1.83e-3, rel=5e-3)
    assert released_weight(1e-6, 300, 0.55, "sequence") == pytest.approx(2 * 1e-6 * 0.55, rel=1e-6)
    assert released_weight(1e-6, 300, 0.55, "token") == pytest.approx(2 * 1e-6 * 0.55 / 300, rel=1e-6)
    assert released_weight(0.39, 300, -0.45, "sequence") == 0 != released_weight(0.41, 300, -0.45, "sequence")
    assert released_weight(0.61, 300, 0.55, "sequence") == 0 != released_weight(0.59, 300, 0.55, "sequence")


def choose_a_word(variant, rate, steps, advantages, weights, tokens, start, epsilon=0.2):
    """A policy that only chooses its first word, trained on the exact expectation; P(NoThinking) at the end.

    Words: `</think>`, the usual start of a thought, perhaps others; `start` has their first probabilities.
    `advantages` and `weights` are of the outcomes (NoThinking first), `tokens` their lengths. The loss is
    linear in A > 0 and in A < 0, so an outcome's probability can weigh its advantage.
    """
    lengths = torch.tensor(tokens)
    mask = (torch.arange(max(tokens)) < lengths[:, None]).double()
    skipped = lengths == lengths.min()
    weighted = torch.tensor(advantages, dtype=torch.float64) * torch.tensor(weights) * len(tokens) / 2
    logits = torch.tensor(start, dtype=torch.float64).log().requires_grad_()
    for _ in range(steps):
        words = logits.log_softmax(0)
        first = torch.where(skipped, words[0], words[1])
        log_probs = torch.nn.functional.pad(first[:, None], (0, max(tokens) - 1))
        loss = adaptthink_loss(
            log_probs, log_probs.detach(), weighted, mask, skipped, variant=variant, epsilon=epsilon
        )
        (slope,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= rate * slope
    return logits.softmax(0)[0].item()


EASY = {  # both modes and the reference right 9 times of 10, delta 0.05; half of the thoughts begin otherwise
    "advantages": [0.15, -0.85, 0.10, -0.90],
    "weights": [0.9, 0.1, 0.9, 0.1],
    "tokens": [400, 400, 4000, 4000],
    "start": [1e-6, 0.5, 0.5 - 1e-6],
}


@pytest.mark.parametrize(
    ("variant", "rate", "steps", "expected"),
    [  # the numbers of papers/adaptthink.md, section 1.4, to their last digit
        ("geometric_mean", 2000, 100, (0.775, 0.785)),
        ("geometric_mean", 2000, 3000, (0.9975, 0.9985)),
        ("unadjusted", 2000, 1000, (0.993, 0.995)),
        ("sequence", 1, 3000, (1e-6, 1.05e-6)),
        ("sequence", 100, 3000, (1.06e-6, 1.07e-6)),
        ("sequence", 2000, 1000, (1.65e-6, 1.75e-6)),
        # There the mean is over the tokens of the batch, 2200 a response; here over those of each response.
        ("token", 2e5 * 400 / 2200, 3000, (1.055e-6, 1.07e-6)),
    ],
)
def test_cold_start(variant, rate, steps, expected):
    low, high = expected
    assert low <= choose_a_word(variant, rate, steps, **EASY) <= high


def test_fixed_point_of_the_released_loss():
    """Both modes beat the reference, Thinking by more; the shorter one wins all the same."""
    skip, think = 0.05 / 400, 0.10 / 4000  # notebook 05, equation 7
    predicted = skip / (skip + think)
    assert predicted == pytest.approx(0.8333, abs=1e-4)
    settings = {"advantages": [0.05, 0.10], "weights": [1.0, 1.0], "tokens": [400, 4000], "start": [0.3, 0.7]}
    reached = choose_a_word("geometric_mean", 2000, 400, **settings)
    assert reached == pytest.approx(predicted, abs=2e-3)
    unbiased = choose_a_word("sequence", 50, 1000, **settings, epsilon=math.inf)
    assert unbiased == pytest.approx(0.0002, abs=5e-5)


# ---- modes -------------------------------------------------------------------------------------

USER, ASSISTANT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"  # DeepSeek's full-width bars
R1_TEMPLATE = (
    f"{{{{ bos_token }}}}{{% for m in messages %}}{{{{ '{USER}' + m['content'] }}}}{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{{{{ '{ASSISTANT}<think>\\n' }}}}{{% endif %}}"
)
QWEN3_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def chat_tokenizer(template, marks, *, bos=None, special_think=False):
    """A byte-level BPE tokenizer with the added tokens and the chat template of a real family."""
    text = ["Okay", "Alright", "Okay, the dial shows 3. Turn it +4 x7. Now? Jot 1 then 2 It shows 5."] * 50
    tokenizer = byte_level_tokenizer(text, vocabulary=400)
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in marks], special_tokens=True)
    think = [AddedToken(tag, special=special_think, normalized=False) for tag in ("<think>", "</think>")]
    tokenizer.add_tokens(think, special_tokens=special_think)
    tokenizer.bos_token, tokenizer.padding_side, tokenizer.chat_template = bos, "left", template
    return tokenizer


def deepseek():
    return chat_tokenizer(R1_TEMPLATE, [USER, ASSISTANT, "<bos>"], bos="<bos>")


def qwen3():
    return chat_tokenizer(QWEN3_TEMPLATE, ["<|im_start|>", "<|im_end|>"])


@pytest.mark.parametrize("build", [deepseek, qwen3, dial_tokenizer])
def test_modes_token_by_token(build):
    tokenizer = build()
    modes = ModeTokens.find(tokenizer)
    question = sample_questions(1, seed=0)[0]
    prompt = thinking_prompt(dial_task(question), tokenizer)
    ids = tokenizer(prompt).input_ids
    modes.check_prompt(tokenizer, ids)
    assert tokenizer.convert_ids_to_tokens(modes.close) == "</think>"
    assert tokenizer.decode([modes.start]) == "Okay"
    # Forced by id and written as text are the same tokens: nothing merges across the border.
    assert tokenizer(prompt + "</think>").input_ids == [*ids, modes.close]
    assert modes.is_nothinking(tokenizer("</think>\nIt shows 5.", add_special_tokens=False).input_ids)
    assert not modes.is_nothinking(tokenizer("Okay", add_special_tokens=False).input_ids)
    assert not modes.is_nothinking([])
    assert "</think>" in tokenizer.decode([*ids, modes.close], skip_special_tokens=True)


def test_the_deepseek_prompt_is_the_published_one():
    tokenizer = deepseek()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2+2?"}], add_generation_prompt=True, tokenize=False
    )
    assert text == f"<bos>{USER}2+2?{ASSISTANT}<think>\n"
    assert thinking_prompt("2+2?", tokenizer) == text
    assert thinking_prompt("2+2?", qwen3()).endswith("<|im_start|>assistant\n<think>\n")


def test_a_stand_in_for_the_closing_tag():
    tokenizer = dial_tokenizer()
    modes = ModeTokens.find(tokenizer, close="Yes", start="Wait")
    assert modes.is_nothinking(tokenizer("Yes It shows 5.").input_ids)


def test_tokens_that_cannot_be_forced_are_refused():
    with pytest.raises(ValueError, match=r"start='Okay Okay' is 2 tokens.*stand-in"):
        ModeTokens.find(dial_tokenizer(), start="Okay Okay")
    with pytest.raises(ValueError, match="unknown to this tokenizer"):
        ModeTokens.find(dial_tokenizer(), start="Alright")
    with pytest.raises(ValueError, match="start='</think>' is the token of close='</think>'"):
        ModeTokens.find(dial_tokenizer(), start="</think>")
    with pytest.raises(ValueError, match="special token"):
        ModeTokens.find(chat_tokenizer(QWEN3_TEMPLATE, ["<|im_start|>"], special_think=True))


def test_half_of_every_group_is_forced():
    config, begun = AdaptThink.paper(), Progress(0, 314)
    halves = [NOTHINKING, NOTHINKING, THINKING, THINKING]
    assert AdaptThink.cpu().start(begun, 4, random.Random(0)) == halves
    assert config.start(begun, 16, random.Random(0)).count(NOTHINKING) == 8
    quarter = replace(config, nothinking_ratio=0.25)
    assert quarter.start(begun, 16, random.Random(0)).count(NOTHINKING) == 4
    with pytest.raises(ValueError, match="each mode needs a whole number"):
        replace(config, num_generations=4, nothinking_ratio=0.05)


@pytest.mark.parametrize(
    ("response", "solution"),
    [
        ("Okay.\n</think>\nIt shows 5.", "\nIt shows 5."),
        ("</think>\nIt shows 5.", "\nIt shows 5."),
        ("Okay, It shows 5.", None),  # cut off while thinking, or never closed
        ("</think>\nOkay.\n</think>\nIt shows 5.", None),
        ("</think>\n<think>\nIt shows 5.", None),
        ("", None),
    ],
)
def test_the_solution_follows_the_only_closing_tag(response, solution):
    assert read_solution(response) == solution


def test_what_counts_as_right():
    assert is_solution_right("Okay.</think>\nIt shows 5.", "5", "number")
    assert not is_solution_right("It shows 5.</think>\nIt shows 4.", "5", "number")
    assert not is_solution_right("\\boxed{5}</think>\nfive", "5", "number")
    assert is_solution_right("hm</think>so \\boxed{4}, no, \\boxed{5}", "5", "number")
    chat = [[{"role": "assistant", "content": "</think>\nIt shows 5."}]]
    reward = accuracy_reward(is_solution_right)
    assert reward(completions=chat, answer=["5"], kind=["number"], extra=[1]) == [1.0]


def test_the_thinker_never_learns_to_write_the_closing_tag_first():
    question = sample_questions(1, seed=3, depths=[4])[0]
    rows = {len(row["prompt"].partition("<think>")[2]): row for row in thinker_rows([question])}
    thinks, skips, other = (
        rows[0],
        rows[len("</think>")],
        next(row for row in rows.values() if " O" in row["completion"][:2]),
    )
    assert thinks["completion"].startswith("Okay, let me think.")
    assert skips["prompt"].endswith("<think></think>") and skips["completion"].startswith("\nJot")
    assert other["completion"] == f" {thinks['completion']}"  # any other first word begins a thought
    for row in rows.values():
        response = (row["prompt"] + row["completion"]).partition("<think>")[2]
        assert is_solution_right(response, question.answer, "number")


# ---- reference samples -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random model on disk."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    save_policy(new_dial_model(seed=0, layers=2), dial_tokenizer(), folder)
    return str(folder)


@pytest.fixture(scope="module")
def tasks():
    return thinking_tasks(dial_tasks(24, split="train", seed=1), dial_tokenizer())


@pytest.fixture(scope="module")
def rows(tasks):
    return task_rows(tasks)


def test_reference_samples_are_stored_by_id_and_resumed(base, tasks, tmp_path):
    path = tmp_path / "reference.jsonl"
    settings = {"samples": 3, "max_new_tokens": 12, "questions_at_once": 4}
    whole = sample_reference(load_policy(base), tasks[:12], tmp_path / "whole.jsonl", **settings)
    sample_reference(load_policy(base), tasks[:4], path, **settings)
    path.write_text(path.read_text() + '{"id": "cut sho')  # as a kill leaves it
    resumed = sample_reference(load_policy(base), tasks[:12], path, **settings)
    assert resumed == whole and path.read_text() == (tmp_path / "whole.jsonl").read_text()
    first, *lines = map(json.loads, path.read_text().splitlines())
    assert first["settings"]["samples"] == 3 and [line["id"] for line in lines] == [
        task.id for task in tasks[:12]
    ]
    for found in resumed.values():
        assert found["accuracy"] * 3 % 1 == pytest.approx(0) and 1 <= found["mean_tokens"] <= 12
        assert 0 <= found["truncated"] <= 1
    with pytest.raises(ValueError, match="was made with"):
        sample_reference(load_policy(base), tasks[:12], path, samples=4)


def test_a_kill_within_a_chunk_of_reference_samples_changes_nothing(base, tasks, tmp_path):
    """The rest of the chunk had been drawn with another seed."""
    path, settings = tmp_path / "killed.jsonl", {"samples": 3, "max_new_tokens": 12, "questions_at_once": 4}
    sample_reference(load_policy(base), tasks[:8], tmp_path / "whole.jsonl", **settings)
    whole = (tmp_path / "whole.jsonl").read_text()
    for lines in (3, 6):
        path.write_text("".join(whole.splitlines(keepends=True)[:lines]) + '{"id": "cut sho')
        sample_reference(load_policy(base), tasks[:8], path, **settings)
        assert path.read_text() == whole


def test_reference_samples_of_another_model_are_not_taken(base, tasks, tmp_path):
    """Neither of one at another place, nor of one that took its place."""
    path, settings, other = (
        tmp_path / "reference.jsonl",
        {"samples": 1, "max_new_tokens": 4},
        tmp_path / "other",
    )
    save_policy(new_dial_model(seed=0, layers=1), dial_tokenizer(), other)
    sample_reference(load_policy(str(other)), tasks[:2], path, **settings)
    with pytest.raises(ValueError, match=r"was made with .*'model': .*, not with .*'model': "):
        sample_reference(load_policy(base), tasks[:2], path, **settings)
    sample_reference(load_policy(str(other)), tasks[:2], path, **settings)
    save_policy(new_dial_model(seed=1, layers=1), dial_tokenizer(), other)
    with pytest.raises(ValueError, match="was made with"):
        sample_reference(load_policy(str(other)), tasks[:2], path, **settings)


def test_reference_samples_of_other_weights_with_the_same_name_are_not_taken(base, tasks, tmp_path):
    path, settings = tmp_path / "reference.jsonl", {"samples": 1, "max_new_tokens": 4}
    sample_reference(load_policy(base), tasks[:2], path, **settings)
    merged, tokenizer = load_policy(base)
    with torch.no_grad():
        merged.lm_head.weight += 1e-3
    quantised = load_policy(base, quantised=True)
    for policy in ((merged, tokenizer), quantised, Kept(as_engine(quantised), tmp_path / "kept.jsonl")):
        with pytest.raises(ValueError, match=r"was made with .*'model': .*, not with .*'model': "):
            sample_reference(policy, tasks[:2], path, **settings)
    nameless = SimpleNamespace(tokenizer=tokenizer, generate=as_engine(quantised).generate)
    with pytest.raises(ValueError, match="give it an attribute `setting`"):
        sample_reference(nameless, tasks[:2], tmp_path / "new.jsonl", **settings)
    assert not (tmp_path / "new.jsonl").exists()


def test_rows_without_reference_samples_are_named(rows):
    reference = {row["id"]: {"accuracy": 0.5} for row in rows[1:]}
    with pytest.raises(ValueError, match=f"1 of 24 questions.*{rows[0]['id']}"):
        with_reference(rows, reference)
    assert {row["reference_accuracy"] for row in with_reference(rows[1:], reference)} == {0.5}


# ---- trainer -----------------------------------------------------------------------------------


def tiny(base, **changes):
    small = {"prompts": 4, "micro_batch_size": 16, "batches": 2, "max_completion_length": 20, "eval_every": 2}
    return AdaptThink.cpu(base, **small | {"max_nothinking_length": 6} | changes)


def with_accuracy(rows, accuracy=0.25):
    return [{**row, "reference_accuracy": accuracy} for row in rows]


def rollout(trainer):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    inputs = next(iter(trainer.get_train_dataloader()))
    return inputs, trainer._generate_and_score_completions(inputs)


def test_rollouts_are_forced_half_and_half_and_capped(base, rows, tmp_path):
    trainer = build(tiny(base), with_accuracy(rows), Run(tmp_path, {}), validation_rows=rows[:4])
    inputs, batch = rollout(trainer)
    modes = trainer.reading.tokens
    first, lengths = batch["completion_ids"][:, 0].tolist(), batch["completion_mask"].sum(1).tolist()
    assert first == [modes.close, modes.close, modes.start, modes.start] * 4
    assert batch["is_nothinking"].tolist() == [True, True, False, False] * 4
    assert all(
        length <= (6 if token == modes.close else 20) for token, length in zip(first, lengths, strict=True)
    )
    assert max(lengths) == 20 and 6 in lengths
    texts = trainer.processing_class.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    right = [
        is_solution_right(text, row["answer"], "number") for text, row in zip(texts, inputs, strict=True)
    ]
    expected = adaptthink_advantages(
        torch.tensor(right).float(), torch.full((16,), 0.25), batch["is_nothinking"], 0.05
    )
    torch.testing.assert_close(batch["advantages"], expected)
    logged = trainer._metrics["train"]
    assert logged["nothinking_ratio"] == [0.5] and logged["nothinking/truncated"][0] > 0.5
    assert logged["nothinking/tokens/mean"][0] <= 6 < logged["thinking/tokens/mean"][0]


def test_thinking_may_begin_with_any_word_but_the_closing_tag(base, rows, tmp_path):
    """On policy, pi / pi_IS of a response that thinks is 2 (1 - P(</think>)), whatever its first word."""
    config = tiny(base, force_start=False, variant="sequence")
    trainer = build(config, with_accuracy(rows), Run(tmp_path, {}), validation_rows=rows[:4])
    close = trainer.reading.tokens.close
    with torch.no_grad():  # a model that would nearly always close at once
        trainer.model.lm_head.weight[close] += 3 * trainer.model.lm_head.weight.abs().max()
    _, batch = rollout(trainer)
    first, skips = batch["completion_ids"][:, 0], batch["is_nothinking"]
    assert skips.tolist() == [True, True, False, False] * 4
    assert (first[skips] == close).all() and (first[~skips] != close).all()
    assert first[~skips].unique().numel() > 1 and batch["completion_mask"].sum(1).max() == 20
    assert trainer.generation_config.begin_suppress_tokens is None
    chance = batch["log_p_nothinking"].exp()
    expected = torch.where(skips, chance / 0.5, (1 - chance) / 0.5).mean().item()
    trainer._compute_loss(trainer.model, batch)
    assert trainer._metrics["train"]["ratio/mean"] == pytest.approx([expected], rel=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_trainer_computes_the_formula(base, rows, tmp_path, variant):
    config = tiny(base, variant=variant, micro_batch_size=8, nothinking_ratio=0.25)
    trainer = build(config, with_accuracy(rows), Run(tmp_path, {}), validation_rows=rows[:4])
    _, batch = rollout(trainer)
    generator = torch.Generator().manual_seed(0)
    batch["advantages"] = torch.randn(16, generator=generator)
    trainer._compute_loss(trainer.model, batch).backward()
    loss = trainer._compute_loss(trainer.model, batch).item()
    gradients = [parameter.grad.clone() for parameter in trainer.model.parameters()]
    trainer.model.zero_grad()
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    policy, _ = load_policy(base)
    logits = policy.train()(input_ids=ids, attention_mask=attention, position_ids=positions).logits[:, :-1]
    log_probs = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    log_probs = log_probs[:, -batch["completion_ids"].shape[1] :]
    expected = adaptthink_loss(
        log_probs,
        log_probs.detach(),
        batch["advantages"],
        batch["completion_mask"],
        batch["is_nothinking"],
        nothinking_ratio=0.25,
        variant=variant,
    )
    expected.backward()
    assert loss * 2 == pytest.approx(expected.item(), rel=1e-5)  # two micro-batches make a step
    for gradient, parameter in zip(gradients, policy.parameters(), strict=True):
        torch.testing.assert_close(gradient * 2, parameter.grad, rtol=1e-4, atol=1e-7)


def test_training_logs_both_modes_saves_and_resumes(base, rows, tmp_path):
    run = Run(tmp_path, {})
    config = tiny(base, batches=4, eval_every=1, save_every=2)
    fit(config, with_accuracy(rows), run, validation_rows=rows[:6], stop_at=2)
    _, _, facts = fit(config, with_accuracy(rows), run, validation_rows=rows[:6])
    assert facts["resumed"] and facts["steps"] == 4
    logged = run.metrics()
    again = fit(config, with_accuracy(rows), run, validation_rows=rows[:6])[2]
    assert again == facts, "a finished run is not trained again"
    steps = [[row["step"] for row in found if "loss" in row] for found in (run.metrics(), logged)]
    assert steps[0] == steps[1] and [row["step"] for row in run.metrics()].count(0) == 1
    train = [row for row in logged if "loss" in row]
    watched = [row for row in logged if "eval_log_p_nothinking" in row]
    assert [row["step"] for row in train] == [1, 2, 3, 4]
    assert {row["step"] for row in watched} == {0, 1, 2, 3, 4}
    assert {"accuracy", "tokens/mean", "nothinking/accuracy", "thinking/tokens/mean"} <= train[0].keys()
    assert {"ratio/mean", "ratio/clipped", "log_p_nothinking", "log_p_thinking"} <= train[0].keys()
    assert {"eval_nothinking_ratio", "eval_easy/nothinking_ratio", "eval_accuracy"} <= watched[0].keys()
    assert (run.checkpoint / "result" / "model.safetensors").exists()


@pytest.mark.parametrize("method", ["grpo_nothinking", "grpo_length"])
def test_the_baselines_sample_freely(base, rows, tmp_path, method):
    small = {"prompts": 4, "micro_batch_size": 16, "batches": 2, "max_completion_length": 20}
    trainer = build(METHODS[method].cpu(base, **small), rows, Run(tmp_path, {}))
    _, batch = rollout(trainer)
    assert batch["completion_mask"].sum(1).max() == 20  # no cap of its own for NoThinking
    assert not batch["is_nothinking"].all() and "reward" in trainer._metrics["train"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_trainers_ratio_to_vllm_weighs_the_loss_as_the_variant_joins_it(base, variant):
    """With the policy at its old weights: a ratio a token, their product, or its geometric mean."""
    log_probs, mask = torch.tensor([[-0.5, -1.0, -2.0]] * 2), torch.tensor([[1, 1, 1], [1, 1, 0]])
    batch = {"advantages": torch.tensor([1.0, -1.0]), "completion_mask": mask}
    batch["is_nothinking"] = torch.tensor([True, False])

    def losses(**more):
        rows = ({name: value[i : i + 1] for name, value in (batch | more).items()} for i in (0, 1))
        loss = tiny(base, variant=variant).loss
        return [loss(log_probs[:1], log_probs[:1], row)[0].item() for row in rows]

    plain = losses()
    found = losses(importance_sampling_ratio=torch.tensor([[1.0, 2.0, 0.5], [1.0, 0.25, 1.0]]))
    joint = {"sequence": 0.25, "geometric_mean": 0.5}
    if variant in joint:
        assert found == pytest.approx([plain[0], joint[variant] * plain[1]])
    elif variant == "unadjusted":  # where every ratio of the policy is 1
        assert found == pytest.approx([-3.5 / 3, 1.25 / 2])
    whole = losses(importance_sampling_ratio=torch.tensor([[0.0], [2.0]]))  # of a response, as TRL masks it
    assert whole == pytest.approx([0.0, 2 * plain[1]])


def test_what_cannot_work_is_refused_before_training(base, rows, tmp_path):
    run, good = Run(tmp_path, {}), with_accuracy(rows)
    closed = [{**row, "prompt": row["prompt"].replace("<think>", "")} for row in good]
    with pytest.raises(ValueError, match=r"must end in an open <think>, but it ends in '.*Assistant:'"):
        build(tiny(base), closed, run)
    with pytest.raises(ValueError, match="needs rows with a column 'reference_accuracy'"):
        build(tiny(base), rows, run)
    for wrong, message in (
        ({"variant": "gspo"}, "variant takes 'geometric_mean'"),
        ({"nothinking_ratio": 0.1}, "each mode needs a whole number"),
        ({"nothinking_ratio": 0.3}, r"num_generations = 1.2 of 4 responses cannot be forced to skip"),
        ({"num_generations": 3, "prompts": 8}, "= 1.5 of 3 responses cannot be forced to skip"),
        ({"beta": 0.1}, "beta must be 0.0, got 0.1: adaptthink does not read it"),
        ({"entropy_coef": 0.1}, "entropy_coef must be 0.0"),
        ({"kl": "k3_clamped"}, "kl must be 'k3'"),
        ({"normaliser": "batch"}, "normaliser must be 'response'"),
        ({"rules": "arm_training"}, "rules must be 'strict'"),
        *(({"trainer": {name: 1}}, f"'{name}' is set by AdaptThink's own loss") for name in UNREAD),
        ({"trainer": {"use_vllm": True, "vllm_mode": "server"}}, "vllm_mode must be 'colocate': adaptthink"),
        ({"trainer": {"use_vllm": True}, "weights": "qlora"}, 'weights "lora" in bfloat16 with vLLM'),
    ):
        with pytest.raises(ValueError, match=message):
            tiny(base, **wrong)


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [4, 3])
def test_one_and_two_processes_agree(base, rows, tmp_path, prompts):
    """The same prompts, greedy responses and plain gradient descent: the same weights.

    Two processes share three groups of four by splitting the one in the middle.
    """
    results = [
        launch.run(
            "launch_functions:adaptthink_step",
            {"base": base, "rows": with_accuracy(rows), "folder": str(tmp_path / str(count))}
            | {"prompts": prompts},
            num_processes=count,
        )
        for count in (1, 2)
    ]
    for result in results:
        assert result["moved"] > 1e-5
    assert results[1]["weights"] == pytest.approx(results[0]["weights"], abs=1e-6)
    for name in ("nothinking_ratio", "tokens/mean", "ratio/mean", "log_p_nothinking"):
        assert results[1]["metrics"][name] == pytest.approx(results[0]["metrics"][name], rel=1e-4), name


def save_qwen(tokenizer, folder):
    """Save a random Qwen2.5 architecture; gives the folder."""
    set_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    save_policy(model, tokenizer, folder)
    return str(folder)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """With a byte-level tokenizer whose chat template opens no thought."""
    return save_qwen(qwen3(), tmp_path_factory.mktemp("qwen") / "tiny")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_real_architecture_trains_in_nf4(qwen, tmp_path, processes):
    tokenizer = load_policy(qwen)[1]
    examples = [dial_task(question) for question in sample_questions(16, seed=2)]
    rows = with_accuracy(task_rows(thinking_tasks(examples, tokenizer)))
    given = {"base": qwen, "rows": rows, "folder": str(tmp_path)}
    facts = launch.run("launch_functions:adaptthink_nf4", given, num_processes=processes)
    assert facts["steps"] == 3 and facts["processes"] == processes
    assert (tmp_path / "checkpoint" / "result" / "adapter_model.safetensors").exists()


def test_a_chat_template_without_an_open_thought_is_refused(qwen, tmp_path):
    chats = [
        {
            "prompt": [{"role": "user", "content": q.text}],
            "answer": q.answer,
            "kind": "number",
            "tier": q.tier,
        }
        for q in sample_questions(8, seed=2)
    ]
    with pytest.raises(ValueError, match=r"must end in an open <think>.*chat template"):
        build(tiny(qwen), with_accuracy(chats), Run(tmp_path, {}))


# ---- baselines ---------------------------------------------------------------------------------


def samples(*rows):
    """Tasks a, b, c and rollouts of them: (id, format, correct, tokens, text)."""
    tasks = [Task(name, "?", "1", "number", "easy", "t", prompt=f"{name}:<think>") for name in "abc"]
    names = ("task_id", "format", "correct", "tokens", "text")
    shared = {"sample": 0, "seed": 0, "method": "", "mode": "", "answer": "1", "truncated": False}
    return [Rollout(**dict(zip(names, row, strict=True)), **shared) for row in rows], tasks


def test_mixed_sft_keeps_the_right_responses_of_the_better_mode():
    found = samples(
        ("a", NOTHINKING, True, 5, "a skips"),
        ("a", NOTHINKING, False, 5, "a skips and is wrong"),
        ("a", THINKING, True, 50, "a thinks"),
        ("a", THINKING, False, 50, "a thinks and is wrong"),  # as often right: skip
        ("b", NOTHINKING, False, 5, "b skips and is wrong"),
        ("b", THINKING, True, 50, "b thinks"),
        ("c", NOTHINKING, False, 5, "wrong"),
        ("c", THINKING, False, 50, "wrong too"),
    )
    rows = sorted(mixed_rows(*found), key=lambda row: row["prompt"])
    assert rows == [
        {"prompt": "a:<think>", "completion": "a skips"},
        {"prompt": "b:<think>", "completion": "b thinks"},
    ]


def test_dpo_prefers_the_shortest_right_response_to_the_longest():
    found = samples(
        ("a", THINKING, False, 30, "short and wrong"),
        ("a", THINKING, True, 40, "short"),
        ("a", THINKING, True, 60, "long"),
        ("a", NOTHINKING, True, 5, "skips"),
        ("b", THINKING, True, 40, "one length"),
        ("b", THINKING, True, 40, "one length"),
        ("c", THINKING, False, 40, "wrong"),
        ("c", THINKING, False, 50, "wrong"),
    )
    assert shortest_pairs(*found) == [{"prompt": "a:<think>", "chosen": "short", "rejected": "long"}]


def test_dpo_moves_towards_the_chosen_response(base, tmp_path):
    pairs = [{"prompt": "Human: Now?\nAssistant:<think>\n", "chosen": "Okay", "rejected": "Wait"}] * 8
    run = Run(tmp_path, {})
    model, tokenizer = train_dpo(base, pairs, run, steps=4, batch_size=8, learning_rate=1e-3)
    ids = tokenizer(pairs[0]["prompt"], return_tensors="pt").input_ids
    words = tokenizer.convert_tokens_to_ids(["Okay", "Wait"])

    def preference(policy):
        with torch.inference_mode():
            logits = policy(input_ids=ids).logits[0, -1, words]
        return (logits[0] - logits[1]).item()

    assert preference(model) > preference(load_policy(base)[0]) + 0.01
    with pytest.raises(ValueError, match="no pairs"):
        train_dpo(base, [], run, steps=1)


# ---- profiles ----------------------------------------------------------------------------------


def config_of(profile):
    """The configuration that notebook 05 makes of a profile's parameters, from its own cell."""
    path = NOTEBOOKS / "05_adaptthink.ipynb"
    values = {parameter.name: parameter.default for parameter in read_parameters(path)}
    values |= plan(path, profile, {}).given
    cells = nbformat.read(path, as_version=4).cells
    cell = next(cell for cell in cells if "config" in cell.metadata.get("tags", []))
    names = values | {"adaptthink": adaptthink, "DIAL": values["TRAIN_SOURCES"] == ["dial"]}
    exec(cell.source, names)
    return names["config"]


@pytest.mark.parametrize("profile", ["smoke", "single_gpu", "multi_gpu"])
def test_profiles_run_dry(profile, tmp_path):
    """The profile's configuration on a random model of the architecture, with DeepSeek's chat template."""
    tokenizer = deepseek()
    folder = save_qwen(tokenizer, tmp_path / "model")
    config = replace(config_of(profile), base=folder, batches=1, prompts=2, micro_batch_size=4)
    dry = replace(config, max_completion_length=12, max_nothinking_length=6, trainer={})  # without vLLM
    examples = [dial_task(question) for question in sample_questions(8, seed=2)]
    rows = with_accuracy(task_rows(thinking_tasks(examples, tokenizer)))
    run = Run(tmp_path / "run", {})
    _, _, facts = fit(dry, rows, run, validation_rows=rows[:2])
    assert facts["steps"] == 1 and load_trained(dry, run)[0].num_parameters() > 0


def test_the_multi_gpu_profile_has_the_settings_of_the_paper():
    ours, paper = asdict(config_of("multi_gpu")), asdict(AdaptThink.paper())
    assert {name for name in ours if ours[name] != paper[name]} == {"micro_batch_size", "trainer"}
    assert (paper["delta"], paper["epsilon"], paper["num_generations"]) == (0.05, 0.2, 16)
    assert (paper["prompts"], paper["learning_rate"], paper["temperature"]) == (128, 2e-6, 0.6)
    assert (paper["max_completion_length"], paper["max_nothinking_length"]) == (16384, 4096)


def test_the_notebook_trains_what_the_reference_runs_trained():
    assert config_of("cpu") == AdaptThink.cpu() == thinking_runs.thinking_config("adaptthink", 0)


# ---- what is shipped ---------------------------------------------------------------------------


def asked(policy, prefix="", count=600, **choice):
    choice = {"depths": range(1, 13)} | choice
    tasks = thinking_tasks(dial_tasks(count, seed=31, **choice), policy[1])
    table = rollout_table(ask(policy, tasks, prefix=prefix, read=read_thinking), tasks)
    return table.assign(nothinking=table["format"] == NOTHINKING).set_index("depth").sort_index()


@pytest.mark.slow
def test_the_shipped_thinker_always_thinks_and_could_do_without():
    model, tokenizer = policy = load_policy("dial-thinker")
    tasks = thinking_tasks(dial_tasks(300, seed=30), tokenizer)
    batch = tokenizer([task.prompt for task in tasks], return_tensors="pt", padding=True)
    with torch.inference_mode():
        log_probs = model(**batch).logits[:, -1].log_softmax(-1)
    assert log_probs[:, ModeTokens.find(tokenizer).close].exp().max() <= 1e-3
    thinks, skips = asked(policy), asked(policy, CLOSE)
    assert not thinks["nothinking"].any() and thinks["correct"].mean() >= 0.96
    assert thinks.loc[1, "tokens"].min() >= 35 and skips["tokens"].max() <= 20
    assert skips.loc[1:6, "correct"].mean() >= 0.97 and skips.loc[8:, "correct"].mean() <= 0.4


@pytest.mark.slow
def test_the_shipped_adaptive_model_skips_what_is_easy_and_thinks_where_it_must():
    given = asked(load_policy("dial-adaptthink"))
    assert given.loc[1:2, "nothinking"].mean() >= 0.9 and given.loc[9:, "nothinking"].mean() <= 0.15
    assert given["correct"].mean() >= 0.93
