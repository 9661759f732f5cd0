"""The first call of every notebook: hold its parameters to what they may be, and open its run folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib.course.declared import missing_places, read_parameters, value_faults
from lib.course.notebooks import NOTEBOOKS, CourseError
from lib.course.profiles import raise_together
from lib.runs import Run, start_run


def start(notebook: str, names: Mapping[str, Any]) -> Run:
    """The run of a notebook, e.g. `start("02_qlora_sft", globals())`; its configuration is the parameters.

    Raises CourseError that names every parameter with a wrong value, before anything is loaded.
    """
    parameters = read_parameters(NOTEBOOKS / f"{notebook}.ipynb")
    if absent := [parameter.name for parameter in parameters if parameter.name not in names]:
        raise CourseError(f"{', '.join(absent)}: not there yet; run the parameters cell first.")
    values = {parameter.name: names[parameter.name] for parameter in parameters}
    origin = dict.fromkeys(values, notebook)
    raise_together(
        [*value_faults(parameters, values, origin), *missing_places(parameters, values, origin, made=())]
    )
    return start_run(notebook, values["PROFILE"], values, values.get("RUN_NAME", ""))
