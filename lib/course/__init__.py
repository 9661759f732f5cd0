"""The course itself: run the notebooks, check their parameters, stamp their outputs.

A notebook's set-up cell opens its run with `course.start(...)`; `python -m lib.course` runs them all.
"""

from lib.course.declared import start
