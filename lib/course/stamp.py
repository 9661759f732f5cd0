"""Put the outputs of a finished run into the committed notebook, and say there what made them."""

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from lib.course.notebooks import CourseError, clock, code_hash, own_cells
from lib.course.profiles import DEFAULT_PROFILE, Plan
from lib.runs import ROOT, provenance, read_json, write_atomically

_MEASURED = re.compile(r"(?<=\*\*Measured\*\*: ).*")


def stamp(planned: Plan) -> None:
    """Put the outputs of the last full cpu run into the committed notebook, and stamp what made them."""
    path, target = planned.path, planned.folder
    notebook = nbformat.read(path, as_version=4)
    finished, output = target / "finished.json", target / path.name
    if not finished.exists():
        raise CourseError(f"{planned.name}: no finished run in {target} to stamp; run it first.")
    record = read_json(finished)
    if record["code_sha256"] != code_hash(notebook) or record["parameters"] != planned.given:
        raise CourseError(f"{planned.name}: the last run had other code or parameters; run it first.")
    ran = enumerate((c for c in own_cells(nbformat.read(output, as_version=4)) if c.cell_type == "code"), 1)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            count, done = next(ran)
            cell.execution_count, cell.outputs = count, done.outputs
            for shown in cell.outputs:
                if shown.output_type == "execute_result":
                    shown.execution_count = count
            if "readme-figure" in cell.metadata.get("tags", []):
                _export_figure(cell, path)
        elif "card" in cell.metadata.get("tags", []):
            used = f"{clock(record['seconds'])} minutes, {record['peak_memory_mb']} MB at most"
            cell.source = _MEASURED.sub(f"{used} (cpu profile, two cores)", cell.source)
    origin = provenance() | record | {"profile": DEFAULT_PROFILE}
    vouched = ("code_sha256", "profile", "versions", "date", "seconds", "peak_memory_mb")
    notebook.metadata.stamp = {name: origin[name] for name in vouched}
    write_atomically(path, nbformat.writes(notebook) + "\n")
    if target.parent.name == DEFAULT_PROFILE:  # a notebook's; solutions lie one folder deeper
        home = path.parent.parent
        _keep_numbers(target / "numbers.json", home / "data" / "numbers" / f"{path.stem}.json")
        _update_readme(home / "README.md", path.name, record)


def _keep_numbers(quoted: Path, kept: Path) -> None:
    """Copy what the run quoted to where tests hold the text against it, to six digits, sorted."""
    if quoted.exists():
        numbers = json.loads(quoted.read_text(), parse_float=lambda text: float(f"{float(text):.6g}"))
        write_atomically(kept, json.dumps(numbers, indent=2, sort_keys=True) + "\n")
    else:
        kept.unlink(missing_ok=True)


def _update_readme(readme: Path, name: str, record: Mapping[str, Any]) -> None:
    """Write time and memory into the notebook's row of the README's table, where it has one."""
    if readme.exists():
        row = re.compile(rf"(\| \[[^\]]*\]\(notebooks/{name}\) \|[^|\n]*\|)[^|\n]*\|[^|\n]*\|")
        measured = rf"\1 {clock(record['seconds'])} | {record['peak_memory_mb']} MB |"
        write_atomically(readme, row.sub(measured, readme.read_text(encoding="utf-8")))


def _export_figure(cell: nbformat.NotebookNode, path: Path) -> None:
    """Keep the figure of a cell as a file too, for the README."""
    png = next(shown.data["image/png"] for shown in cell.outputs if "image/png" in shown.get("data", {}))
    figure = ROOT / "data" / "figures" / f"{path.stem}.png"
    figure.parent.mkdir(parents=True, exist_ok=True)
    figure.write_bytes(base64.b64decode(png))
