"""Engines: completions for token ids, from a model in this process or a server; launching processes."""
