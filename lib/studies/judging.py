"""Two judges of replies against exact match: one finds the answer anywhere, one asks how likely they are.

python -m lib.studies.judging      900 replies of the dial LLM under random configurations, to 06_judges

The paper's judge at test time passes a reply if any step deduces the answer; "anywhere" is that rule. The
other judge is the LLM's own mean probability of a token of its reply: a judge without a reference.
"""

from __future__ import annotations

import math
import re

import pandas as pd
import torch

from lib.dial import frozen_llm
from lib.engines.ask import respond
from lib.engines.base import Sampling
from lib.runs import ROOT, provenance, write_atomically, write_json
from lib.studies import bandits, rivals
from lib.studies.prompting_baselines import mean_log_prob

FOLDER = ROOT / "data" / "reference_runs" / "06_judges"
REPLIES, SEED = 900, 0


def anywhere(reply: str, answer: str) -> float:
    """1 where the answer is what some step came to, or the closing sentence says."""
    return float(answer in re.findall(r"(?:\d =|#|shows)\s+(\d)", reply))


def judged_replies(seed: int = SEED, count: int = REPLIES) -> pd.DataFrame:
    """Columns method (the judge), correct, judged, cut, steps: a row per reply and judge."""
    policy = bandits.dial_llm()
    questions = frozen_llm.sample_mixture_questions(count, seed=bandits.NEW_DRAWS + seed, split="test")
    actions = [bandits.SPACE.decode(int(a)) for a in rivals.random_actions(count, bandits.SPACE.size, seed)]
    rows = []
    for temperature in bandits.SPACE.temperatures:
        mine = [(q, a) for q, a in zip(questions, actions, strict=True) if a.temperature == temperature]
        prompts = [frozen_llm.prompt(question, action.instruction, action.steps) for question, action in mine]
        sampling = Sampling(temperature, seed=seed)
        for (question, action), asked, reply in zip(
            mine, prompts, respond(policy, prompts, sampling=sampling, max_new_tokens=120), strict=True
        ):
            right = frozen_llm.read_answer(reply.text) == question.answer
            verdicts = {
                "answer anywhere": anywhere(reply.text, question.answer),
                "own likelihood": math.exp(mean_log_prob(*policy, asked, reply.text)),
            }
            facts = {"correct": int(right), "cut": reply.truncated, "steps": action.steps}
            rows += [{"method": name, "judged": round(one, 4), **facts} for name, one in verdicts.items()]
    return pd.DataFrame(rows)


def read() -> pd.DataFrame:
    """The shipped verdicts, for `real_tables.agreement`."""
    return pd.read_csv(FOLDER / "rows.csv")


def main() -> None:
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_atomically(FOLDER / "rows.csv", judged_replies().to_csv(index=False))
    write_json(FOLDER / "provenance.json", provenance(command="python -m lib.studies.judging", seed=SEED))


if __name__ == "__main__":
    main()
