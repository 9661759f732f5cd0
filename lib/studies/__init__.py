"""The runs behind published numbers, one file a notebook, to be made again by a command.

Settings and seeds of experiments belong here; what a reader would use in a run of his own does not.
"""
