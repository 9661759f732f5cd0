"""The fault campaign in short: a few cases of each column; make faults runs an hour of them."""

import random

import pytest
from faults import changes, disks, kills, latex, programs, runner, servers, values
from faults.campaign import Campaign, Column, Found

SEED = "test"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where cases lie side by side: what nobody disturbs is trained once."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture
def holds(root):
    """Try one case of a column; nothing may be broken."""

    def run(case, name, number=0):
        folder = root / case.__module__ / name.replace(" ", "_")
        folder.mkdir(parents=True)
        found = case(random.Random(f"{SEED}/{name}/{number}"), folder, number)
        assert not found.broken, f"{found.what}: {found.broken}"

    return run


# ---- the campaign itself -----------------------------------------------------------------------------


def broken_at_two(rng, folder, number):
    return Found(f"drew {rng.randrange(1000)}", 2, ["the second"] if number == 2 else [])


COLUMNS = {"a": Column(broken_at_two, share=2), "b": Column(broken_at_two, most=2)}


def tried(campaign):
    return [(row["column"], row["number"], row["what"]) for row in campaign.rows]


def test_a_campaign_goes_on_where_it_was_stopped_and_draws_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "faults.campaign.time.monotonic", iter(range(10_000)).__next__
    )  # a case takes a second
    whole, stopped = (Campaign(COLUMNS, 0, tmp_path / name) for name in ("whole", "stopped"))
    whole.run(8, say=lambda line: None)
    stopped.run(3, say=lambda line: None)
    with stopped.kept.path.open("a") as file:
        file.write('{"column": "a", "num')  # a kill
    again = Campaign(COLUMNS, 0, tmp_path / "stopped")
    again.run(8, say=lambda line: None)
    assert tried(again) == tried(whole) and len(tried(whole)) == 8
    assert sum(name == "b" for name, _, _ in tried(whole)) == 2
    assert tried(Campaign(COLUMNS, 1, tmp_path / "other")) == []


def test_the_table_counts_what_held_and_names_what_broke(tmp_path):
    campaign = Campaign({"a": Column(broken_at_two, most=3)}, 0, tmp_path)
    campaign.run(100, say=lambda line: None)
    assert "| a | 6 | 5 | 1 |" in campaign.table() and "- a 2, drew" in campaign.table()
    assert (tmp_path / "table.md").read_text() == campaign.table()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["case_2"], "only what broke is kept"


# ---- its columns -------------------------------------------------------------------------------------


def stopped(training, *hows):
    def case(rng, folder, number):
        return kills.stopped(rng, folder, training, hows)

    case.__module__ = "kills"
    return case


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "hows"),
    [
        ("SFT", ("state", "result")),
        ("Ada-GRPO", ("moment", "result")),
        ("AdaptThink", ("state", "signal")),
        ("bandit", ("file", "signal")),
        ("reference samples", ("moment",)),
        ("server cache", ("moment", "file")),
    ],
)
def test_a_training_that_was_stopped_ends_as_if_nothing_had_been(training, hows, holds):
    holds(stopped(training, *hows), training)


@pytest.mark.slow
def test_a_runner_that_is_ended_leaves_nobody_and_goes_on(holds):
    holds(runner.case, "runner")


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_a_full_disk_is_named_and_forgotten(number, holds):
    holds(disks.case, f"disk {number}", number)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 33, changes.MOST - 2])
def test_other_settings_never_take_the_old_ones_result(number, holds):
    holds(changes.case, f"change {number}", number)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(programs.WITHOUT)))
def test_hostile_programs_reach_nothing(number, holds):
    holds(programs.case, f"programs {number}", number)


@pytest.mark.slow
def test_nonsense_is_refused(holds):
    holds(values.case, "values")


def test_hundred_answers_in_latex_are_judged_rightly(holds):
    holds(latex.case, "latex")


@pytest.mark.slow
def test_every_fault_of_a_server_is_a_problem_of_its_own(holds):
    holds(servers.case, "servers")
