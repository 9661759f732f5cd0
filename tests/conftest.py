"""Shared fixtures: nothing a test writes may land in the real run folder."""

import os

import pytest

# Models this small gain nothing from more threads, and lose much where two processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def private_runs(tmp_path, monkeypatch):
    """Every test has its own run folder."""
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


def pytest_collection_modifyitems(items):
    """A slow test trains or runs a notebook: it has twenty minutes, unless it says otherwise."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1200))
