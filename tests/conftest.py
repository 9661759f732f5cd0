"""Shared fixtures: nothing a test writes may land in the real run folder."""

import pytest


@pytest.fixture(autouse=True)
def private_runs(tmp_path, monkeypatch):
    """Every test has its own run folder."""
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"
