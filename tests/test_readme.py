"""The README speaks of what is there: paths, commands, measured minutes."""

import base64
import re

import nbformat
import pytest

from lib.course.notebooks import find_notebooks
from lib.runs import ROOT

TEXT = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def test_links_point_to_something():
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", TEXT):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_make_commands_exist():
    commands = set(re.findall(r"\bmake ([a-z-]+)", TEXT))
    assert {"course", "test"} <= commands
    for command in commands:
        assert re.search(rf"^{command}:", MAKEFILE, re.M), f"make {command}"


def tree_paths():
    """The paths that the tree names, from its indentation."""
    parents = []
    for line in TEXT.split("```text")[1].split("```")[0].strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:depth], line.split()[0]]
        yield "".join(parents)


def test_the_tree_names_what_is_there():
    named = set(tree_paths())
    assert "lib/methods/grpo.py" in named
    assert [name for name in named if name != "runs/" and not (ROOT / name).exists()] == []


def test_the_tree_names_every_room_and_file_of_the_library():
    files = {str(path.relative_to(ROOT)) for path in ROOT.glob("lib/**/*.py") if path.name[:2] != "__"}
    rooms = {f"lib/{path.parent.name}/" for path in ROOT.glob("lib/*/__init__.py")}
    assert sorted((rooms | files) - set(tree_paths())) == []


@pytest.mark.parametrize("path", find_notebooks(), ids=lambda path: path.stem)
def test_the_table_says_the_stamped_time(path):
    stamp = nbformat.read(path, as_version=4).metadata.stamp
    row = next(
        line for line in TEXT.splitlines() if f"notebooks/{path.name}" in line and line.startswith("|")
    )
    assert f"{int(stamp.seconds) // 60}:{int(stamp.seconds) % 60:02d}" in row


def test_the_figure_is_the_notebooks():
    notebook = nbformat.read(find_notebooks()[0], as_version=4)
    cell = next(c for c in notebook.cells if "readme-figure" in c.metadata.get("tags", []))
    png = next(o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {}))
    assert (ROOT / "data" / "figures" / "00_the_dial_world.png").read_bytes() == base64.b64decode(png)
