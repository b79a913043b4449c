"""What the README shows is short, and works."""

import re
from pathlib import Path

import pytest

from s2l_ray.config import load
from s2l_ray.selection.methods import METHODS, WITHIN
from tests import handmade, shown

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short():
    assert len(README) <= 8_000


def test_it_shows_commands():
    names = {command.split()[1] for command in shown.commands(README)}
    assert names >= {"plan", "run", "select", "extend"}


@pytest.mark.parametrize("command", shown.commands(README))
def test_every_command_parses(command):
    assert shown.complaint(command) == ""


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert targets
    assert [target for target in targets if f"\n{target}:" not in makefile] == []


@pytest.mark.parametrize("text", shown.blocks(README, "yaml"))
def test_every_configuration_loads(text, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    assert load.load(path).run_dir == "runs/mine"


def test_the_example_in_python_runs(tmp_path, monkeypatch):
    (code,) = shown.blocks(README, "python")
    handmade.finish(handmade.inputs(tmp_path) | {"run_dir": str(tmp_path / "runs" / "mine")})
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code.replace("1000", "10"), names)  # noqa: S102

    assert len(Path("subset.jsonl").read_text().splitlines()) == 10
    assert sorted(names["order"].tolist()) == list(range(handmade.NUM_ROWS))
    assert names["labels"].tolist() == [0] * handmade.NUM_ROWS  # one for every 25 rows


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_relative_link_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    broken = [link for link in links if not link.startswith("http") and not leads(text, link)]
    assert broken == []


def leads(text, link):
    path, _, anchor = link.partition("#")
    file = ROOT / path
    target = file.read_text(encoding="utf-8") if path and file.is_file() else text
    slugs = {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", target, re.MULTILINE)
    }
    return file.exists() and (not anchor or anchor in slugs)


def test_every_method_has_its_row_in_the_methods():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert [name for name in METHODS if f"\n| `{name}` | " not in text] == []
    assert [name for name in WITHIN if f"`{name}`" not in text] == []
