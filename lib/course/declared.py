"""What a notebook declares in its parameters cell, what is wrong with values for it, and its first call."""

import ast
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat

from lib.checked import allowed, faults, raise_faults
from lib.course import rules
from lib.course.notebooks import NOTEBOOKS, CourseError, code_cells
from lib.runs import Run, located, start_run

_CARDS = Path("/proc/driver/nvidia/gpus")
_COMMENT = re.compile(r"(?:\[([^\]]*)\] *)?(.*)")


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell: `NAME: type = default  # [rule, relation, ...] help`."""

    name: str
    type: str
    default: Any
    help: str
    rule: str = ""
    relations: tuple[str, ...] = ()

    @property
    def annotation(self) -> Any:
        """The rule as an annotation, for lib.checked."""
        return rules.annotation(self.type, self.rule)

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        return ", ".join([allowed(self.annotation), *self.relations])

    @property
    def names_a_place(self) -> bool:
        """Whether its value can be the path of a folder or a file."""
        return self.type == "str" and bool(rules.places(self.rule))


def read_parameters(path: Path) -> list[Parameter]:
    """The parameters a notebook declares; raises CourseError for a cell that is not plain declarations."""
    cells = code_cells(nbformat.read(path, as_version=4))
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise CourseError(f"{path.name}: expected one cell tagged 'parameters', found {len(tagged)}.")
    lines = tagged[0].source.splitlines()
    body = ast.parse(tagged[0].source).body
    parameters = [_parameter(node, lines[(node.end_lineno or node.lineno) - 1], path.name) for node in body]
    _check_used(path, [cell for cell in cells if cell is not tagged[0]], parameters)
    return parameters


def _parameter(node: ast.stmt, line: str, notebook: str) -> Parameter:
    where = f"{notebook}, parameters cell, line {node.lineno}"
    if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name) or node.value is None:
        raise CourseError(f"{where}: write `NAME: type = literal  # [what it may be] meaning`, nothing else.")
    name = node.target.id
    try:
        default = ast.literal_eval(node.value)
    except ValueError:
        raise CourseError(f"{where}: {name} must be a literal; derive values in a later cell.") from None
    rule, help = _COMMENT.fullmatch(line.partition("#")[2].strip()).groups()  # type: ignore[union-attr]
    first, *relations = [part.strip() for part in (rule or "").split(",")]
    parameter = Parameter(name, ast.unparse(node.annotation), default, help, first, tuple(relations))
    try:
        _ = parameter.annotation
    except (KeyError, ValueError) as error:
        raise CourseError(f"{where}: {name} has no rule that lib.course.rules knows ({error}).") from None
    return parameter


def _check_used(path: Path, cells: Sequence[nbformat.NotebookNode], parameters: Sequence[Parameter]) -> None:
    """A parameter that no other cell reads, or that one overwrites, would be ignored in silence: an error."""
    nodes = (node for cell in cells for node in ast.walk(ast.parse(cell.source)))
    uses = {(node.id, type(node.ctx)) for node in nodes if isinstance(node, ast.Name)}
    for name in (parameter.name for parameter in parameters):
        if (name, ast.Store) in uses:
            lost = "so a value set from outside would be lost. Use another name for the derived value."
            raise CourseError(f"{path.name}: the parameter {name} is overwritten, {lost}")
        if (name, ast.Load) not in uses and name not in ("PROFILE", "RUN_NAME"):  # which `start` reads
            raise CourseError(f"{path.name}: no cell uses the parameter {name}. Use it or remove it.")


def value_faults(
    notebook: str, parameters: Sequence[Parameter], values: Mapping[str, Any], origin: Mapping[str, str]
) -> Iterator[str]:
    """What is wrong with a notebook's values by their own words: types, choices, ranges, relations.

    `origin` says where each value was written, for the message.
    """
    sound = True
    for parameter in parameters:
        name, value = parameter.name, values[parameter.name]
        number = parameter.type == "float" and isinstance(value, str) and re.fullmatch(r"-?\d+e-?\d+", value)
        for fault in faults(f"{origin[name]}: {name}", parameter.annotation, value):
            sound = False
            yield fault + (". YAML reads 1e-5 as text; write 1.0e-5" if number else "")
    if sound:
        if values.get("TRAINER"):
            yield from _option_faults(f"{origin['TRAINER']}: TRAINER", notebook, values)
        for parameter in parameters:
            broken = (rules.dependency_fault(word, parameter.name, values) for word in parameter.relations)
            yield from (f"{origin[parameter.name]}: {fault}" for fault in broken if fault)


def _option_faults(where: str, notebook: str, values: Mapping[str, Any]) -> Iterator[str]:
    """What the configuration of what the notebook trains, which it is named after, says of TRL's options."""
    from lib.methods import METHODS  # only here: the runner starts without torch
    from lib.methods.sft import SFTConfig

    kind = METHODS.get(notebook.partition("_")[2], SFTConfig)
    try:
        getattr(kind, values.get("PRESET", "cpu"))("x", trainer=values["TRAINER"], weights=values["WEIGHTS"])
    except ValueError as error:
        yield from (f"{where}: {fault}" for fault in str(error).splitlines())


def missing_places(
    parameters: Sequence[Parameter], values: Mapping[str, Any], origin: Mapping[str, str], made: Sequence[str]
) -> Iterator[str]:
    """Folders and files that values name and that are not there; `made` are folders that are made before."""
    promised = tuple(f"{folder}/" for folder in made)
    for parameter in parameters:
        value = values[parameter.name]
        named = parameter.names_a_place and isinstance(value, str) and value
        if named and not value.startswith(promised) and (fault := rules.missing_place(parameter.rule, value)):
            yield f"{origin[parameter.name]}: {parameter.name} takes {parameter.allowed}, got {fault}"
    if not any(fault for p in parameters for fault in faults("", p.annotation, values[p.name])):
        yield from _missing_questions(values, origin)
        yield from _missing_machine(values, origin)


def _missing_questions(values: Mapping[str, Any], origin: Mapping[str, str]) -> Iterator[str]:
    """Sources that the data folder, or the hub, does not hold: those of the test are read after training."""
    folder = values.get("DATA_FOLDER")
    hub = {known: entry for known, entry in rules.SOURCES.items() if "hub" in entry}
    real = values.get("SERVER_URL") and not values["QUESTIONS_FILE"] and values["REAL_SOURCE"]
    if real and real not in hub:
        yield f"{origin['REAL_SOURCE']}: REAL_SOURCE {real!r} is not on the hub; name its QUESTIONS_FILE"
    for name in (name for name in values if name.endswith("_SOURCES")):
        split = "test" if name == "TEST_SOURCES" else "train"  # which holds the questions for validation
        held = [known for known, entry in hub.items() if split in entry.get("splits", ("train", "test"))]
        for source in (source for source in values[name] if source != "dial"):
            file = f"{source}_{split}.jsonl"
            if not folder and source not in held:
                from_hub = f"takes from the hub dial, {', '.join(held)}, got {source!r}"
                yield f"{origin[name]}: {name} {from_hub}; else name a DATA_FOLDER with {file}"
            elif folder and located(folder).is_dir() and not (located(folder) / file).is_file():
                yield f"{origin['DATA_FOLDER']}: DATA_FOLDER holds no {file}, which {name} takes"


def _missing_machine(values: Mapping[str, Any], origin: Mapping[str, str]) -> Iterator[str]:
    """Devices and packages that values ask for; several machines count theirs when they start."""
    alone = {os.environ.get(name) or "1" for name in ("NNODES", "SLURM_NNODES")} == {"1"}
    cards = [] if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else [*_CARDS.glob("*")]
    most = len(cards) or max(2, os.cpu_count() or 1)
    if alone and values.get("NUM_PROCESSES", 1) > most:
        yield f"{origin['NUM_PROCESSES']}: NUM_PROCESSES takes {most} at most on this machine, one a device"
    asked = {"ENGINE": values.get("ENGINE") == "vllm", "TRAINER": values.get("TRAINER", {}).get("use_vllm")}
    for name in (name for name, wanted in asked.items() if wanted and not find_spec("vllm")):
        yield f"{origin[name]}: {name} asks for vLLM, which is not installed here: README has its environment"


def start(notebook: str, names: Mapping[str, Any]) -> Run:
    """The run of a notebook, e.g. `start("02_qlora_sft", globals())`; its configuration is the parameters.

    Raises CourseError that names every parameter with a wrong value, before anything is loaded.
    """
    parameters = read_parameters(NOTEBOOKS / f"{notebook}.ipynb")
    if absent := [parameter.name for parameter in parameters if parameter.name not in names]:
        raise CourseError(f"{', '.join(absent)}: not there yet; run the parameters cell first.")
    values = {parameter.name: names[parameter.name] for parameter in parameters}
    told = parameters, values, dict.fromkeys(values, notebook)
    raise_faults([*value_faults(notebook, *told), *missing_places(*told, made=())], CourseError)
    return start_run(notebook, values["PROFILE"], values, values.get("RUN_NAME", ""))
