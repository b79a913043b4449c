"""The documentation: a site without warnings, complete references, examples that work."""

import importlib.util
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from s2l_ray.config import keys, load, sections
from s2l_ray.config.section import Section
from tests import shown

pytest.importorskip("mkdocs", reason="needs pip install 's2l-ray[docs]'")

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text("utf-8") for path in DOCS.rglob("*.md")}


def script(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def reference():
    return script("reference")


def build(folder, site):
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=folder,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )


def test_the_site_builds_without_a_warning(tmp_path):
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    for page in ("index.html", "configuration/index.html", "commands/index.html"):
        assert (tmp_path / page).exists()
    assert "float32 (N, T)" in (tmp_path / "python" / "index.html").read_text("utf-8")
    pages = [path.read_text("utf-8") for path in tmp_path.rglob("index.html")]
    assert [page for page in pages if "&lt;!-- " in page or "<!-- tables" in page] == []


def test_a_broken_link_fails(tmp_path):
    shutil.copytree(DOCS, tmp_path / "docs")
    (tmp_path / "s2l_ray").symlink_to(ROOT / "s2l_ray")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs" / "glossary.md").open("a") as page:
        page.write("\n[nowhere](methods.md#no-such-heading)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    assert "no-such-heading" in done.stderr


def sections_below(section):
    """A section of the run file and all that it can contain."""
    yield section
    for field in section.model_fields.values():
        for item in keys.alternatives(field.annotation):
            if isinstance(item, type) and issubclass(item, Section):
                yield from sections_below(item)


def test_every_key_is_described():
    text = reference().configuration()
    for section in sections_below(sections.RunConfig):
        assert section.__doc__
        if keys.has_keys_of_its_own(section):
            assert [key for key in section.model_fields if f"| `{key}` |" not in text] == []


def test_keys_that_do_not_change_the_result_are_marked():
    lines = reference().configuration().splitlines()
    (line,) = [line for line in lines if line.startswith("| `resume_every`")][:1]
    assert line.split("|")[4].strip() == "no"
    (line,) = [line for line in lines if line.startswith("| `num_clusters`")]
    assert line.split("|")[4].strip() == ""


def test_every_command_is_described():
    text = reference().commands()
    for name in ("demo", "keys", "plan", "run", "compare", "select", "export", "extend", "report"):
        assert f"\n## s2l {name}\n" in text
    assert "--update-centroids" in text


def test_a_declaration_is_shown_as_it_is():
    assert reference().declaration().startswith("```python\nEVALUATION = Stage(\n")
    assert reference().DECLARATION in PAGES["architecture.md"]


def test_the_picture_is_what_its_script_draws():
    assert script("picture").drawing() == (DOCS / "picture.svg").read_text("utf-8")


def commands_on_pages():
    return sorted({(page, item) for page, text in PAGES.items() for item in shown.commands(text)})


@pytest.mark.parametrize(("page", "command"), commands_on_pages())
def test_every_command_on_a_page_parses(page, command):
    assert shown.complaint(command) == ""


def configurations():
    return [(page, block) for page, text in PAGES.items() for block in shown.blocks(text, "yaml")]


@pytest.mark.parametrize(("page", "block"), configurations())
def test_every_configuration_on_a_page_fits(page, block):
    """A block that shows some sections is tried within the tutorial's configuration."""
    tree = load.parse_yaml(block, page)
    if "run_dir" not in tree:
        (first, *_) = shown.blocks(PAGES["tutorials/own-data.md"], "yaml")
        whole = load.parse_yaml(first, page)
        tree = whole | {key: whole.get(key, {}) | section for key, section in tree.items()}
    load.from_tree(tree, page)
