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
