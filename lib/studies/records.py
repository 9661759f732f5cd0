"""What every run behind a published number gives, and where its record lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.runs import ROOT

RUNS = ROOT / "data" / "reference_runs"
SFT_SHARE = 0.7  # of the training questions; the others are kept for RL


@dataclass(frozen=True)
class Outcome:
    """What a training gave: numbers for summary.json, facts for provenance.json, and the policy.

    `tables` are kept beside them as <name>.parquet, and at most `log_rows` of the log.
    """

    summary: dict[str, Any]
    facts: dict[str, Any]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    log_rows: int = 40  # a curve needs no more
