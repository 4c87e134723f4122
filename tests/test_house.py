"""The house: imports go down, and nothing but tests and other commands imports a command."""
import ast
from graphlib import TopologicalSorter

import pytest

from conftest import ROOT

COMMANDS = {f"utils.{name}" for name in ("derain", "demo", "figures", "page", "curves", "benchmark", "reproduce", "evaluate",
                                         "rain")}
FLOORS = [
    ["models", "utils", *(f"utils.{name}" for name in ("image", "photograph", "results", "checkpoint", "inference", "metrics",
                                                       "tables", "cli", "progress", "distributed", "utils"))],
    ["utils.sampling", "utils.training"], ["utils.fast"],
    ["ldgp", "sdr", "sdrl"], ["sdrl_online", "test_all"], ["sdrl_all"], COMMANDS]
# What a module may import of its own floor.
BESIDE = {
    **{f"utils.{name}": {"utils.image", "models"} for name in ("photograph", "results", "checkpoint", "inference", "metrics")},
    "utils.tables": {"utils.metrics", "utils.image"}, "utils.distributed": {"utils.image"},
    "utils.cli": {"utils.image", "utils.distributed"}, "utils.progress": {"utils.image", "utils.distributed", "utils.cli"}}
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
           for path in [*ROOT.glob("*.py"), *ROOT.glob("models/*.py"), *ROOT.glob("utils/**/*.py")]}


def room(module):
    """The name under which a module stands in FLOORS: that of its package for those of models/ and utils/fast/."""
    return next((name for name in ("models", "utils.fast") if module.startswith(f"{name}.")), module)


def imports(module):
    """The modules of the project that a module imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = [module.rpartition(".")[0] if not MODULES[module].match("__init__.py") else module] * (node.level > 0)
            place = ".".join([*package, *[node.module] * bool(node.module)])
            parts = {f"{place}.{name.name}" for name in node.names}
            found |= parts & MODULES.keys() or {place}
    return found & MODULES.keys() - {module}


def test_every_module_has_its_floor_and_there_is_no_circle():
    assert {room(module) for module in MODULES} == {name for floor in FLOORS for name in floor}
    TopologicalSorter({module: imports(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module):
    own = next(number for number, floor in enumerate(FLOORS) if room(module) in floor)
    below = {name for floor in FLOORS[:own] for name in floor}
    beside = COMMANDS if module in COMMANDS else BESIDE.get(module, set()) | {room(module)}
    wrong = {name for name in imports(module) if room(name) not in below | beside}
    assert not wrong and imports("sdr") and imports("models") and imports("utils.fast.layer")
