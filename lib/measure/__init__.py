"""Measuring: ask a policy in a mode, rollouts into numbers with intervals.

Nothing here trains, and nothing asks which method made a policy.
"""
