"""The course itself: run the notebooks, check their parameters, stamp their outputs."""
