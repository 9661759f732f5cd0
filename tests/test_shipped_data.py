"""Checks of data, not of code: the committed runs and checkpoints show what notebooks and README say of them.

No change of code can fail these tests; a run that is made again and shipped can.
"""

import pytest

from lib.dial import TIERS
from lib.formats import ReasoningFormat
from lib.methods import METHODS
from lib.policies.load import CHECKPOINTS
from lib.runs import ROOT, check_provenance, read_json
from lib.studies import bandit_tables, cold_start, thinking_answers, thinking_tables
from lib.studies.causes import TUNING

RUNS = ROOT / "data" / "reference_runs"
D, S, C, L = ReasoningFormat
SEEDS = 5


def shipped(notebook, method):
    return [read_json(file) for file in sorted(RUNS.glob(f"{notebook}_*/{method}/seed_*/summary.json"))]


def mean(runs, *keys):
    for key in keys:
        runs = [run[key] for run in runs]
    return sum(runs) / len(runs)


# ---- checkpoints


def test_its_provenance_is_complete():
    record = check_provenance(CHECKPOINTS / "dial-base")
    needed = ("command", "seed", "config", "steps", "tokens", "seconds", "threads", "commit", "versions")
    assert set(needed) <= set(record)
    assert record["commit"] and record["steps"] == record["config"]["steps"] and not record["resumed"]
    assert not record["uncommitted_changes"]


def test_sft_comes_from_a_committed_recipe():
    record = check_provenance(CHECKPOINTS / "dial-sft")
    assert record["commit"] and not record["uncommitted_changes"] and not record["resumed"]
    assert record["config"]["method"] == "qlora" and record["config"]["base"] == "dial-base"


# ---- notebook 03


@pytest.fixture(scope="module")
def summaries():
    return {method: shipped("03", method) for method in ("grpo", "ada_grpo")}


def share(runs, tier, *formats):
    return sum(mean(runs, "tiers", tier, "format_share", format) for format in formats)


def test_every_run_says_where_it_comes_from():
    folders = sorted((RUNS / "03_ada_grpo").glob("*/seed_*"))
    assert len(folders) >= 2 * SEEDS
    for folder in folders:
        record = read_json(folder / "provenance.json")
        assert record["commit"] and record["uncommitted_changes"] is False
        assert record["config"]["base"] == "dial-sft" and record["seed"] == int(folder.name[5:])
        if folder.parent.name in ("sft", "slips"):  # asked as they are
            continue
        assert record["steps"] == record["config"]["batches"] and record["resumed"] is False


@pytest.mark.parametrize(("method", "policy"), [("grpo", "dial-grpo"), ("ada_grpo", "dial-arm")])
def test_what_is_shipped_is_seed_0(method, policy):
    """The run that notebook 03 makes live, that 04 asks, and the first of the five seeds are one."""
    run = read_json(RUNS / "03_ada_grpo" / method / "seed_0" / "provenance.json")
    shipped_one = check_provenance(CHECKPOINTS / policy)
    assert {name: shipped_one[name] for name in run} == run
    assert run["config"] == METHODS[method].cpu(seed=0).as_json()


def test_the_recipe_did_best_on_validation():
    """For Ada-GRPO, the harder to train; GRPO shares its recipe."""
    config = METHODS["ada_grpo"].cpu()
    ours = f"tuning/ada_grpo_{config.learning_rate:.0e}_{config.cooldown}"
    tried = {name: shipped("03", name) for name in TUNING if name.startswith("tuning/ada_grpo_")}
    means = {name: mean(runs, "accuracy") for name, runs in tried.items() if runs}
    assert means[ours] == max(means.values())


def test_grpo_collapses_to_long_cot(summaries):
    assert len(summaries["grpo"]) == SEEDS
    for tier in TIERS:
        assert share(summaries["grpo"], tier, L) >= 0.95


def test_ada_grpo_keeps_what_is_right(summaries):
    ours = summaries["ada_grpo"]
    assert len(ours) == SEEDS
    for format in ReasoningFormat:
        assert 0.10 <= share(ours, "easy", format) <= 0.45
    assert share(ours, "medium", D) <= 0.10
    assert share(ours, "hard", L) >= 0.60
    assert share(ours, "hard", D, S) <= 0.05


def test_ada_grpo_saves_tokens_and_keeps_accuracy(summaries):
    ours, theirs = summaries["ada_grpo"], summaries["grpo"]
    gap = mean(theirs, "accuracy") - mean(ours, "accuracy")
    assert gap <= 0.02
    easy = [mean(runs, "tiers", "easy", "mean_tokens") for runs in (ours, theirs)]
    assert easy[0] <= 0.6 * easy[1]
    tokens = [mean(runs, "mean_tokens") for runs in (ours, theirs)]
    assert tokens[0] <= 0.75 * tokens[1]


# ---- notebook 05


def test_adaptthink_is_what_it_must_be():
    """Five seeds, paired with always thinking by question: see issue 14."""
    found = thinking_tables.claims()
    assert found["holds"].all(), found.to_string()
    assert thinking_answers.balanced("adaptthink", "thinking").groupby("method")["seed"].nunique().eq(5).all()


def test_every_run_of_adaptthink_says_where_it_comes_from():
    folders = sorted(thinking_answers.PLACE.glob("**/seed_*/provenance.json"))
    folders = [folder for folder in folders if "thinker" not in folder.parts]  # an older command's name
    assert len(folders) >= 20
    for folder in folders:
        record = read_json(folder)
        assert record["commit"] and record["uncommitted_changes"] is False, folder
        assert record["command"].startswith("python -m lib.studies.trainings 05 ")


def test_a_larger_margin_lets_rft_skip_more_and_be_right_less():
    """Three runs a margin, paired by question."""
    low, high = thinking_answers.balanced("rft_0"), thinking_answers.balanced("rft_0.5")
    assert low["seed"].nunique() == high["seed"].nunique() == 3
    assert high["skips"].mean() > low["skips"].mean() + 0.05
    assert thinking_tables.difference("rft_0.5", "rft_0")[2] < 0


def test_two_runs_are_two_lines_without_a_band():
    lines = thinking_tables.runs_apart(
        thinking_answers.read_answers("adaptthink", "beyond_reach"), "beyond_reach"
    )
    pooled = lines["method"] == "adaptthink"
    assert set(lines["method"]) == {"adaptthink", "beyond_reach 0", "beyond_reach 1"}
    assert lines["skips_low"].notna().eq(pooled).all() and lines["skips"].notna().all()


def test_seeds_have_their_own_questions_and_reference_samples():
    stored = [read_json(thinking_answers.PLACE / "reference" / f"seed_{k}.json")["right"] for k in range(5)]
    assert all(len(right) > 600 and max(right.values()) <= 16 for right in stored)
    assert len(set(map(frozenset, stored))) == 5


def test_the_released_loss_leaves_the_start_and_the_published_one_does_not():
    found = cold_start.on_model().set_index(["loss", "rate"])
    published, released = found.loc["sequence", 4e-4], found.loc["geometric_mean", 4e-4]
    assert published["log P, end"] < -10 and published["left at, earliest"] == float("inf")
    assert released["seeds"] == 5 and released["left at, latest"] <= 30


def test_without_forced_samples_nothing_starts():
    assert shipped("05", "grpo") and all(run["nothinking_ratio"] <= 0.01 for run in shipped("05", "grpo"))


def test_a_larger_bonus_saves_more_tokens():
    tokens = [
        mean(runs, "mean_tokens")
        for delta in ("delta_0", "adaptthink", "delta_0.3")
        if (runs := shipped("05", delta))
    ]
    assert tokens == sorted(tokens, reverse=True)


def test_free_first_words_close_the_leak():
    """With the start forced, other first words spread; with any start they spread less."""
    worst = {
        method: thinking_tables.watched(method).groupby("seed")["other_start_ratio"].max().mean()
        for method in ("adaptthink", "free_start")
    }
    assert worst["free_start"] <= 0.7 * worst["adaptthink"]


def test_where_the_reference_is_never_right_it_learns_to_give_up():
    for run in shipped("05", "beyond_reach"):
        ratio = {int(depth): numbers["nothinking_ratio"] for depth, numbers in run["depths"].items()}
        assert max(ratio[depth] for depth in range(8, 13)) <= 0.15 and min(ratio[14], ratio[15]) >= 0.5


# ---- notebook 06


@pytest.mark.parametrize("space", ["dial", "paper"])
def test_the_shipped_surface_runs_reach_their_aim_with_the_whole_interval(space):
    shipped = bandit_tables.surface_over_seeds(space)
    assert (shipped["seeds"] == 10).all() and shipped.loc["ours", "low"] >= 0.95
    assert shipped.loc["released", "high"] < shipped.loc["random", "low"]
