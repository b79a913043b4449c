"""Commands called in this process, in a directory of their own, up to where Ray would start."""

import json
import re
from pathlib import Path

import yaml

from s2l_ray import cli

STAGE_SECTIONS = {
    "reference": {"model": "small", "checkpoints": 3},
    "trajectories": {},
    "clusters": {},
    "selection": {"budget": 0.5},
    "target": {"model": "large"},
    "evaluation": {"sets": ["held"]},
}


def working_directory(tmp_path, monkeypatch):
    """The working directory: a pool, a held-out set, a file of neither kind; no cluster to join."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    rows = [{"instruction": f"add {i}", "output": f"{i}", "id": f"e{i}"} for i in range(3)]
    for name in ("train.jsonl", "held.jsonl"):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("notes.txt").write_text("no rows")
    Path("empty").mkdir()
    tree = {
        "run_dir": str(tmp_path / "out"),
        "data": {
            "train": [str(tmp_path / "train.jsonl")],
            "eval": {"held": str(tmp_path / "held.jsonl")},
        },
        **STAGE_SECTIONS,
    }
    Path("run.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


def refused(capsys, *arguments):
    """The one message with which the program refused `arguments`, before Ray was started."""
    code = cli.main(arguments)
    shown = capsys.readouterr()
    assert code == 2
    assert "starting Ray" not in shown.out and "Traceback" not in shown.err
    message = re.sub(r"\Ausage: .*\n( .*\n)*", "", shown.err)
    assert re.match(r"s2l( \w+)?: ", message) and len(re.findall(r"^s2l", message, re.M)) == 1
    return message


def tree_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
