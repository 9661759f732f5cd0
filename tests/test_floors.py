"""The floors of the library: no import goes upwards or in a circle, and only studies know the dial."""

import ast
import subprocess
import sys
from pathlib import Path
from statistics import median

from lib.runs import ROOT


def test_the_contracts_of_the_rooms_are_kept():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_room_has_its_floor():
    """A new room or module that no contract names would be free of all of them."""
    settings = (ROOT / "pyproject.toml").read_text()
    modules = {path.stem for path in ROOT.glob("lib/*.py")} - {"__init__"}
    rooms = {path.parent.name for path in ROOT.glob("lib/*/__init__.py")}
    layers = settings.split("layers = [")[1].split("\n]")[0]
    assert sorted(name for name in modules | rooms if f"lib.{name}" not in layers) == []


def test_functions_have_the_size_of_formulas():
    trees = [ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for path in ROOT.glob("lib/**/*.py")]
    sizes = [n.end_lineno - n.lineno + 1 for tree in trees for n in tree if isinstance(n, ast.FunctionDef)]
    assert median(sizes) <= 10


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_file_is_long():
    assert {path.name: lines(path) for path in ROOT.glob("lib/**/*.py") if lines(path) > 400} == {}


def test_the_library_stays_small():
    """Outside the toy world and its studies; methods, engines and signals that came later are not counted."""
    later = {"l1_exact.py", "l1_max.py", "arora_zanette.py", "with_vllm.py"}
    later |= {"vllm.py", "nodes.py", "serve.py", "stoppable.py"}
    counted = [path for path in ROOT.glob("lib/**/*.py") if path.name not in later]
    rooms = {path: path.relative_to(ROOT / "lib").parts[0] for path in counted}
    assert sum(lines(path) for path, room in rooms.items() if room not in ("dial", "studies")) <= 8_000
