"""The program `s2l`: it runs one command and turns what happens into an exit code.

0: done; 2: the user can correct the cause; 1: a fault of the program; 130: interrupted, 143: ended
by SIGTERM.
"""

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


def program() -> NoReturn:
    """Run one command and end the process: what `s2l` and `python -m s2l_ray` start."""
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
        print(f"s2l: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupted:
        number = interrupted.number if isinstance(interrupted, Interrupted) else signal.SIGINT
        print(_interrupted(number, arguments), file=sys.stderr)
        return EXIT_CODE[number]
    except BrokenPipeError:
        if _is_read(sys.stdout):
            raise
        # Whoever read our output has seen enough, as `head` has; nor would a last flush succeed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _is_connected() -> bool:
    """Return True if this process has not left Ray, which may be half loaded."""
    return getattr(sys.modules.get("ray"), "is_initialized", bool)()


def _interrupted(number: int, arguments: Sequence[str]) -> str:
    """Return the message that a signal has ended the program."""
    again = "the same command"
    if any(word.partition("=")[0] == "--from" for word in arguments):
        again += " without --from"
    what = "ended by SIGTERM" if number == signal.SIGTERM else "interrupted"
    return f"\ns2l: {what}; {again} goes on from what is saved"


def _refuse(error: typer.TyperException) -> int:
    """Say in one message what a command line lacks, after its usage."""
    context = getattr(error, "ctx", None)
    name = context.command_path if context else "s2l"
    if context:
        print(context.get_usage().replace("Usage:", "usage:", 1), file=sys.stderr)
    message = " ".join(error.format_message().split())
    print(f"{name}: error: {message} (`{name} --help` explains)", file=sys.stderr)
    return 2


def _is_read(stream: TextIO) -> bool:
    poll = select.poll()
    poll.register(stream, 0)
    return not poll.poll(0)
