"""What ARM writes where it responds in code."""

import ast
import re
from typing import Any


def split_simulated_output(code: str) -> tuple[str, Any]:
    """Split ARM's code text into the program and the output that the model wrote by itself.

    `>>> f()` becomes the program's last line, and `output = ...` after it the output: plain data, or None
    where there is none or it is not a Python literal. Without `>>>` the text is a program as it stands.
    """
    found = re.search(r"^>>>.*?(^output\s*[=:])", code, re.DOTALL | re.MULTILINE)
    program, simulated = (code[: found.start(1)], code[found.end() :].strip()) if found else (code, "None")
    program = re.sub(r"^>>>[ \t]*", "", program, flags=re.MULTILINE).strip() + "\n"
    try:
        return program, ast.literal_eval(simulated)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return program, None
