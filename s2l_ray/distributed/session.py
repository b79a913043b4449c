"""The environment and the connection to Ray: the one module that reads environment variables."""

import contextlib
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from s2l_ray.errors import ConfigError, one_line

CONNECT_SECONDS = 10.0
"""Longest wait for an answer from the address of a cluster."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Set to the configured number of threads on every machine: the last bits of sums depend on it."""


def joins_cluster(address: str | None) -> bool:
    """Return True to join a running cluster, False to start Ray on this machine.

    A cluster is joined when `address` is given or RAY_ADDRESS is set.
    """
    return address is not None or bool(os.environ.get("RAY_ADDRESS"))


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connect to Ray for the length of the block.

    A Ray that was started here ends with the block. A cluster that was joined goes on running.

    A connection that this process has already, as a notebook may, is used and left as it is.

    Raises:
        ConfigError: there is no cluster at `address`, or the connection is to another one.
    """
    import ray  # takes a second, which a command with nothing to do should not spend

    joined = joins_cluster(address)
    if joined:
        _check_answers(address or os.environ["RAY_ADDRESS"])
    # Ray's C++ core prints internal notes to the terminal at any level below this one.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Ray Train accepts one saved state each time it polls its workers. Its own interval of 2 s
    # would delay the end of a training.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if ray.is_initialized():
        _check_connected(address)
        _quieten_ray_data()
        yield
        return
    try:
        with _stderr_shown_on_failure():
            ray.init(
                # "local" never connects to a Ray that somebody else started on this machine.
                address=address if joined else "local",
                include_dashboard=None if joined else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        if not joined:
            raise
        where = address or "RAY_ADDRESS"
        raise ConfigError(f"no Ray cluster answers at {where}: {one_line(error)}") from None
    _quieten_ray_data()
    try:
        yield
    finally:
        ray.shutdown()


def _check_connected(address: str | None) -> None:
    """Refuse another HOST:PORT than that of the cluster to which this process is connected."""
    import ray

    connected = ray.get_runtime_context().gcs_address
    if address and ":" in address and address.rpartition("://")[2] != connected:
        raise ConfigError(
            f"this process is connected to the Ray cluster at {connected}, not to {address}. Leave "
            "out the address, or call ray.shutdown() first."
        )


def _check_answers(address: str) -> None:
    """Raise ConfigError for a HOST:PORT where nothing listens; Ray would retry for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"no Ray cluster answers at {address}: {error}. Check --address or RAY_ADDRESS, or "
            "leave both out to start Ray here."
        ) from None


@contextlib.contextmanager
def _stderr_shown_on_failure() -> Iterator[None]:
    """Hold back standard error, also that of C++ code, and print it only if the block fails."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def _quieten_ray_data() -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def worker_environment(*, cpus: float, gpus: float) -> dict[str, Any]:
    """Return Ray's `runtime_env` for a worker that computes on `cpus` threads and `gpus` GPUs."""
    variables = {name: str(max(int(cpus), 1)) for name in THREAD_VARIABLES}
    if gpus == 0:
        # Without this a worker that asked for no GPU sees all of them, and DeepSpeed uses one.
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return {"env_vars": variables}
