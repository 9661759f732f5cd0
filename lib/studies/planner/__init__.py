"""Will it fit, and how long will it take? A plan of a profile on a machine, before anything is loaded.

    python -m lib.studies.planner single_gpu --machine 24gb

Closed forms; no model is made. `table(Planned.of("single_gpu", find_machine("24gb")))` gives the table.
"""

from lib.studies.planner.machines import find_machine, machine_of
from lib.studies.planner.report import Planned, brief, full, table

__all__ = ["Planned", "brief", "find_machine", "full", "machine_of", "table"]
