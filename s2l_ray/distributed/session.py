"""The environment and the connection to Ray: the one module that reads environment variables."""

import contextlib
import logging
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from s2l_ray.distributed import failures, preconditions
from s2l_ray.errors import ConfigError, one_line

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
"""Set to the configured number of threads on every machine: the last bits of sums depend on it.

Rayon is what tokenizers compute with: a worker of one CPU would take all of the machine's.
"""


_started_here = False
"""Whether the Ray that this process is connected to was started by `cluster`."""


def is_shared() -> bool:
    """Tell whether this process is connected to a Ray that was not started for its own work."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and not _started_here


def joins_cluster(address: str | None) -> bool:
    """Return True to join a running cluster, False to start Ray on this machine.

    A cluster is joined when `address` is given or RAY_ADDRESS is set.
    """
    return address is not None or bool(os.environ.get("RAY_ADDRESS"))


def secrets() -> list[str]:
    """Return the values of environment variables that are named like secrets."""
    named = re.compile(
        "TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|STORAGE_KEY|ACCOUNT_KEY"
        "|PRIVATE_KEY|CONNECTION_STRING",
        re.IGNORECASE,
    )
    found = [value for name, value in os.environ.items() if named.search(name)]
    for value in os.environ.values():
        if "://" in value and "@" in value:  # https://user:password@host
            found.append(value.partition("://")[2].rpartition("@")[0].partition(":")[2])
    return [value for value in found if len(value) >= 8]


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connect to Ray for the length of the block.

    A Ray that was started here ends with the block. A cluster that was joined goes on running.

    A connection that this process has already, as a notebook may, is used and left as it is. One
    that a thread of Ray Data still needs is left to the end of the process, which then must not
    wait for that thread: see `executions.hang`.

    Raises:
        ConfigError: there is no cluster at `address`, or the connection is to another one; or the
            temporary folder of its Ray is full on this machine.
    """
    global _started_here
    import ray  # takes a second, which a command with nothing to do should not spend

    joined = joins_cluster(address)
    set_defaults(joined=joined)
    if ray.is_initialized():
        _check_connected(address)
        _quieten_ray_data()
        yield
        return
    with _own_sigterm():
        _join(address or os.environ["RAY_ADDRESS"]) if joined else _start()
    from s2l_ray.distributed import executions  # loads Ray Data, with what was set above

    _quieten_ray_data()
    _started_here = not joined
    try:
        with failures.ran_out_explained(), _without_preemption(joined=joined):
            if joined and (folder := failures.temporary_folder()) is not None:
                preconditions.check_space(folder)
            yield
    finally:
        _started_here = False
        if not executions.hang():
            ray.shutdown()


def set_defaults(*, joined: bool) -> None:
    """Set what Ray reads from the environment, where the user has not."""
    # Ray's C++ core prints internal notes to the terminal at any level below this one.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Ray Train accepts one saved state each time it polls its workers. Its own interval of 2 s
    # would delay the end of a training.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if not joined:
        # Ray lets all other programs go before its workers: beside one, a run would hardly move.
        os.environ.setdefault("RAY_worker_niceness", "0")


@contextlib.contextmanager
def _without_preemption(*, joined: bool) -> Iterator[None]:
    """Let trainings inside the block start no process that watches for nodes to be taken away.

    Of a Ray that was started here there is one node, and the program ends with it.
    """
    name = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
    with variables_set({} if joined or name in os.environ else {name: "0"}):
        yield


def _start() -> None:
    """Start Ray on this machine, and connect to it.

    Raises:
        ConfigError: it does not start.
    """
    import ray

    preconditions.check_folder(_ray_folder())
    preconditions.check_loopback()
    try:
        with _stderr_held_back():
            # "local" never connects to a Ray that somebody else started on this machine.
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # Ray raises it as it is where a process of its own has not started
        preconditions.check_folder(_ray_folder())  # it may have become full
        raise ConfigError(
            f"Ray does not start on this machine: {one_line(error)[:500]}. Its logs are in "
            f"{_ray_folder()}/session_latest/logs."
        ) from error


def _join(address: str) -> None:
    """Connect to the cluster at `address`.

    Raises:
        ConfigError: there is none, it has another token, or another version of Ray.
    """
    import ray

    preconditions.check_listens(address)
    try:
        with _stderr_held_back():
            if found := _host_and_port(address):
                preconditions.check_token(found, _token_source())
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        cause = one_line(error)
        if "ersion mismatch" in cause:
            raise ConfigError(_of_other_versions(address, cause)) from None
        raise ConfigError(f"no Ray cluster answers at {address}: {cause}") from None


def _of_other_versions(address: str, cause: str) -> str:
    """Return the message for what Ray says of its versions here and there, `cause`."""
    versions = re.findall(r"Ray: (\S+) Python: (\S+)", cause)
    if len(versions) != 2:
        return f"no Ray cluster answers at {address}: {cause}"
    theirs, ours = (f"Ray {of_ray} and Python {of_python}" for of_ray, of_python in versions)
    return (
        f"the Ray cluster at {address} cannot be joined: it runs {theirs}, and this program "
        f"{ours}. Both must be the same, to the last number: run the program in the image of the "
        "cluster, or start the cluster with the versions of the program."
    )


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the handler of SIGTERM: that of Ray's core prints a stack before it calls any other."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_connected(address: str | None) -> None:
    """Refuse another HOST:PORT than that of the cluster to which this process is connected."""
    import ray
    from ray._private.services import canonicalize_bootstrap_address

    connected = ray.get_runtime_context().gcs_address
    asked = _host_and_port(address) if address else None
    # Ray has localhost under the address that other machines see.
    if asked and ":" in asked and connected not in (asked, canonicalize_bootstrap_address(asked)):
        raise ConfigError(
            f"this process is connected to the Ray cluster at {connected}, not to {address}. Leave "
            "out the address, or call ray.shutdown() first."
        )


def _host_and_port(address: str) -> str | None:
    """Return where a cluster is said to be, None for a Ray Client (ray://).

    Raises:
        ConnectionError: `auto`, and no cluster runs on this machine.
    """
    from ray._private.services import canonicalize_bootstrap_address

    if address == "auto":
        found: str | None = canonicalize_bootstrap_address(address)
        return found
    return None if "://" in address else address


def _token_source() -> str:
    """Return where Ray takes the token of this process from, as a phrase."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return "it sends none: RAY_AUTH_MODE is disabled"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "it is that of RAY_AUTH_TOKEN"
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return f"it is in {path}, which RAY_AUTH_TOKEN_PATH names"
    file = Path("~/.ray/auth_token").expanduser()
    if file.exists():
        return f"it is in {file}; RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH are not set"
    return f"it has none: RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH are not set, and {file} is missing"


def _ray_folder() -> Path:
    """Return the folder of Ray's logs and sockets on this machine."""
    from ray._common.utils import get_default_ray_temp_dir

    return Path(get_default_ray_temp_dir())


@contextlib.contextmanager
def _stderr_held_back() -> Iterator[None]:
    """Hold back standard error, also that of C++ code: errors are raised, and say more."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def _quieten_ray_data() -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A unit of work may take longer than the half hour after which Ray Data would end it.
    context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # It logs with a traceback what it then raises.
    logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)


def environment_with(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of this process with other values for `variables`."""
    return {**os.environ, **variables}


def replace_environment(environment: Mapping[str, str]) -> None:
    """Give this process, which is a worker, the environment of the program that it works for."""
    os.environ.clear()
    os.environ.update(environment)


@contextlib.contextmanager
def variables_set(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for processes that start inside the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def worker_environment(*, cpus: float, gpus: float) -> dict[str, Any]:
    """Return Ray's `runtime_env` for a worker that computes on `cpus` threads and `gpus` GPUs."""
    variables = {name: str(max(int(cpus), 1)) for name in THREAD_VARIABLES}
    if gpus == 0:
        # Without this a worker that asked for no GPU sees all of them, and DeepSpeed uses one.
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return {"env_vars": variables}
