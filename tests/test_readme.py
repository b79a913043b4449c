"""What the README lists is what there is."""

import re
from pathlib import Path

import numpy as np
import pytest

from s2l_ray.config import sections
from s2l_ray.selection.methods import METHODS, WITHIN

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTIONS = {
    "data": sections.DataConfig,
    "data.fields": sections.FieldNames,
    "reference": sections.ReferenceConfig,
    "trajectories": sections.TrajectoriesConfig,
    "clusters": sections.ClustersConfig,
    "selection": sections.SelectionConfig,
    "target": sections.TargetConfig,
    "target.lora": sections.LoraConfig,
    "evaluation": sections.EvaluationConfig,
}


@pytest.mark.parametrize(("name", "section"), SECTIONS.items())
def test_every_key_is_in_the_table_of_the_configuration(name, section):
    shared = (
        set(sections.Training.model_fields) if issubclass(section, sections.Training) else set()
    )
    keys = [f"*.{key}" if key in shared else f"{name}.{key}" for key in section.model_fields]
    missing = [key for key in keys if f"| `{key}`" not in README and key != "data.fields"]
    assert missing == []


def test_the_example_in_python_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    rng = np.random.default_rng(0)
    ids = [f"example-{number}" for number in range(300)]
    found = {"losses": rng.random((300, 4)), "ids": ids, "strata": rng.integers(0, 3, 300)}
    exec(code, found)  # noqa: S102

    assert sorted(found["order"].tolist()) == list(range(300))


def test_every_method_has_its_row_in_the_methods():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert [name for name in METHODS if f"\n| `{name}` | " not in text] == []
    assert [name for name in WITHIN if f"`{name}`" not in text] == []


def test_every_source_file_has_its_line():
    package = ROOT / "s2l_ray"
    files = [path.relative_to(package) for path in package.rglob("*.py")]
    listed = [path for path in files if f"| `{path}` |" in README]
    assert sorted(set(files) - set(listed)) == sorted(
        path for path in files if path.name == "__init__.py"
    )
