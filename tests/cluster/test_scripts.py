"""The Dockerfile, scripts and all files of cluster/: what linters and a search for secrets find."""

import json
import re
import subprocess

import pytest

from tests.cluster.manifests import CLUSTER, tool

FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())


def test_hadolint_has_nothing_to_say_of_the_dockerfile():
    done = subprocess.run(
        [tool("hadolint"), "--format", "json", str(CLUSTER / "Dockerfile")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == []
    assert done.returncode == 0


def test_a_dockerfile_that_ends_as_root_would_be_found():
    done = subprocess.run(
        [tool("hadolint"), "--format", "json", "-"],
        input="FROM rayproject/ray\nUSER root\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert {"DL3002", "DL3006"} <= {found["code"] for found in json.loads(done.stdout)}


SCRIPTS = [path for path in FILES if path.read_text(encoding="utf-8").startswith("#!")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_shellcheck_has_nothing_to_say(path):
    subprocess.run([tool("bash"), "-n", str(path)], check=True, timeout=60)
    done = subprocess.run(
        [tool("shellcheck"), str(path)], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("", 0)


def test_there_is_a_script_to_check():
    assert [path.name for path in SCRIPTS] == ["slurm.sbatch"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_no_secret_is_in_a_file(path):
    pattern = r"AUTH_TOKEN=\w|AKIA[A-Z0-9]|SECRET_ACCESS|PASSWORD|hf_[A-Za-z0-9]{8}|PRIVATE KEY"
    assert not re.search(pattern, path.read_text(encoding="utf-8"))
