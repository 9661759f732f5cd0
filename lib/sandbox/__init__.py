"""Run model-written Python safely: the parent that starts it, and the child behind the guards."""

from lib.sandbox.run import (
    SandboxError,
    SandboxResult,
    protections,
    run_python,
    split_simulated_output,
)

__all__ = ["SandboxError", "SandboxResult", "protections", "run_python", "split_simulated_output"]
