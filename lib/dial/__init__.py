"""The dial world: a toy whose difficulty, right answers and cheapest right format are known exactly.

Whatever knows a dial belongs here; only notebooks and studies import it, so all else serves real models.
"""

from lib.dial.oracle import oracle_format, oracle_rows, reach, token_cost
from lib.dial.responses import (
    UNTAGGED_PREFIX,
    gold_response,
    jotted,
    monologue,
    program,
    rationale,
    read_untagged,
    statement_sizes,
    untagged_answer,
    untagged_response,
)
from lib.dial.tasks import dial_task, dial_tasks, gold_rows, rl_questions
from lib.dial.tokenizer import dial_tokenizer, dial_vocabulary, new_dial_model
from lib.dial.world import (
    COLOURS,
    FUSED_OPERATIONS,
    JOTTED_AFTER,
    MAX_DEPTH,
    MAX_STATEMENTS,
    PAUSES,
    SPLITS,
    TIERS,
    TURNS,
    WORLDS,
    Question,
    parse_question,
    sample_questions,
    tier,
)

__all__ = [
    "COLOURS",
    "FUSED_OPERATIONS",
    "JOTTED_AFTER",
    "MAX_DEPTH",
    "MAX_STATEMENTS",
    "PAUSES",
    "SPLITS",
    "TIERS",
    "TURNS",
    "UNTAGGED_PREFIX",
    "WORLDS",
    "Question",
    "dial_task",
    "dial_tasks",
    "dial_tokenizer",
    "dial_vocabulary",
    "gold_response",
    "gold_rows",
    "jotted",
    "monologue",
    "new_dial_model",
    "oracle_format",
    "oracle_rows",
    "parse_question",
    "program",
    "rationale",
    "reach",
    "read_untagged",
    "rl_questions",
    "sample_questions",
    "statement_sizes",
    "tier",
    "token_cost",
    "untagged_answer",
    "untagged_response",
]
