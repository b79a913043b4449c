"""What `import s2l_ray` gives, and what it costs."""

import ast
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


def test_a_type_checker_sees_every_exported_name():
    """What is imported for it under TYPE_CHECKING is what is imported at first use."""
    tree = ast.parse(Path(s2l.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname: (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    used = {name: (getattr(s2l, name).__module__, name) for name in s2l.__all__}
    assert seen == used
