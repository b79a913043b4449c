"""The distribution: its dependencies are what the code imports, and its wheel works alone."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = {
    "reasoning-gym": "demo",
    "gguf": "gguf",
    "peft": "lora",
    "bert-score": "bertscore",
    "tensorboardx": "tensorboard",
    "wandb": "wandb",
    "mlflow-skinny": "mlflow",
    "trackio": "trackio",
}


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def required(requirements):
    return {normalised(re.match(r"[\w.-]+", line)[0]) for line in requirements}


@cache
def imported():
    """The distributions that a file of the package imports, inside functions or at its top."""
    modules = set()
    for path in (ROOT / "s2l_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module.partition(".")[0])
    owners = packages_distributions()
    theirs = modules - set(sys.stdlib_module_names) - {"s2l_ray"}
    # Extras that are too large to be installed for tests.
    absent = {"mlflow": ["mlflow-skinny"], "wandb": ["wandb"], "trackio": ["trackio"]}
    return {normalised({**absent, **owners}[module][0]) for module in theirs}


def test_every_import_is_a_dependency_or_belongs_to_an_extra():
    assert imported() - required(PROJECT["dependencies"]) == set(OPTIONAL)


def test_every_optional_import_is_in_its_extra():
    extras = PROJECT["optional-dependencies"]
    assert {
        name: extra for name, extra in OPTIONAL.items() if name in required(extras[extra])
    } == OPTIONAL


def test_every_dependency_has_an_exact_version_in_the_constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normalised(line.partition("==")[0]) for line in lines if "==" in line}
    wanted = required(PROJECT["dependencies"])
    for requirements in PROJECT["optional-dependencies"].values():
        wanted |= required(requirements)
    assert wanted - pinned - {"s2l-ray"} == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the source distribution, built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    copy = folder / "checkout"
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "s2l_ray", copy / "s2l_ray", ignore=leave)
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, copy, cwd=folder)
    (path,) = folder.glob("*.whl")
    assert len(list(folder.glob("*.tar.gz"))) == 1
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of programs of a new environment: our wheel, and the libraries of this one."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False)
    programs = environment / "bin"
    run(sys.executable, "-m", "pip", "--python", programs / "python", "install", "-q",
        "--no-deps", "--no-index", wheel, cwd=environment)  # fmt: skip
    (packages,) = environment.glob("lib/python3*/site-packages")
    # A line adds a path, but no .pth of that path is read: our own editable install is not seen.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return programs


def run(*command, cwd):
    """Output of a command that knows nothing of the checkout."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.cluster
def test_the_wheel_has_what_the_demo_and_the_report_need_and_no_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "s2l_ray").rglob("*.*")}
    wanted = {
        name
        for name in files
        if Path(name).suffix in {".py", ".yaml", ".html", ".css", ".js", ".typed"}
    }
    assert {"s2l_ray/demo.yaml", "s2l_ray/report/page.html", "s2l_ray/py.typed"} <= wanted
    assert {name for name in names if ".dist-info/" not in name} == wanted


@pytest.mark.cluster
def test_the_installed_program_plans_the_demo_from_any_directory(installed, tmp_path):
    origin = run(
        installed / "python", "-c", "import s2l_ray; print(s2l_ray.__file__)", cwd=tmp_path
    )
    assert Path(origin).is_relative_to(installed.parent)
    assert run(installed / "s2l", "--version", cwd=tmp_path).startswith("s2l_ray ")

    code = "from pathlib import Path; from s2l_ray import demo; "
    code += "print(demo.write_inputs(Path('runs/demo')))"
    path = run(installed / "python", "-c", code, cwd=tmp_path).strip()
    assert Path(path).is_relative_to(installed.parent)
    lines = run(installed / "s2l", "plan", path, "--tflops", "1", cwd=tmp_path)
    assert "strata          24" in lines
