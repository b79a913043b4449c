"""A run of tests, seen from outside: lines of files, and stacks of a test over its limit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONS = ["-q", "-c", os.devnull, "-o", "console_output_style=classic", "--dist=loadfile"]
TESTS = """
import subprocess
import sys
import pytest

@pytest.mark.timeout(5)
def test_waits_for_another_process():
    code = "import threading\\ndef waits():\\n    threading.Event().wait()\\nwaits()"
    subprocess.run([sys.executable, "-c", code], capture_output=True)

@pytest.mark.parametrize("number", [1, 2])
def test_passes(number):
    pass

@pytest.mark.skip
def test_is_skipped():
    pass
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_files_have_a_line_each_and_a_test_over_its_limit_shows_stacks(tmp_path, workers):
    (tmp_path / "test_few.py").write_text(TESTS)
    (tmp_path / "test_one.py").write_text("def test_fails():\n    assert 1 == 2")
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["tests.reporting"]')
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, f"-n{workers}", tmp_path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    line = r"^ +\d+\.\d s  .*test_few\.py  1 failed, 2 passed, 1 skipped$"
    assert re.search(line, done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^ +\d+\.\d s  .*test_one\.py  1 failed$", done.stdout, re.MULTILINE)
    assert "test_few.py::test_waits_for_another_process (call)" in done.stdout
    assert "Timeout (>5.0s)" in done.stdout
    _, _, stacks = done.stdout.partition("processes under this one:")
    assert re.search(r"^\d+: .*python.* -c import threading", stacks, re.MULTILINE)
    assert 'File "<string>", line 3 in waits' in stacks
