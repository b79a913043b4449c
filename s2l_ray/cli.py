"""The program `s2l`: it runs one command and turns what happens into an exit code.

0: done; 2: the user can correct the cause; 1: a fault of the program; 130: interrupted, 143: ended
by SIGTERM, 129 as its terminal was closed.
"""

import errno
import os
import select
import signal
import sys
from collections.abc import Sequence
from functools import partial
from typing import NoReturn, TextIO

import typer

from s2l_ray.errors import UserError
from s2l_ray.interrupts import EXIT_CODE, Interrupted, end_now, ended_by_signals, exit_soon

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""What a stream fails with whose disk is full, or whose terminal is closed."""


def program() -> NoReturn:
    """Run one command and end the process: what `s2l` and `python -m s2l_ray` start."""
    _open_streams()
    code = main()
    if _is_connected():  # still: a thread would make of this exit another one
        end_now(code)
    if code in EXIT_CODE.values():
        exit_soon(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with ended_by_signals(partial(_interrupted, arguments=arguments)):
            from s2l_ray import commands  # takes a second, in which Ctrl-C may come

            command = typer.main.get_command(commands.app)
            with command.make_context("s2l", arguments) as context:
                command.invoke(context)
            sys.stdout.flush()
    except typer.Exit as ended:
        return ended.exit_code
    except typer.TyperException as error:
        return _refuse(error)
    except UserError as error:
        _tell(f"s2l: {error}")
        return 2
    except KeyboardInterrupt as interrupted:
        number = interrupted.number if isinstance(interrupted, Interrupted) else signal.SIGINT
        _tell(_interrupted(number, arguments))
        return EXIT_CODE[number]
    except BrokenPipeError:
        if _is_read(sys.stdout):
            raise
        # Whoever read our output has seen enough, as `head` has; nor would a last flush succeed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        cause = _cause(error)
        if cause is None:
            raise
        _tell(f"s2l: {cause}")
        return 2
    return 0


def _open_streams() -> None:
    """Open what the program was started without, as by `>&-`: nothing is read or shown there."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest number that is free is that of the stream.
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - until the process ends


def _tell(text: str) -> None:
    """Print on standard error, if that can be written."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _is_lost(sys.stderr)


def _cause(error: OSError) -> str | None:
    """Return what is wrong with the surroundings of the program; None if nothing is known."""
    if any([_is_lost(sys.stdout), _is_lost(sys.stderr)]) or (
        error.filename is None and error.errno in UNWRITABLE
    ):
        return f"what is printed cannot be written to where standard output or error lead: {error}"
    try:
        os.getcwd()
    except FileNotFoundError:
        return "the working directory is gone: change to one that is there, and call again"
    return None


def _is_lost(stream: TextIO) -> bool:
    """Return True if a stream cannot be written, as on a full disk; from now on it takes all."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return True
    return False


def _is_connected() -> bool:
    """Return True if this process has not left Ray, which may be half loaded."""
    return getattr(sys.modules.get("ray"), "is_initialized", bool)()


def _interrupted(number: int, arguments: Sequence[str]) -> str:
    """Return the message that a signal has ended the program."""
    again = "the same command"
    if any(word.partition("=")[0] == "--from" for word in arguments):
        again += " without --from"
    name = signal.Signals(number).name
    what = "interrupted" if number == signal.SIGINT else f"ended by {name}"
    return f"\ns2l: {what}; {again} goes on from what is saved"


def _refuse(error: typer.TyperException) -> int:
    """Say in one message what a command line lacks, after its usage."""
    context = getattr(error, "ctx", None)
    name = context.command_path if context else "s2l"
    if context:
        _tell(context.get_usage().replace("Usage:", "usage:", 1))
    message = " ".join(error.format_message().split())
    _tell(f"{name}: error: {message} (`{name} --help` explains)")
    return 2


def _is_read(stream: TextIO) -> bool:
    poll = select.poll()
    poll.register(stream, 0)
    return not poll.poll(0)
