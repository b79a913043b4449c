"""What `import s2l_ray` gives, and what it costs."""

import subprocess
import sys
from pathlib import Path

import pytest

import s2l_ray as s2l


def test_an_import_takes_nothing_heavy():
    code = "import sys, s2l_ray; print(*sorted(name.partition('.')[0] for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "numpy", "pyarrow", "pydantic"} & set(done.stdout.split())


@pytest.mark.parametrize("name", s2l.__all__)
def test_every_exported_name_is_documented(name):
    assert getattr(s2l, name).__doc__
    assert name in dir(s2l)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 's2l_ray' has no attribute 'runn'"):
        s2l.runn  # noqa: B018


def test_the_package_says_that_it_is_typed():
    assert (Path(s2l.__file__).parent / "py.typed").exists()


def test_a_type_checker_sees_the_exported_functions(tmp_path):
    """mypy knows what `s2l.load(...).select(...).ids` is."""
    (tmp_path / "user.py").write_text(
        "import s2l_ray as s2l\n"
        "ids: list[str] = s2l.load('runs/x').select(5).ids\n"
        "labels: int = s2l.cluster(s2l.load('x').trajectories().to_numpy()).labels\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file=",
            "--ignore-missing-imports",
            "--follow-imports=silent",
            "--disable-error-code=import-untyped",
            str(tmp_path / "user.py"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "user.py:3: error" in done.stdout and "user.py:2" not in done.stdout
