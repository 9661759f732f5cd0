"""The study of notebook 03's causes: its variants, what is asked, and intervals paired by question."""

import pandas as pd
import pytest
import torch

from lib.dial import dial_tasks
from lib.methods import GRPO
from lib.methods.base import Group, Progress
from lib.policies import load_policy
from lib.runs import digest
from lib.studies import backbones, causes, depths, paired, trainings
from lib.studies.tag_shift import tag_shift

FORMATS = ["long_cot"] * 5 + ["code"] * 2 + ["direct"]
START = Progress(0, 80)


def a_group(ok):
    ok = torch.tensor([ok], dtype=torch.float)
    return Group(ok, torch.ones_like(ok), [FORMATS])


def test_wrong_answers_can_be_scaled_too():
    found = causes.ScaledWrong.cpu().shape_group(a_group([1, 1, 1, 1, 0, 1, 0, 0]), START)
    assert found[0].tolist() == pytest.approx([1.6] * 4 + [-1.6, 4, -4, -8])


def test_the_placebo_hands_out_the_same_scales_at_random():
    right, config = a_group([1] * 8), causes.ShuffledScale.cpu(seed=3)
    found = config.shape_group(right, START)
    assert sorted(found[0].tolist()) == pytest.approx(sorted([1.6] * 5 + [4] * 2 + [8]))
    assert found.tolist() == config.shape_group(right, START).tolist()
    later = [config.shape_group(right, Progress(step, 1e9))[0].tolist() for step in range(20)]
    assert len({tuple(row) for row in later}) > 10
    wrong = config.shape_group(a_group([0] * 4 + [1] * 4), START)
    assert wrong[0, :4].tolist() == [0] * 4 and (wrong[0, 4:] >= 1).all()


def test_shuffled_rewards_are_as_many_and_favour_no_place():
    mixed, config = a_group([0] + [1] * 7), causes.ShuffledRewards.cpu(seed=3)
    steps = [config.shape_group(mixed, Progress(step, 1e9))[0].tolist() for step in range(400)]
    assert all(sorted(rewards) == [0] + [1] * 7 for rewards in steps)
    missed = [rewards.index(0) for rewards in steps]
    assert all(30 < missed.count(place) < 75 for place in range(8))


@pytest.mark.parametrize("name", [*causes.VARIANTS, *causes.TUNING])
def test_every_variant_is_a_configuration(name):
    variant = (causes.VARIANTS | causes.TUNING)[name]
    config = variant.method.cpu(seed=1, **variant.changes)
    assert config.base == "dial-sft" and config.batches * config.prompts == 960


def test_an_unknown_variant_is_refused():
    with pytest.raises(KeyError):
        causes.ada_grpo("grpo_hrad_only", 0, None)


# ---- what is asked


def test_the_questions_are_those_that_shipped_answers_are_to():
    sets = depths.question_sets()
    assert {name: len(tasks) for name, tasks in sets.items()} == SIZES
    assert digest([task.id for name in sets for task in sets[name]]) == "db814bc813b9"
    assert digest([task.id for task in depths.forced_questions()]) == "fd835801265e"
    assert {task.split for tasks in sets.values() for task in tasks} == {"test"}


SIZES = {"balanced": 1200, "deeper": 200, "additions": 300}


@pytest.fixture
def few_questions(monkeypatch):
    sets = {
        "balanced": dial_tasks(6, seed=1),
        "deeper": dial_tasks(2, seed=1, depths=[13]),
        "additions": dial_tasks(2, seed=1, world="additions"),
    }
    monkeypatch.setattr(depths, "question_sets", lambda: sets)
    monkeypatch.setattr(depths, "forced_questions", lambda: dial_tasks(3, seed=2, depths=[1, 2, 3]))


def test_answers_are_kept_and_read_again(few_questions, tmp_path, monkeypatch):
    policy = load_policy("dial-sft")
    numbers, answers = depths.ask_freely(policy, seed=0)
    forced, forced_answers = depths.ask_forced(policy)
    place = tmp_path / "sft" / "seed_4"
    place.mkdir(parents=True)
    answers.to_parquet(place / "answers.parquet")
    forced_answers.to_parquet(place / "forced.parquet")
    monkeypatch.setattr(depths, "PLACE", tmp_path)
    found = depths.read_answers("sft")
    assert found["set"].tolist() == ["balanced"] * 6 + ["deeper"] * 2 + ["additions"] * 2
    assert set(found["seed"]) == {4} and found["depth"].notna().all()
    balanced = found[found["set"] == "balanced"]
    assert balanced["id"].tolist() == [task.id for task in depths.question_sets()["balanced"]]
    assert numbers["accuracy"] == pytest.approx(balanced["correct"].mean())
    assert numbers["depths"]["13"]["n"] == 2 and numbers["additions"]["n"] == 2
    modes = depths.read_forced("sft")
    assert len(modes) == 12 and modes["mode"].nunique() == 4
    assert forced["accuracy_by_depth"]["direct"][:2] == [1.0, 1.0]
    with pytest.raises(FileNotFoundError, match=r"no answers\.parquet of 'grpo'"):
        depths.read_answers("grpo")


def test_what_became_of_an_answer():
    rows = [
        ("direct", 2, True),
        ("direct", 2, False),
        ("direct", 3, False),
        ("direct", 3, True),  # a guess
        ("long_cot", 12, False),
        ("long_cot", 13, False),
        ("invalid", 1, False),
    ]
    found = depths.fates(pd.DataFrame(rows, columns=["used", "depth", "correct"]))
    assert found.tolist() == ["right", "slip", "out of reach", "right", "slip", "out of reach", "invalid"]


# ---- intervals


def answers(values):
    """Rows from {seed: {id: value}}."""
    rows = [(seed, name, value) for seed, row in values.items() for name, value in row.items()]
    return pd.DataFrame(rows, columns=["seed", "id", "tokens"])


def test_pairing_takes_away_what_two_policies_share():
    generator = torch.Generator().manual_seed(0)
    hard = torch.rand(200, generator=generator).tolist()
    theirs = answers({s: {f"q{i}": value for i, value in enumerate(hard)} for s in range(3)})
    ours = theirs.assign(tokens=theirs["tokens"] - 0.1)
    estimate, low, high = paired.bootstrap_paired(ours, theirs, "tokens", draws=300)
    assert estimate == pytest.approx(-0.1) and low == pytest.approx(-0.1) and high == pytest.approx(-0.1)
    mean, low, high = paired.bootstrap_mean(theirs, "tokens", draws=300)
    assert mean == pytest.approx(sum(hard) / 200) and low < mean < high
    spared, *_ = paired.bootstrap_paired(
        theirs.assign(tokens=theirs["tokens"] / 2), theirs, "tokens", compare=paired.saving, draws=300
    )
    assert spared == pytest.approx(0.5)


def test_the_spread_of_seeds_is_in_the_interval():
    same = answers({s: {f"q{i}": 0.5 for i in range(50)} for s in range(4)})
    apart = answers({s: {f"q{i}": float(s) for i in range(50)} for s in range(4)})
    assert paired.bootstrap_mean(same, "tokens", draws=300)[1:] == pytest.approx((0.5, 0.5))
    mean, low, high = paired.bootstrap_mean(apart, "tokens", draws=300)
    assert mean == 1.5 and low < 1 and high > 2


def test_other_questions_cannot_be_paired():
    with pytest.raises(ValueError, match="different questions"):
        paired.bootstrap_paired(answers({0: {"a": 1}}), answers({0: {"b": 1}}), "tokens")


# ---- one update, other sizes


def test_one_update_moves_the_tags_of_questions_that_were_not_in_it():
    small = GRPO.cpu(prompts=4, num_generations=4, micro_batch_size=16)
    found = tag_shift(small)
    assert len(found) == 3 * 4
    sums = found.groupby("tier")[["before", "after"]].sum()
    assert ((sums > 0.9) & (sums < 1.0001)).all(axis=None)
    assert not found["after"].equals(found["before"])


def test_a_later_stage_names_the_earlier_one_that_is_missing(private_runs):
    with pytest.raises(FileNotFoundError, match="03 backbone_48/sft"):
        backbones.backbone("backbone_48/grpo", 0, None)
    assert trainings.EXPERIMENTS["03"][1] is trainings.formats_by_rl
