"""The course itself: run the notebooks, check their parameters, stamp their outputs.

No torch and no dial here: the runner must start at once, and say what is wrong before anything loads.
"""
