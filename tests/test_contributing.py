"""The worked example of CONTRIBUTING.md is run as it stands there."""

import importlib.util
import re
import sys

import pytest

from lib.runs import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
METHOD, BY_HAND, TRAINING = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@pytest.fixture
def new_method(tmp_path, monkeypatch):
    """The method's file as a module of lib.methods."""
    path, name = tmp_path / "shortest.py", "lib.methods.shortest"
    path.write_text(METHOD, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module.Shortest


def test_its_formula_gives_the_numbers_that_it_says(new_method):
    exec(BY_HAND, {})


def test_it_trains_three_steps(new_method):
    exec(TRAINING, {})


def test_a_wrong_value_is_refused_with_the_fields_name(new_method):
    with pytest.raises(ValueError, match=r"Shortest\.price"):
        new_method.cpu(price=2)


def test_the_make_commands_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in set(re.findall(r"`?make ([a-z-]+)", TEXT)):
        assert re.search(rf"^{command}:", makefile, re.M), f"make {command}"
