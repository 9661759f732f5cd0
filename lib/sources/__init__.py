"""Where questions come from: rows of real datasets, and the catalogue of sources.

All of them give lib.tasks.Task; how a dataset spells its rows stays in this room.
"""

from lib.sources.catalogue import SOURCES
from lib.sources.loading import DataError, fits_in, load, load_tasks, read_rows
