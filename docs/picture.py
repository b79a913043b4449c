"""Draw docs/picture.svg: what S2L does, from the pool to the subset.

    python docs/picture.py

The trajectories are invented, from a fixed seed; the shapes are those that fine-tuning shows.
"""

import math
import random
from collections.abc import Iterator
from pathlib import Path

WIDTH, HEIGHT, TOP, BOX, GAP, SIDE = 940, 234, 66, 148, 26, 22
INK, PALE, CARD = "#24292f", "#d0d7de", "#ffffff"
COLOURS = ("#0969da", "#bf8700", "#cf222e", "#1a7f37")
SIZES = (40, 16, 7, 4)  # examples of each cluster: a few kinds are common, most are rare
DRAWN = 4  # from each cluster
CURVES = (  # loss at the start, at the end, and how fast it falls
    (0.80, 0.10, 3.5),
    (0.95, 0.45, 1.6),
    (0.62, 0.52, 0.8),
    (0.35, 0.05, 5.0),
)
TITLES = (
    ("1 · pool", "all rows, kinds unknown"),
    ("2 · small reference", "is fine-tuned on all of it"),
    ("3 · trajectories", "loss at each checkpoint"),
    ("4 · clusters", "k-means on trajectories"),
    ("5 · large target", "learns an even subset"),
)


def main() -> None:
    """Write the picture."""
    Path(__file__).with_name("picture.svg").write_text(drawing(), encoding="utf-8")


def drawing() -> str:
    """Return the picture as SVG."""
    label = "Pool, small reference, loss trajectories, clusters, even subset, large target"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{label}" font-family="system-ui, sans-serif" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="{CARD}"/>',
    ]
    panels = (pool, reference, trajectories, clusters, target)
    for number, (panel, title) in enumerate(zip(panels, TITLES, strict=True)):
        left = SIDE + number * (BOX + GAP + 11)
        lines += heading(left, *title)
        lines.append(frame(left))
        lines += panel(left)
        if number < len(panels) - 1:
            lines.append(arrow(left + BOX + 5))
    return "\n".join([*lines, "</svg>", ""])


def heading(left: int, title: str, text: str) -> Iterator[str]:
    yield f'<text x="{left}" y="{TOP - 30}" font-size="14" font-weight="600">{title}</text>'
    yield f'<text x="{left}" y="{TOP - 13}" font-size="11.5" fill="#57606a">{text}</text>'


def frame(left: int) -> str:
    return (
        f'<rect x="{left}" y="{TOP}" width="{BOX}" height="{BOX}" rx="6" fill="none" '
        f'stroke="{PALE}"/>'
    )


def arrow(left: int) -> str:
    y = TOP + BOX / 2
    return (
        f'<path d="M{left} {y}h22m-7 -6l7 6l-7 6" fill="none" stroke="{INK}" stroke-width="1.6"/>'
    )


def dot(x: float, y: float, colour: str, opacity: float = 1.0) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.2" fill="{colour}" opacity="{opacity}"/>'


def pool(left: int) -> Iterator[str]:
    """All examples in one grid; nothing tells their kinds apart."""
    side = math.ceil(math.sqrt(sum(SIZES)))
    step = BOX / (side + 0.6)
    for number in range(sum(SIZES)):
        x, y = number % side, number // side
        yield dot(left + (x + 0.8) * step, TOP + (y + 0.8) * step, "#8c959f")


def model(left: float, bottom: float, width: float, layers: int) -> Iterator[str]:
    for layer in range(layers):
        y = bottom - (layer + 1) * 12
        yield (
            f'<rect x="{left:.1f}" y="{y:.1f}" width="{width}" height="9" rx="2" fill="#57606a"/>'
        )


def reference(left: int) -> Iterator[str]:
    """A small model, and the checkpoints that are kept of it."""
    for number in range(4):
        x = left + 12 + number * 34
        yield from model(x, TOP + 92, 24, 3)
        yield (
            f'<text x="{x + 12}" y="{TOP + 112}" font-size="10.5" text-anchor="middle">'
            f"t = {number + 1}</text>"
        )


def trajectories(left: int) -> Iterator[str]:
    """One line for each example."""
    chance = random.Random(3)  # noqa: S311 - a drawing, not a secret
    for kind, size in enumerate(SIZES):
        for _ in range(min(size, 12)):
            yield curve(left, CURVES[kind], chance.gauss(0, 0.028), COLOURS[kind], 0.55, 1.1)


def curve(
    left: int, shape: tuple[float, float, float], shift: float, colour: str, opacity: float,
    stroke: float,
) -> str:  # fmt: skip
    start, end, speed = shape
    points = []
    for step in range(9):
        time = step / 8
        loss = end + (start - end) * math.exp(-speed * time) + shift
        points.append(f"{left + 10 + time * (BOX - 20):.1f},{TOP + BOX - 10 - loss * 122:.1f}")
    return (
        f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" '
        f'stroke-width="{stroke}" opacity="{opacity}"/>'
    )


def clusters(left: int) -> Iterator[str]:
    """The examples of each cluster in a row; those that are drawn are full."""
    y = TOP + 16.0
    for kind, size in enumerate(SIZES):
        for number in range(size):
            x, row = number % 10, number // 10
            opacity = 1.0 if number < DRAWN else 0.25
            yield dot(left + 14 + x * 13.2, y + row * 11.5, COLOURS[kind], opacity)
        y += math.ceil(size / 10) * 11.5 + 12


def target(left: int) -> Iterator[str]:
    """As many examples from each cluster, and the large model that is trained on them."""
    for kind in range(len(SIZES)):
        for number in range(DRAWN):
            yield dot(left + 16 + number * 12, TOP + 47 + kind * 18, COLOURS[kind])
    yield from model(left + 76, TOP + 130, 62, 9)


if __name__ == "__main__":
    main()
