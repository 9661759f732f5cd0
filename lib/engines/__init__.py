"""Engines: completions for token ids, from a model in this process or a server; launching processes.

An engine knows no question and no reward; `ask` puts tasks to any of them and gives rollouts.
"""
