"""Every line of the import contracts forbids something that nothing else forbids.

An import is planted in the graph of imports, and no file is written.
"""

import tomllib
from copy import deepcopy
from itertools import pairwise, product

import grimp
import pytest
from importlinter.configuration import configure
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.layers import LayersContract
from importlinter.contracts.protected import ProtectedContract

from tests.architecture.tree import PACKAGE, ROOT

LINES_MAX = 8
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS = PROJECT["tool"]["importlinter"]["contracts"]
FOLDERS, ERASURE = (one for one in CONTRACTS if one["type"] == "layers")
RULES = [one for one in CONTRACTS if one["type"] != "layers"]
configure()  # its timer
KINDS = {"forbidden": ForbiddenContract, "layers": LayersContract, "protected": ProtectedContract}


def boundaries(contract):
    """Yield (upper line, lower line), and each pair of names of one line that are separate."""
    yield from pairwise(contract["layers"])
    for line in contract["layers"]:
        yield from pairwise(line.split(" | "))


def without(contract, upper, lower):
    """Return the contract without the rule that keeps these two apart."""
    joined = f"{upper} : {lower}".replace(" | ", " : ")
    if upper in contract["layers"]:
        lines = [joined if line == upper else line for line in contract["layers"] if line != lower]
    else:  # two names of one line
        pair, layers = f"{upper} | {lower}", contract["layers"]
        lines = [line.replace(" | ", " : ") if pair in line else line for line in layers]
    return {**contract, "layers": lines}


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("mm_tasks", include_external_packages=True, cache_dir=None)


@pytest.fixture
def plant(graph):
    """Return the graph with one more import."""

    def plant(importer, imported):
        planted = deepcopy(graph)
        planted.add_import(importer=importer, imported=imported, line_number=1, line_contents="")
        return planted

    return plant


def is_kept(contract, graph):
    session = {"root_packages": ["mm_tasks"], "include_external_packages": True}
    # As if read from the file: its reader makes words of booleans.
    options = {k: str(v) if isinstance(v, bool) else v for k, v in contract.items()}
    checker = KINDS[contract["type"]](contract["name"], session, options)
    return checker.check(deepcopy(graph), verbose=False).kept


def broken(graph):
    return [contract["name"] for contract in CONTRACTS if not is_kept(contract, graph)]


def test_the_contract_of_the_folders_is_short_and_has_every_folder_and_no_exception():
    """A new folder or file, such as `utils`, must be given a place."""
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    placed = {name for line in FOLDERS["layers"] for name in line.split(" | ")}

    assert len(FOLDERS["layers"]) <= LINES_MAX
    assert not [rule["name"] for rule in CONTRACTS if rule.get("ignore_imports")]
    assert FOLDERS["exhaustive"]
    assert ERASURE["exhaustive"]
    assert placed == modules - {"__init__", "__pycache__"}


def test_nothing_is_broken_today(graph):
    assert broken(graph) == []


@pytest.mark.parametrize("contract", [FOLDERS, ERASURE], ids=["folders", "erasure"])
def test_each_line_refuses_an_upward_import_that_nothing_else_refuses(contract, plant):
    (container,) = contract["containers"]
    needless = []
    for upper, lower in boundaries(contract):
        names = [line.split(" | ")[0] for line in (lower, upper)]
        graph = plant(*(f"{container}.{name}" for name in names))
        if is_kept(contract, graph) or not is_kept(without(contract, upper, lower), graph):
            needless.append((upper, lower))

    assert needless == []


def violations(rule):
    """Return an import for each module that a rule beside the layers names."""
    if rule["type"] == "protected":
        importers = ("mm_tasks.contrib", "mm_tasks.tasks", "mm_tasks.settings")
        return product(importers, rule["protected_modules"])
    return product(rule["source_modules"], rule["forbidden_modules"])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["name"])
def test_each_module_of_a_rule_is_kept_by_this_rule_alone(rule, plant):
    assert {pair: broken(plant(*pair)) for pair in violations(rule)} == {
        pair: [rule["name"]] for pair in violations(rule)
    }
