"""Engines: completions for token ids, from a model in this process or a server; launching processes.

An engine knows no question, format or reward: what a text means belongs to the rooms above.
"""
