"""The runs behind published numbers, to be made again by a command, and what notebooks alone need.

Settings and seeds of experiments belong here; what a method shares does not.
"""
