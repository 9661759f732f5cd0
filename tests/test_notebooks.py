"""The notebooks keep their promises: skeleton, parameters, outputs, stamp. Cheap, so it always runs."""

import base64
import re
from pathlib import Path

import nbformat
import pytest
import yaml

from lib.course.declared import read_parameters
from lib.course.notebooks import NOTEBOOKS, code_cells, code_hash, find_notebooks, find_solutions
from lib.course.profiles import plan
from lib.runs import ROOT

HEADINGS = [
    "## The idea by hand",
    "## The equations",
    "## Build it",
    "## Run it",
    "## Look at it",
    "## Paper, official code, here",
    "## Exercises",
    "## Summary",
]
FORBIDDEN = re.compile(
    r"^\s*[!%]|\bsys\.path\b|\bos\.chdir\b|\bnotebook_login\b|trust_remote_code|\bpip install\b", re.M
)
SECOND_EDITION = ("00", "01", "02", "03", "04", "05", "06")
NOTEBOOK_PATHS = find_notebooks()
SOLUTIONS = find_solutions()


@pytest.fixture(params=NOTEBOOK_PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def test_there_are_notebooks():
    assert NOTEBOOK_PATHS and NOTEBOOK_PATHS[0].stem == "00_the_dial_world"


def test_the_skeleton(notebook):
    first, card = notebook.cells[:2]
    assert re.match(r"# \d\d · ", first.source) and "?" in first.source  # a title and one question
    assert "card" in card.metadata.tags
    for part in ("**You will**", "**You need**", "**Measured**", "**Paper**"):
        assert part in card.source, f"the card lacks {part}"
    assert [len(tagged(notebook, tag)) for tag in ("parameters", "setup", "record")] == [1, 1, 1]
    assert notebook.cells[2] is tagged(notebook, "parameters")[0]
    assert notebook.cells[3] is tagged(notebook, "setup")[0]
    core, appendix = parts(notebook)
    assert [line for line in lines(core) if line in HEADINGS] == HEADINGS
    if appendix:
        assert appendix[0].cell_type == "markdown" and appendix[0].source.startswith("## Appendix")
        assert [line for line in lines(appendix) if re.match("##? ", line)] == ["## Appendix"]


def test_the_core_can_be_read_in_a_session(path, notebook):
    """Up to and including the record; what a first reader can leave out comes after it."""
    if path.stem[:2] in SECOND_EDITION:
        assert len(parts(notebook)[0]) <= 52


def parts(notebook):
    """The core with the record, and the appendix."""
    end = notebook.cells.index(tagged(notebook, "record")[0]) + 1
    return notebook.cells[:end], notebook.cells[end:]


def lines(cells):
    return [line for cell in cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]


def test_code_cells_are_short(notebook):
    assert_short(notebook)


def assert_short(notebook):
    """Parameters are a table, a line each, and may be more."""
    cells = [cell for cell in code_cells(notebook) if "parameters" not in cell.metadata.get("tags", [])]
    lengths = sorted(len(cell.source.splitlines()) for cell in cells)
    assert lengths[-1] <= 30
    assert lengths[len(lengths) // 2] < 12


def test_code_holds_no_set_up_tricks(notebook):
    for cell in code_cells(notebook):
        assert not FORBIDDEN.search(cell.source), cell.source


def test_equations_are_numbered_in_order(notebook):
    numbers = [int(n) for cell in notebook.cells for n in re.findall(r"\\tag\{(\d+)\}", cell.source)]
    assert numbers == list(range(1, len(numbers) + 1)) and numbers


def test_parameters_are_declared_and_used(path):
    names = [parameter.name for parameter in read_parameters(path)]
    assert names[0] == "PROFILE" and "SEED" in names
    assert all(parameter.help for parameter in read_parameters(path))


def test_profile_files_fit(path):
    profiles = {file.parent.name for file in (NOTEBOOKS / "profiles").glob("*/[0-9]*.yaml")}
    for profile in profiles - {"dry_run"}:  # what lies over the others: tests/test_dry_run.py
        assert not list(plan(path, profile, {}).check())


def test_profile_files_belong_to_a_notebook():
    stems = {path.stem for path in NOTEBOOK_PATHS}
    files = sorted((NOTEBOOKS / "profiles").glob("*/*.yaml"))
    assert files
    for file in files:
        if file.parent.name in ("accelerate", "jobs"):
            continue
        assert file.stem in stems
        assert yaml.safe_load(file.read_text())


def test_outputs_are_those_of_this_code(notebook):
    assert_stamped(notebook)
    assert notebook.metadata.stamp["seconds"] > 0 and notebook.metadata.stamp["versions"]["trl"]


def assert_stamped(notebook):
    stamp = notebook.metadata.get("stamp")
    assert stamp, "no stamp: run it by lib.course, then stamp it"
    assert stamp["code_sha256"] == code_hash(notebook), "stale outputs: run it by lib.course, then stamp it"
    assert stamp["profile"] == "cpu"
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_outputs_are_clean(notebook):
    assert_clean(notebook)


def assert_clean(notebook):
    """No errors, no noise, no paths of a machine."""
    here = [str(ROOT), str(ROOT.parent), str(Path.home())]
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", f"noise in the outputs: {output.text}"
            data = {kind: value for kind, value in output.get("data", {}).items() if "image" not in kind}
            text = f"{output.get('text', '')}{data}"
            assert "Warning" not in text
            assert "PosixPath" not in text and not re.search(r"/\S+/runs/", text), "a path in the outputs"
            assert not any(place in text for place in here if place != "/"), (
                "a path of this machine in the outputs"
            )


def dumps(notebook):
    """Outputs that are a long printed dictionary or list: what is worth showing is worth a table."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            if text.lstrip().startswith(("{", "[")) and len(text) > 400:
                yield f"{cell.id}: {text[:80]}"


def test_no_output_is_a_dump(notebook):
    assert list(dumps(notebook)) == []


def test_a_dump_is_seen():
    def shows(**output):
        cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output(**output)])
        return list(dumps(nbformat.v4.new_notebook(cells=[cell])))

    long = str({str(number): number for number in range(100)})
    assert shows(output_type="stream", text=long)
    assert shows(output_type="execute_result", data={"text/plain": long})
    assert not shows(output_type="stream", text=long[:300])
    assert not shows(output_type="display_data", data={"text/plain": "   x\n0  1\n" * 100})


def test_every_figure_has_a_description_and_a_sane_size(notebook):
    figures = [
        output
        for cell in code_cells(notebook)
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert figures
    for figure in figures:
        assert len(figure.metadata["image/png"]["alt"]) > 60
    assert sum(len(base64.b64decode(figure.data["image/png"])) for figure in figures) < 300_000


def test_the_card_says_what_was_measured(notebook):
    seconds, memory = notebook.metadata.stamp.seconds, notebook.metadata.stamp.peak_memory_mb
    assert f"{int(seconds) // 60}:{int(seconds) % 60:02d} minutes, {memory} MB" in notebook.cells[1].source


def test_every_notebook_has_solutions(path):
    assert path.name in [solution.name for solution in SOLUTIONS]


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_a_solution_was_run_and_can_be_read(notebook):
    assert_stamped(notebook)
    assert_clean(notebook)
    assert list(dumps(notebook)) == []
    assert_short(notebook)
