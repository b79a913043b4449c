"""Tables of the arms of a comparison, as lines of text for a terminal."""

from collections.abc import Callable, Sequence

from s2l_ray.report.contents import ArmScore, Comparison, set_title
from s2l_ray.report.numbers import count, nats, share


def lines(
    scores: Sequence[ArmScore], comparisons: Sequence[Comparison], confidence: float
) -> list[str]:
    """Return for each set a table of its arms, and a table of their paired differences."""
    text: list[str] = []
    for name in dict.fromkeys(score.set for score in scores):
        mine = [score for score in scores if score.set == name]
        text += [*([""] if text else []), set_title(name, mine)]
        text += _aligned(_table(mine, confidence))
        text += _differences([pair for pair in comparisons if pair.set == name], confidence)
    return text


def _columns(scores: Sequence[ArmScore]) -> list[tuple[str, list[str]]]:
    """Return heading and cells of each metric that some arm was measured by, and of the loss."""
    loss = [_interval(nats, s.loss_nats, s.loss_low, s.loss_high) for s in scores]
    rate = [_interval(share, s.exact_match, s.exact_match_low, s.exact_match_high) for s in scores]
    columns = [("loss, nats per token", loss)]
    if any(score.exact_match is not None for score in scores):
        columns.append(("exact match", rate))
    for name in dict.fromkeys(name for score in scores for name in score.further):
        measured = [score.further.get(name, (None, None, None)) for score in scores]
        columns.append((name, [_interval(share, *ends) for ends in measured]))
    return columns


def _table(scores: Sequence[ArmScore], confidence: float) -> list[tuple[str, ...]]:
    columns = _columns(scores)
    headings = [f"{heading} ({confidence:.0%} interval)" for heading, _ in columns]
    rows = zip(*(cells for _, cells in columns), strict=True)
    return [
        ("arm", "items", *headings),
        *((s.arm, count(s.num_items), *row) for s, row in zip(scores, rows, strict=True)),
    ]


def _interval(
    show: Callable[[float], str], mean: float | None, low: float | None, high: float | None
) -> str:
    if mean is None:
        return "n/a"
    ends = f" ({show(low)} to {show(high)})" if low is not None and high is not None else ""
    return show(mean) + ends


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Make columns as wide as their widest cell; align numbers of items to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = []
    for row in rows:
        cells = [
            cell.rjust(width) if _is_count(cell) else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        text.append(("  " + "  ".join(cells)).rstrip())
    return text


def _is_count(cell: str) -> bool:
    return cell == "items" or cell.replace(",", "").isdecimal()


def _differences(pairs: Sequence[Comparison], confidence: float) -> list[str]:
    """Return the table of the arm minus each baseline over the same items; empty without one."""
    if not pairs:
        return []
    metrics = list(dict.fromkeys(pair.metric for pair in pairs))
    units = ["nats per token" if metric == "loss" else "points" for metric in metrics]
    headings = (f"{metric}, {unit}" for metric, unit in zip(metrics, units, strict=True))
    rows = [(f"{pairs[0].arm} minus", *headings)]
    for baseline in dict.fromkeys(pair.baseline for pair in pairs):
        cells = {
            pair.metric: _difference_and_relation(pair)
            for pair in pairs
            if pair.baseline == baseline
        }
        rows.append((baseline, *(cells.get(metric, "n/a") for metric in metrics)))
    title = (
        f"  Differences over the same items (one training of each arm, {confidence:.0%} intervals):"
    )
    return [title, *_aligned(rows), f"  {_sentence(pairs)}"]


def _sentence(pairs: Sequence[Comparison]) -> str:
    """Return a sentence with the same verdicts."""
    sentences = []
    for metric in dict.fromkeys(pair.metric for pair in pairs):
        baselines: dict[str, list[str]] = {}
        for pair in pairs:
            if pair.metric == metric:
                baselines.setdefault(_relation(pair), []).append(pair.baseline)
        relations = [f"{words} {' and '.join(names)}" for words, names in baselines.items()]
        sentences.append(f"By {metric}, {pairs[0].arm} is {' and '.join(relations)}.")
    return " ".join(sentences)


def _difference_and_relation(pair: Comparison) -> str:
    """Return the difference with its interval, and whether the arm is better or worse."""
    ends = (pair.difference, pair.low, pair.high)
    if pair.metric == "loss":
        mean, low, high = (f"{x:+.4f}" for x in ends)
    else:
        mean, low, high = (f"{100 * x:+.1f}" for x in ends)
    relation = _relation(pair).removesuffix(" than").removesuffix(" from")
    return f"{mean} ({low} to {high}), {relation}"


def _relation(pair: Comparison) -> str:
    if pair.low <= 0 <= pair.high:
        return "not distinguishable from"
    return "better than" if (pair.high < 0) == (pair.metric == "loss") else "worse than"
