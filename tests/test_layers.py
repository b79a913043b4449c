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


def folder_of(name: str) -> str:
    """The folder of `s2l_ray` that holds a module, or the module where it lies beside them."""
    return name.split(".")[1] if name.startswith("s2l_ray.") else ""


PURE = [
    "hashing",
    "config.budgets",
    "models.flops",
    "models.losses",
    "clusters.kmeans",
    "clusters.kmeans_plus_plus",
    "clusters.kernels",
    "clusters.minibatch",
    "clusters.sampling",
    "clusters.fixed_point",
    "clusters.scaling",
    "clusters.num_clusters",
    "clusters.quality",
    "clusters.drift",
    "clusters.compilation",
    "selection.methods",
    "selection.water_filling",
    "selection.cells",
    "selection.facility_location",
    "selection.rds",
    "selection.similarity",
    "selection.summaries",
    "evaluation.answers",
    "evaluation.intervals",
]
"""Mathematics: arrays in, arrays out."""


@pytest.mark.parametrize("name", PURE)
def test_mathematics_touches_neither_ray_nor_files_nor_the_environment(name):
    module = f"s2l_ray.{name}"
    path = ROOT / f"{module.replace('.', '/')}.py"
    ours = [f"s2l_ray.{pure}" for pure in PURE] + ["s2l_ray.errors"]
    allowed = ("numpy", "numba", "torch", "sklearn", "scipy", *ours)
    found = list(imports(path.read_text(encoding="utf-8"), module))

    strangers = [
        item
        for item in found
        if not item.of(*allowed) and item.target.split(".")[0] not in sys.stdlib_module_names
    ]

    assert strangers == []
    assert [item for item in found if item.of(*FILES_AND_ENVIRONMENT)] == []


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("ray", ("s2l_ray.distributed", "s2l_ray.training.ray_train")),
        ("deepspeed", ("s2l_ray.training.zero",)),
        ("matplotlib", ("s2l_ray.report",)),
    ],
)
def test_a_library_is_imported_only_where_it_belongs(library, homes):
    assert [item for item in ALL if item.of(library) and not item.by(*homes)] == []


def test_only_the_session_reads_the_environment():
    readers = [
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if reads_environment(path.read_text(encoding="utf-8"))
    ]

    assert readers == ["distributed/session.py"]


def test_nothing_unpickles():
    assert [item for item in ALL if item.of("pickle", "cloudpickle", "dill", "joblib")] == []


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("import ray.data", "ray.data"),
        ("from s2l_ray.data import prepare", "s2l_ray.data.prepare"),
        ("from . import zero", "s2l_ray.training.zero"),
        ("from .zero import ZeroEngine", "s2l_ray.training.zero.ZeroEngine"),
        ("from ..models import scoring", "s2l_ray.models.scoring"),
        ("def f():\n    from deepspeed import zero", "deepspeed.zero"),
    ],
)
def test_every_form_of_import_is_seen(source, target):
    assert list(imports(source, "s2l_ray.training.target")) == [
        Import("s2l_ray.training.target", target)
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
