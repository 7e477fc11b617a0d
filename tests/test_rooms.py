"""The house: a package imports only from packages in rows below it; no two files import each other in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from convert_attn.convert.archs import architectures
from convert_attn.modeling import FAMILIES

ROOT = Path(__file__).parent.parent

# from the ground up: a package may import from those before it in this list, and a module from those in its own package
ROWS = (
    "modeling",
    "convert",
    "convert.samples.making",
    "convert.samples",
    "convert.weights",
    "convert.maths",
    "convert.classes",
    "convert.archs",
    "convert.checkpoint",
    "convert.methods",
    "convert.targets",
    "convert.text",
    "convert.streaming",
    "convert.planning",
    "convert.calibration",
    "convert.fitting",
    "convert.isolated",
    "convert.verification",
    "convert.publish",
    "convert.serving_rules",
    "convert.inspection",
    "convert.conversion",
    "convert.heal.state",
    "convert.heal.data",
    "convert.heal.loss",
    "convert.heal.memory",
    "convert.heal.training",
    "convert.heal",
    "eval.measures",
    "eval.tasks",
    "eval.results",
    "eval",
    "eval.benchmarks",
    "eval.benchmarks.conversion",
    "eval.benchmarks.experiments",
    "eval.benchmarks.heads",
    "convert.cli",
)
MOST_FILES = 14
PLUG_INS = {"convert.archs", "convert.targets", "modeling"}  # a file for each member: as many as there are


def modules() -> dict[str, Path]:
    """Dotted name below `convert_attn` -> file; a package is its `__init__.py`."""
    found = {}
    for top in ("convert", "modeling", "eval"):
        for file in sorted((ROOT / top).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            if "_package" not in parts:
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def package_of(name: str) -> str:
    """The package that a module is in; a package is in itself."""
    return name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]


def imported(name: str) -> Iterator[str]:
    """Modules of the project that a module imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            bases = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(["convert_attn", package_of(name), *([node.module] if node.module else [])])
            bases = [(base, alias.name) for alias in node.names]
        else:
            continue
        for base, member in bases:
            if base.partition(".")[0] != "convert_attn":
                continue
            stem = base.removeprefix("convert_attn").lstrip(".")
            for dotted in (f"{stem}.{member}".strip("."), stem):
                if dotted in MODULES:
                    yield dotted
                    break


IMPORTS = {name: {other for other in imported(name) if other != name} for name in MODULES}


def test_every_package_has_its_row() -> None:
    assert {package_of(name) for name in MODULES} == set(ROWS)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_from_rows_below_its_own(name: str) -> None:
    own = ROWS.index(package_of(name))
    above = {other for other in IMPORTS[name] if ROWS.index(package_of(other)) > own}
    assert not above, f"{name} imports {', '.join(sorted(above))} from above"


def test_no_files_import_each_other_in_a_circle() -> None:
    left = {name: set(others) for name, others in IMPORTS.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"a circle among {', '.join(sorted(left))}"


@pytest.mark.parametrize("package", ROWS)
def test_a_package_has_room(package: str) -> None:
    files = [name for name in MODULES if package_of(name) == package]
    assert len(files) <= MOST_FILES or package in PLUG_INS


# --- the shape of what is in them

FEW = 5  # positional parameters of a function, self not counted
FIELDS = 4  # of a dataclass whose fields may be given by position
LISTS = {"convert.samples.making.general_sources"}  # tables of data, written as such


def _trees() -> Iterator[tuple[str, ast.AST]]:
    for name, file in MODULES.items():
        if name not in LISTS:
            yield name, ast.parse(file.read_text(encoding="utf-8"))


def _by_triton(node: ast.FunctionDef) -> bool:
    """Whether Triton compiles it, which knows no arguments by name only."""
    return any(ast.unparse(decorator) == "triton.jit" for decorator in node.decorator_list)


def test_no_function_has_more_than_five_positional_parameters() -> None:
    found = []
    for name, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and not _by_triton(node):
                arguments = [a.arg for a in node.args.posonlyargs + node.args.args if a.arg not in ("self", "cls")]
                if len(arguments) > FEW:
                    found.append(f"{name}.{node.name}")
    assert not found


def test_dataclasses_with_many_fields_are_made_by_name() -> None:
    found = []
    for name, tree in _trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef):
                continue
            made = [ast.unparse(decorator) for decorator in node.decorator_list]
            if not any(text.startswith("dataclass") for text in made):
                continue
            fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
            if len(fields) > FIELDS and not any("kw_only=True" in text for text in made):
                found.append(f"{name}.{node.name}")
    assert not found


def test_no_two_classes_have_one_name() -> None:
    named: dict[str, list[str]] = {}
    for module, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                named.setdefault(node.name, []).append(module)
    assert not {name: places for name, places in named.items() if len(places) > 1}


# --- families are named where they are

PLACES = ("convert.archs", "convert.targets", "convert.serving_rules", "convert.samples", "eval.benchmarks", "modeling")
SHAPES = {"eval.measures.scale"}  # sizes as they were published, by the names of the models


def test_no_family_is_named_outside_its_own_files() -> None:
    families = {*architectures(), *FAMILIES}
    found = [
        f"{name}:{node.lineno} {node.value}"
        for name, tree in _trees()
        if not name.startswith(PLACES) and name not in SHAPES
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in families
    ]
    assert not found
