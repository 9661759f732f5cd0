"""Measuring: ask a policy in a mode, rollouts into numbers with intervals, bounds, and figures.

Nothing here trains, and nothing asks which method made a policy.
"""
