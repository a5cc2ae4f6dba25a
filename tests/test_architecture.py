"""The shape of the code itself: imports run one way, families and methods do not know each other, nothing is huge."""

import ast
import importlib
from functools import cache
from pathlib import Path

import pytest
import torch

import swiftvlm
from swiftvlm import tokens

ROOT = Path(swiftvlm.__file__).parent
RANKS = [  # a module imports only from lines above its own
    {"amounts", "errors"},
    {"plans"},
    {"shape", "stage", "tokens", "tower"},
    {"budget", "flops", "scores", "reductions", "relevance", "trace", "profiles"},
    {"ratings"},
    {"methods", "families"},
    {"engine", "figures"},
    {"bench", "inputs", "scenes"},
    {"evaluation"},
    {"mini", "selection"},
    {"cli"},
]


@cache
def sources() -> dict[str, ast.Module]:
    """Every module of the package by dotted name."""
    files = sorted(ROOT.rglob("*.py"))
    return {".".join(f.relative_to(ROOT).with_suffix("").parts): ast.parse(f.read_text()) for f in files}


def imported(tree: ast.Module) -> set[str]:
    """Second parts of all `swiftvlm.x` imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("swiftvlm"):
            inner = (node.module or "").split(".")[1:]
            found |= {inner[0]} if inner else {alias.name for alias in node.names}
    return found


def rank(name: str) -> int:
    """The line a room is on."""
    return next(i for i, rooms in enumerate(RANKS) if name in rooms)


@pytest.mark.parametrize("module", [name for name in sources() if name != "__init__"])
def test_imports_run_downward(module):
    """No module imports one of its own rank or above, but for its own room."""
    room = module.split(".")[0]
    for other in imported(sources()[module]) - {room}:
        assert rank(other) < rank(room), f"{module} imports swiftvlm.{other}"


def test_rooms_are_entered_by_their_face():
    """Other rooms take what `__all__` of an `__init__` offers; parts of methods are shelves, taken from one by one."""
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"ratings", "reductions", "cli"}
    offered = {room: importlib.import_module(f"swiftvlm.{room}").__all__ for room in rooms}
    for module, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("swiftvlm.") for alias in node.names), module
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("swiftvlm."):
                room, *inside = (node.module or "").split(".")[1:]
                if room in rooms and room != module.split(".")[0]:
                    assert not inside, f"{module}: {node.module}"
                    assert {alias.name for alias in node.names} <= set(offered[room]), f"{module}: {node.module}"


def test_families_and_methods_do_not_know_each_other():
    """Families know models, methods know scores."""
    for module, tree in sources().items():
        room = module.split(".")[0]
        assert not (room == "families" and imported(tree) & {"methods", "stage", "scores"}), module
        assert not (room == "methods" and imported(tree) & {"families", "engine"}), module


def test_only_the_engine_cuts_the_token_axis():
    """No method touches a tensor: none imports torch."""
    for module, tree in sources().items():
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not (module.startswith("methods") and "torch" in names), module


def test_files_and_functions_stay_small():
    """No file over 300 lines, no function over 50 without its docstring."""
    for module, tree in sources().items():
        assert max((getattr(node, "end_lineno", 0) for node in ast.walk(tree)), default=0) <= 300, module
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                doc = ast.get_docstring(node)
                lines = node.end_lineno - node.lineno + 1 - (doc.count("\n") + 1 if doc else 0)
                assert lines <= 50, f"{module}.{node.name} has {lines} lines"


def test_stated_shapes_are_checked_while_tests_run():
    """Every module that imports jaxtyping was loaded by what checks its shapes, and a wrong shape is refused."""
    for module, tree in sources().items():
        if any(isinstance(node, ast.ImportFrom) and node.module == "jaxtyping" for node in ast.walk(tree)):
            loader = type(importlib.import_module(f"swiftvlm.{module}").__spec__.loader)
            assert loader.__module__.startswith("jaxtyping"), module
    with pytest.raises(Exception, match="Type-check error"):
        tokens.membership(torch.zeros(2, 3, 4, dtype=torch.long), 2)


def test_public_names():
    """At most twelve, all there, all documented."""
    assert len(swiftvlm.__all__) <= 12
    for name in swiftvlm.__all__:
        thing = getattr(swiftvlm, name)
        assert not callable(thing) or thing.__doc__, name
