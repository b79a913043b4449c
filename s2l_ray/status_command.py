"""`s2l status`: its options and help, and how it looks again and again."""

import json
import time
from collections.abc import Callable
from typing import Annotated

import typer

from s2l_ray.display import at_work
from s2l_ray.options import RunDir

SECONDS_PER_LOOK = 2.0
EXAMPLES = """\b
example: s2l status runs/demo
example: s2l status s3://bucket/runs/phi2 --watch
example: s2l status runs/demo --json | jq .progress
"""


def status(
    run_dir: RunDir,
    as_json: Annotated[
        bool, typer.Option("--json", help="All of it as one object of JSON, in one line.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look every two seconds until the process has ended.")
    ] = False,
) -> None:
    """Show where a run is: the stage in progress, its speed and the time left, what is finished,
    what it took, and what failed so far. It reads the directory alone, from any machine that
    reaches it, and starts no Ray. A process that has given no sign of life for a minute seems dead.
    """

    def text() -> tuple[str, bool]:
        now = status_of(run_dir)
        shown = json.dumps(now.as_json()) if as_json else "\n".join(now.lines())
        return shown, not now.is_over

    with at_work("status"):
        from s2l_ray.status import status as status_of

        shown, _ = text()
    if watch:
        _watch(text)
    else:
        print(shown)


def _watch(look: Callable[[], tuple[str, bool]]) -> None:
    """Show what `look` returns until its second value is False; on a terminal in one place."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        shown, is_running = look()
        print(shown, flush=True)
        while is_running:
            time.sleep(SECONDS_PER_LOOK)
            shown, is_running = look()
            print(shown, flush=True)
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        is_running = True
        while is_running:
            shown, is_running = look()
            live.update(Text(shown), refresh=True)
            time.sleep(SECONDS_PER_LOOK if is_running else 0)
