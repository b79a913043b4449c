"""Ctrl-C, SIGTERM and SIGHUP: they end the program within seconds, whatever it waits for."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = {signal.SIGINT: 4.5, signal.SIGTERM: 2.0, signal.SIGHUP: 2.0}
"""Time to leave in good order. Ray kills a job three seconds after it has sent SIGTERM. A terminal
that is closed sends SIGHUP, which a program that `nohup` starts ignores."""
EXIT_CODE = {number: 128 + number for number in GRACE_SECONDS}
SECONDS_OF_EXIT = 0.5
"""Time for what libraries do when Python ends, after a signal; Ray's handlers take seconds."""
SECONDS_PER_LOOK = 0.2
takes_time = threading.Event()
"""Set while work is being saved after the first signal."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end."""

    def __init__(self, number: int) -> None:
        self.number = signal.Signals(number)


@contextlib.contextmanager
def ended_by_signals(message: Callable[[int], str]) -> Iterator[None]:
    """Raise Interrupted inside the block at the first signal, and end the process soon after it.

    The process ends at a second signal, or when the time to leave in good order is over; that time
    does not run while `takes_time` is set. The main thread may be waiting in Ray, which sets
    handlers of its own, or in code that never returns. So a thread watches the file to which Python
    writes the number of every signal that arrives.

    Args:
        message: returns what is shown for a signal if the process ends without leaving the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    # A process that a shell has started in the background ignores Ctrl-C, and goes on doing so.
    heeded = [number for number in GRACE_SECONDS if signal.getsignal(number) != signal.SIG_IGN]
    heard: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        heard.append(number)
        raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in heeded}
    told = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, message), daemon=True)
    watcher.start()
    try:
        yield
    except KeyboardInterrupt as error:
        # A call of Ray that is interrupted raises an error of its own in place of ours.
        if heard and not isinstance(error, Interrupted):
            raise Interrupted(heard[-1]) from None
        raise
    except SystemExit as ended:
        # While Ray starts, its own handler hears SIGTERM.
        if ended.code == signal.SIGTERM:
            raise Interrupted(signal.SIGTERM) from None
        raise
    finally:
        signal.set_wakeup_fd(told)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.shutdown(socket.SHUT_RDWR)  # also for children that have it open
        writer.close()
        watcher.join()
        reader.close()


def exit_soon(code: int) -> NoReturn:
    """End the process after SECONDS_OF_EXIT, whatever is still running; no signal changes that."""
    for number in GRACE_SECONDS:
        signal.signal(number, signal.SIG_IGN)

    def end() -> None:
        time.sleep(SECONDS_OF_EXIT)
        os._exit(code)

    _flush()
    threading.Thread(target=end, daemon=True).start()
    sys.exit(code)


def end_now(code: int) -> NoReturn:
    """End the process, with nothing of what Python and libraries do then."""
    _flush()
    os._exit(code)


def _flush() -> None:
    with contextlib.suppress(OSError):  # nobody may read it any more
        sys.stdout.flush()


def _watch(reader: socket.socket, message: Callable[[int], str]) -> None:
    """End the process after the signals that are read; return when no more can come."""
    first: signal.Signals | None = None
    while first is None:
        received = reader.recv(1)
        if not received:
            return
        first = _known(received)
    deadline, second = time.monotonic() + GRACE_SECONDS[first], None
    reader.settimeout(SECONDS_PER_LOOK)
    while second is None:
        if takes_time.is_set():
            deadline = time.monotonic() + GRACE_SECONDS[first]
        elif time.monotonic() >= deadline:
            break
        try:
            received = reader.recv(1)
        except TimeoutError:
            continue
        if not received:
            return
        second = _known(received)
    # Not through sys.stderr, which the main thread may hold.
    with contextlib.suppress(OSError):  # the terminal may be closed
        os.write(2, f"{message(first)}\n".encode())
    os._exit(EXIT_CODE[first])


def _known(received: bytes) -> signal.Signals | None:
    return next((number for number in GRACE_SECONDS if number == received[0]), None)
