"""How long a program says nothing: its silences over a pipe, longest first.

python benchmarks/silences.py s2l run configs/demo.yaml
"""

import itertools
import selectors
import subprocess
import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Silence:
    """Seconds without a word, when they began, and what was said last."""

    seconds: float
    begun: float
    after: str


def main(command: list[str]) -> int:
    silences, code = silences_of(command)
    total = sum(silence.seconds for silence in silences)
    share = sum(item.seconds for item in silences if item.seconds > 10) / total
    print(
        f"\nexit code {code}; {total:.0f} s; {share:.0%} of it in silences over 10 s; the longest:"
    )
    for silence in silences[:8]:
        print(f"  {silence.seconds:6.1f} s from {silence.begun:6.1f} s, after: {silence.after}")
    return code


def silences_of(command: list[str]) -> tuple[list[Silence], int]:
    """Run `command`, pass on what it prints, and return its silences, longest first."""
    started = time.monotonic()
    heard = [(0.0, "(start)")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        selector = selectors.DefaultSelector()
        for stream in (program.stdout, program.stderr):
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                # A chunk and not a line: a line of progress may never end.
                chunk = key.fileobj.read1()  # type: ignore[union-attr]
                if not chunk:
                    selector.unregister(key.fileobj)
                    continue
                text = chunk.decode(errors="replace")
                now = time.monotonic() - started
                print(f"[{now:6.1f}] {text}", end="", flush=True)
                heard.append((now, text.strip().splitlines()[-1][:70] if text.strip() else ""))
    heard.append((time.monotonic() - started, "(end)"))
    silences = [
        Silence(until - begun, begun, after)
        for (begun, after), (until, _) in itertools.pairwise(heard)
    ]
    return sorted(silences, key=lambda silence: -silence.seconds), program.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
