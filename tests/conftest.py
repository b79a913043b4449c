"""One Ray for all tests that need it, the program as a process of its own, and an object store."""

import fcntl
import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, settings

from tests import small_extension, small_run
from tests.program import called

pytest_plugins = ["tests.reporting"]

ROOT = Path(__file__).parent.parent

# The same examples on every machine, however slow; `pytest --hypothesis-profile=default` looks for
# new ones.
settings.register_profile(
    "fixed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fixed")

# Ray lets all others go before its workers; a test run beside another program would hardly move.
os.environ.setdefault("RAY_worker_niceness", "0")
# Nobody takes the tests' node away: no training needs a process that watches for that.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")

SECONDS_PER_DAY = 86_400
SECONDS = {"cluster": 900, "ray": 600}
"""How long a test of a kind may take; a limit of its own comes before it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        kinds = [kind for kind in SECONDS if item.get_closest_marker(kind)]
        if not kinds and "ray_cluster" in getattr(item, "fixturenames", ()):
            raise pytest.UsageError(f"{item.nodeid} takes the tests' Ray: mark it `ray`")
        if kinds and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SECONDS[kinds[0]]))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with two CPUs; started by the first test that asks for it."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def _joined() -> dict[str, str]:
    """Today's environment, and in it the way to the tests' Ray and to the package."""
    import ray

    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "PYTHONPATH": os.pathsep.join(paths),
    }


@pytest.fixture
def s2l_environment(ray_cluster) -> dict[str, str]:
    """The environment of a process that joins the tests' Ray; for tests that use Popen."""
    return _joined()


@pytest.fixture(scope="session")
def s2l(ray_cluster) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`s2l("run", path, ...)`: the program, called in this process, which has joined a Ray.

    What it prints and its exit code are those of a process of its own. Its workers are those that
    the calls before it left.
    """

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", _joined()["RAY_ADDRESS"])
            return called(*arguments)

    return call


@pytest.fixture(scope="session")
def s2l_process(ray_cluster) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`s2l` in a process of its own, for what a test says of processes."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "s2l_ray", *map(str, arguments)],
            env=_joined(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    return call


def _made_once(parent: Path, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` has filled, once for all who ask; nobody writes into it."""
    folder = parent / f"{name}-of-all"
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = Path(f"{folder}.made")
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def of_code(tmp_path_factory) -> Path:
    """A folder of all sessions of tests of the same code, on the same machine, for a day.

    Finished runs take minutes. `make test-cluster` finds those of `make test` here.
    """
    digest = hashlib.sha256(repr((platform.uname(), sys.version)).encode())
    files = [ROOT / "constraints.txt", ROOT / "pyproject.toml"]
    files += [file for part in ("s2l_ray", "tests") for file in (ROOT / part).rglob("*.*")]
    for file in sorted(files):
        if "__pycache__" not in file.parts:
            digest.update(f"{file} {hashlib.sha256(file.read_bytes()).hexdigest()} ".encode())
    own = tmp_path_factory.getbasetemp()
    of_session = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = of_session.parent / "finished-runs" / digest.hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    folder.touch()  # in use
    for other in folder.parent.iterdir():
        if time.time() - other.stat().st_mtime > SECONDS_PER_DAY:
            shutil.rmtree(other, ignore_errors=True)
    return folder


@pytest.fixture(scope="session")
def config(of_code, tmp_path_factory) -> Path:
    """The configuration of a small run of all stages; its inputs are those of all workers."""
    inputs = _made_once(of_code, "end-to-end", small_run.write_inputs)
    place = Path(shutil.copytree(inputs, tmp_path_factory.getbasetemp() / "end-to-end"))
    tree = yaml.safe_load((place / "run.yaml").read_text())
    (place / "run.yaml").write_text(yaml.safe_dump(tree | {"run_dir": str(place / "run")}))
    return place / "run.yaml"


@pytest.fixture(scope="session")
def finished(config, s2l_process, of_code) -> Path:
    """The folder of that run, finished by the program in a process of its own."""

    def finish(place: Path) -> None:
        done = s2l_process("run", config, *small_run.sets(run_dir=place / "run"))
        assert done.returncode == 0, done.stdout + done.stderr
        # What the run says of itself at its end.
        assert f"report    {place}/run/report/index.html" in done.stdout

    place = _made_once(of_code, "finished", finish)
    return Path(shutil.copytree(place / "run", config.parent / "run"))


@pytest.fixture(scope="session")
def new_data(of_code) -> str:
    """Rows for an extension of that run, some of which it has."""
    return str(_made_once(of_code, "new", small_extension.write_data) / "new.jsonl")


@pytest.fixture(scope="session")
def extended(finished, new_data, s2l, of_code, tmp_path_factory) -> Path:
    """A copy of that run with these rows; tests that change it copy it again."""

    def extend(place: Path) -> None:
        small_extension.extended_copy(finished, new_data, s2l, place)

    place = _made_once(of_code, "extended", extend)
    return Path(shutil.copytree(place / "run", tmp_path_factory.mktemp("extended") / "run"))


@pytest.fixture
def copied(finished, tmp_path) -> Callable[..., Path]:
    """`copied("prepared", ...)`: another run with these finished stages; without names, all."""

    def copy(*stages: str) -> Path:
        if not stages:
            return Path(shutil.copytree(finished, tmp_path / "run"))
        for stage in stages:
            shutil.copytree(finished / stage, tmp_path / "run" / stage)
        shutil.copy(finished / "run.json", tmp_path / "run")
        return tmp_path / "run"

    return copy


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server on a free port of this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(s2l_environment, s3_bucket) -> dict[str, str]:
    """Joins the tests' Ray, its workers given the way to the object store, as a job's are."""
    store = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    job = {"runtime_env": {"env_vars": store}}
    return s2l_environment | store | {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}


@pytest.fixture
def s3_bucket(s3_endpoint, monkeypatch) -> str:
    """`s3://BUCKET/PREFIX` in a new bucket, which this test's environment leads to."""
    import boto3

    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": s3_endpoint,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/prefix"
