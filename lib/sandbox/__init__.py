"""Run model-written Python safely: the parent that starts it, and the child behind the guards.

The child runs alone, with the standard library only; whether a program is right is asked in sources.
"""

from lib.sandbox.run import (
    SandboxError,
    SandboxResult,
    protections,
    run_python,
    split_simulated_output,
)

__all__ = ["SandboxError", "SandboxResult", "protections", "run_python", "split_simulated_output"]
