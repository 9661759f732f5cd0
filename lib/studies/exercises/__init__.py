"""The checks behind "Your turn": one file a notebook, imported there as `check`.

A check tries what the reader wrote beside the library's function, and names the usual mistake. Exercises
belong here; the functions that they ask for stay in their own rooms.
"""
