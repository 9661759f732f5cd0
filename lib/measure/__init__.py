"""Measuring: ask a policy in a mode, rollouts into numbers with intervals, bounds, and figures."""
