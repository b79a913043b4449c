"""The import rules of the layers, read off the source (docs/architecture.md has the table)."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "s2l_ray"
FILES_AND_ENVIRONMENT = {"os", "io", "pathlib", "shutil", "tempfile", "subprocess", "glob"}


@dataclass(frozen=True)
class Import:
    """`module` imports `target`, a dotted name that may end in a function or class."""

    module: str
    target: str

    def of(self, *packages: str) -> bool:
        return any(f"{self.target}.".startswith(f"{package}.") for package in packages)

    def by(self, *packages: str) -> bool:
        return any(f"{self.module}.".startswith(f"{package}.") for package in packages)


def imports(source: str, module: str, *, is_package: bool = False) -> Iterator[Import]:
    """Every import of `source`, wherever it stands, relative ones resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")
            kept = len(parents) - node.level + is_package
            base = parents[:kept] if node.level else []
            for alias in node.names:
                yield Import(module, ".".join([*base, *filter(None, [node.module]), alias.name]))


def reads_environment(source: str) -> bool:
    """True if `os.environ`, `os.getenv` or one of their kin is named in `source`."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in names:
            return True
        if isinstance(node, ast.ImportFrom) and names & {alias.name for alias in node.names}:
            return True
    return False


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(PACKAGE.rglob("*.py"))
ALL = [
    found
    for path in FILES
    for found in imports(
        path.read_text(encoding="utf-8"),
        module_name(path),
        is_package=path.name == "__init__.py",
    )
]


def from_layer(layer: str) -> list[Import]:
    found = [item for item in ALL if item.by(f"s2l_ray.{layer}")]
    assert found, f"no imports in s2l_ray.{layer}: has it moved?"
    return found


def test_maths_knows_numpy_numba_and_torch_and_nothing_else():
    allowed = ("numpy", "numba", "torch", "s2l_ray.maths", "s2l_ray.errors")

    strangers = [
        item
        for item in from_layer("maths")
        if not item.of(*allowed) and item.target.split(".")[0] not in sys.stdlib_module_names
    ]

    assert strangers == []


def test_maths_touches_neither_files_nor_environment():
    assert [item for item in from_layer("maths") if item.of(*FILES_AND_ENVIRONMENT)] == []


def test_modelling_knows_neither_ray_nor_anything_above_it():
    above = ("cli", "pipeline", "resources", "runtime", "artifacts", "stages", "report")

    upward = [
        item
        for item in from_layer("modelling")
        if item.of("ray", *(f"s2l_ray.{name}" for name in above))
    ]

    assert upward == []


def test_stages_do_not_import_each_other_or_the_pipeline():
    above = ("s2l_ray.stages", "s2l_ray.pipeline", "s2l_ray.cli")

    assert [item for item in from_layer("stages") if item.of(*above)] == []


def test_the_report_draws_and_does_nothing_else():
    forbidden = ("ray", "torch", "transformers", "s2l_ray.stages", "s2l_ray.modelling")

    assert [item for item in from_layer("report") if item.of(*forbidden)] == []


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        (
            "ray",
            (
                "s2l_ray.stages",
                "s2l_ray.resources",
                "s2l_ray.runtime",
                "s2l_ray.trainer",
                "s2l_ray.fleet",
                "s2l_ray.spare",
            ),
        ),
        ("deepspeed", ("s2l_ray.modelling.zero",)),
        ("transformers", ("s2l_ray.modelling",)),
        ("matplotlib", ("s2l_ray.report",)),
    ],
)
def test_a_library_is_imported_only_where_it_belongs(library, homes):
    assert [item for item in ALL if item.of(library) and not item.by(*homes)] == []


def test_only_runtime_reads_the_environment():
    readers = [
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if reads_environment(path.read_text(encoding="utf-8"))
    ]

    assert [name for name in readers if name != "runtime.py"] == []


def test_nothing_unpickles():
    assert [item for item in ALL if item.of("pickle", "cloudpickle", "dill", "joblib")] == []


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("import ray.data", "ray.data"),
        ("from s2l_ray.stages import prepare", "s2l_ray.stages.prepare"),
        ("from . import prepare", "s2l_ray.stages.prepare"),
        ("from .prepare import run", "s2l_ray.stages.prepare.run"),
        ("from ..modelling import zero", "s2l_ray.modelling.zero"),
        ("def f():\n    from deepspeed import zero", "deepspeed.zero"),
    ],
)
def test_every_form_of_import_is_seen(source, target):
    assert list(imports(source, "s2l_ray.stages.target")) == [
        Import("s2l_ray.stages.target", target)
    ]


def test_a_relative_import_of_a_package_starts_at_the_package():
    assert list(imports("from .page import render", "s2l_ray.report", is_package=True)) == [
        Import("s2l_ray.report", "s2l_ray.report.page.render")
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import os\nos.environ['A']", True),
        ("import os as o\nx = o.getenv('A')", True),
        ("from os import environ as e", True),
        ("import os\nos.replace('a', 'b')", False),
    ],
)
def test_every_read_of_the_environment_is_seen(source, expected):
    assert reads_environment(source) == expected
