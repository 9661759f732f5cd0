"""How a frozen LLM is asked through a chat server, and how its replies are read."""

import re

from lib.bandit.actions import Action

# The paper's frame (figure 9), by meaning, in our own words.
FRAME = """\
1. Objective
Answer the question fully, in a style that suits it. Make nothing up.

2. Question
{question}

3. Strategy
{strategy}

4. Requirements
Give one complete answer, clear and without repetition.
End with a line that holds only the answer: the letter of an option, yes or no, or a number.
Answer: <answer>"""


def configured_prompt(question: str, action: Action) -> str:
    """The prompt for one configuration."""
    return FRAME.format(question=question, strategy=f"{action.instruction} Use at most {action.steps} steps.")


def read_reply(reply: str) -> str | None:
    """The answer in the last line `Answer: ...`, without marks of emphasis; None where there is none."""
    found = re.findall(r"^[\s*_]*Answer[*_]*\s*:[*_\s]*(.+?)[\s*_.]*$", reply, re.M | re.I)
    return found[-1].strip().strip("()") if found else None
