"""The runs behind published numbers, one file a notebook, to be made again by a command."""
