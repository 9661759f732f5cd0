"""Run model-written Python safely: the parent that starts it, and the child behind the guards.

The child runs alone, with the standard library only; whether a program is right is asked elsewhere.
"""

from lib.sandbox.run import SandboxResult, protections, run_python
