"""The runs behind published numbers, to be made again by a command, and what one notebook alone needs.

Settings and seeds of experiments belong here; what two notebooks or a method share does not.
"""
