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


PURE = [
    "blake2b",
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
    "compilation",
    "selection.examples",
    "selection.methods",
    "selection.rankings",
    "selection.water_filling",
    "selection.cells",
    "selection.facility_location",
    "selection.rds",
    "selection.similarity",
    "selection.summaries",
    "evaluation.answers",
    "evaluation.choices",
    "evaluation.final_answers",
    "evaluation.formulas",
    "evaluation.latex",
    "evaluation.number_words",
    "evaluation.program_texts",
    "evaluation.quantities",
    "evaluation.several",
    "evaluation.texts",
    "comparison.statistics",
    "intervals",
]
"""Mathematics: arrays in, arrays out."""


@pytest.mark.parametrize("name", PURE)
def test_mathematics_touches_neither_ray_nor_files_nor_the_environment(name):
    module = f"s2l_ray.{name}"
    path = ROOT / f"{module.replace('.', '/')}.py"
    ours = [f"s2l_ray.{pure}" for pure in PURE] + ["s2l_ray.errors"]
    allowed = ("numpy", "numba", "torch", "sklearn", "scipy", "sympy", "math_verify", *ours)
    found = list(imports(path.read_text(encoding="utf-8"), module))

    strangers = [
        item
        for item in found
        if not item.of(*allowed) and item.target.split(".")[0] not in sys.stdlib_module_names
    ]

    assert strangers == []
    assert [item for item in found if item.of(*FILES_AND_ENVIRONMENT)] == []


LOWEST = ("errors", "events", "progress", "display", "background", "collector", "compilation")
LOWEST += ("blake2b", "hashing", "interrupts", "intervals", "notation", "version")
"""Modules that every folder may import, and that import nothing of ours but each other."""
RAY_IN_TRAINING = [f"s2l_ray.training.{name}" for name in ("ray_train", "board", "interruption")]
FOLDERS = {  # folder: (folders that it may import, libraries that it never imports)
    "storage": ("", "ray torch transformers deepspeed datasets vl_convert"),
    "config": ("storage", "ray torch transformers deepspeed datasets vl_convert"),
    "models": ("storage config", "ray deepspeed datasets vl_convert"),
    "artifacts": ("storage config models", "ray torch transformers deepspeed datasets vl_convert"),
    "monitoring": ("storage config", "ray torch transformers deepspeed datasets vl_convert"),
    "distributed": ("storage config artifacts", "torch transformers deepspeed vl_convert"),
    "data": ("storage config models artifacts distributed", "ray torch deepspeed vl_convert"),
    "training": ("storage config models artifacts distributed data", "datasets vl_convert"),
    "trajectories": (
        "storage config models artifacts distributed data training",
        "ray deepspeed datasets vl_convert",
    ),
    "clusters": (
        "storage config artifacts distributed trajectories",
        "ray torch transformers deepspeed datasets vl_convert",
    ),
    "selection": (
        "storage config artifacts distributed data trajectories clusters",
        "ray torch transformers deepspeed datasets vl_convert",
    ),
    "evaluation": (
        "storage config models artifacts distributed data training",
        "ray deepspeed datasets vl_convert",
    ),
    "report": (
        "storage config artifacts data training trajectories clusters selection evaluation",
        "ray torch transformers deepspeed datasets",
    ),
    "stages": (
        "artifacts data training trajectories clusters selection evaluation report",
        "ray torch transformers deepspeed datasets vl_convert",
    ),
    "pipeline": (
        "storage config artifacts monitoring distributed data trajectories clusters selection "
        "report stages",
        "ray torch transformers deepspeed vl_convert",
    ),
    "comparison": (
        "storage config models artifacts monitoring distributed data training trajectories "
        "clusters selection evaluation stages pipeline",
        "ray deepspeed datasets vl_convert",
    ),
    "export": (
        "storage config artifacts data",
        "ray torch transformers deepspeed datasets vl_convert",
    ),
    "extend": (
        "storage config artifacts monitoring distributed data training trajectories clusters "
        "selection stages pipeline",
        "ray torch transformers deepspeed datasets vl_convert",
    ),
    "estimate": (
        "storage config models artifacts distributed data training trajectories clusters "
        "selection evaluation stages pipeline comparison",
        "ray deepspeed datasets vl_convert",
    ),
}


def folder_of(name: str) -> str:
    """The folder of `s2l_ray` that a dotted name is in, or the module that is in none."""
    return f"{name}.".split(".")[1]


@pytest.mark.parametrize("folder", FOLDERS)
def test_arrows_between_folders_go_one_way(folder):
    allowed = {folder, *FOLDERS[folder][0].split(), *LOWEST}
    ours = [item for item in ALL if item.by(f"s2l_ray.{folder}") and item.of("s2l_ray")]
    assert ours, f"no imports in s2l_ray.{folder}: has it moved?"

    assert [item for item in ours if folder_of(item.target) not in allowed] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_folder_imports_what_it_should_not_know(folder):
    never = FOLDERS[folder][1].split()

    assert [item for item in ALL if item.by(f"s2l_ray.{folder}") and item.of(*never)] == []


def test_every_folder_has_its_row():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}

    assert folders == set(FOLDERS) - {"stages"}


def test_a_folder_may_import_only_earlier_ones():
    names = list(FOLDERS)
    for number, (allowed, _) in enumerate(FOLDERS.values()):
        assert set(allowed.split()) <= set(names[:number])


def test_the_lowest_modules_import_only_each_other():
    own = [item for item in ALL if item.of("s2l_ray") and folder_of(item.module) in LOWEST]

    assert [item for item in own if folder_of(item.target) not in LOWEST] == []


def test_no_module_imports_one_that_imports_it():
    """Not through others either, nor through imports inside functions."""
    modules = {module_name(path) for path in FILES}
    targets: dict[str, set[str]] = {module: set() for module in modules}
    for item in ALL:
        parent = item.target.rpartition(".")[0]
        found = {item.target, parent} & modules
        targets[item.module] |= {max(found, key=len)} if found else set()
    reached = {module: set(direct) for module, direct in targets.items()}
    for _ in modules:
        for module, known in reached.items():
            reached[module] = known.union(*(targets[other] for other in known))

    assert [module for module, known in reached.items() if module in known] == []


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("ray", ("s2l_ray.distributed", *RAY_IN_TRAINING)),
        ("deepspeed", ("s2l_ray.training.zero",)),
        ("vl_convert", ("s2l_ray.report.vega",)),
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
