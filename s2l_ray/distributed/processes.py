"""Work of processes of this machine, where no cluster was joined: they start sooner than actors.

One process imports what the workers need, and they are forked from it. So libraries are loaded and
held once, however many workers there are. The workers are those that Ray's actors would be, so the
results are the same bytes.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from s2l_ray.distributed import resources, session
from s2l_ray.distributed.failures import MAX_ATTEMPTS
from s2l_ray.errors import ConfigError, UnitError, one_line

Row = Mapping[str, Any]
_starting = threading.Lock()
"""Held while a process starts: what is changed for that is of the whole program."""


def finished(
    runner: type, rows: Sequence[Row], wanted: resources.Workers, constructor: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield `runner(**constructor)(row)` for every row, in the order in which they finish.

    Every process has a runner of its own. A row whose process dies is given to a new one. When the
    caller stops, the processes are ended.

    Raises:
        UnitError: the processes for a row died before a runner could count its attempts.
    """
    crew = _Crew(runner, constructor, wanted)
    waiting, lost = deque(rows), Counter[int]()
    try:
        while waiting and len(crew.busy) < wanted.max:
            crew.start(waiting.popleft())
        while crew.busy:
            ready: Sequence[Any] = wait(crew.busy)
            for connection in ready:
                process, row = crew.busy.pop(connection)
                try:
                    result: dict[str, Any] = connection.recv()
                except (EOFError, OSError):
                    connection.close()
                    process.join()
                    lost[row["number"]] += 1
                    if lost[row["number"]] > MAX_ATTEMPTS:
                        cause = f"cannot start on this machine (exit code {process.exitcode})"
                        raise UnitError(f"{wanted.stage}: worker processes {cause}") from None
                    crew.start(row)
                    continue
                crew.busy[connection] = process, row
                if waiting:
                    crew.give(connection, waiting.popleft())
                else:
                    crew.end(connection)
                yield result
    finally:
        for connection in list(crew.busy):
            crew.end(connection)


class _Crew:
    """Processes that each do one row at a time.

    Attributes:
        busy: the process and its row, by the connection over which the result comes.
    """

    def __init__(
        self, runner: type, constructor: Mapping[str, Any], wanted: resources.Workers
    ) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(wanted.preload))
        self._stage = wanted.stage
        self._variables = session.worker_environment(cpus=wanted.cpus, gpus=wanted.gpus)["env_vars"]
        environment = session.environment_with(self._variables)
        self._given = runner, dict(constructor), environment
        self.busy: dict[Any, tuple[BaseProcess, Row]] = {}

    def start(self, row: Row) -> None:
        """Give a row to a new process."""
        connection, other = self._context.Pipe()
        process = self._context.Process(target=_work, args=(other, *self._given), daemon=True)
        try:
            with _starting, _without_main_module():
                _run_fork_server(self._variables)
                process.start()
        except (OSError, EOFError, AssertionError) as error:
            raise ConfigError(
                f"{self._stage}: no worker process starts on this machine ({one_line(error)}). "
                "Look at its limits of processes and memory, set TMPDIR to a short path, and start "
                "the program from no process of a pool."
            ) from error
        other.close()  # so that the process alone has it, and its death is the end of the pipe
        self.busy[connection] = process, row
        self.give(connection, row)

    def give(self, connection: Connection, row: Row) -> None:
        """Give a row to the process of `connection`."""
        process, _ = self.busy[connection]
        self.busy[connection] = process, row
        with contextlib.suppress(OSError):  # it has died, and the connection says so when read
            connection.send(row)

    def end(self, connection: Connection) -> None:
        """End a process."""
        process, _ = self.busy.pop(connection)
        process.kill()
        process.join()
        connection.close()


def _run_fork_server(variables: Mapping[str, str]) -> None:
    """Start the process that the workers are forked from, if it does not run yet."""
    # It is `python -c`, which alone would import what lies in the current folder first.
    paths = os.pathsep.join(path for path in sys.path if path)
    safe = {"PYTHONSAFEPATH": "1", "PYTHONPATH": paths}
    resource_tracker.ensure_running()  # a process as well, whose start allows SIGINT again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # for it, while it imports
    try:
        with session.variables_set({**variables, **safe}):  # libraries read the number of threads
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Let processes that start in the block not run the script of the user again.

    Other threads find all that it holds meanwhile, but for the path of its file.
    """
    main = sys.modules["__main__"]
    without_file = types.ModuleType("__main__")
    vars(without_file).update(__file__=None, __getattr__=lambda name: getattr(main, name))
    sys.modules["__main__"] = without_file
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _end_with_the_program() -> None:
    """End this process with the program, whose lock on the run is gone by then."""
    program = multiprocessing.parent_process()
    assert program is not None
    program.join()
    os._exit(1)


def _work(
    connection: Connection, runner: type, constructor: dict[str, Any], environment: dict[str, str]
) -> None:
    """Do the rows that come over `connection`, until the program ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program hears it, and ends its processes
    threading.Thread(target=_end_with_the_program, daemon=True).start()
    session.replace_environment(environment)
    own = runner(**constructor)
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send(own(connection.recv()))
