"""The arms of a comparison as lines of text for a terminal."""

from collections.abc import Callable, Sequence

from s2l_ray.report.page import ArmScore, Comparison, count, nats, set_title, share


def lines(
    scores: Sequence[ArmScore], comparisons: Sequence[Comparison], confidence: float
) -> list[str]:
    """For each set a table of its arms, and one of their paired differences."""
    found: list[str] = []
    for name in dict.fromkeys(score.set for score in scores):
        mine = [score for score in scores if score.set == name]
        found += [*([""] if found else []), set_title(name, mine)]
        found += _aligned([_header(confidence), *map(_row, mine)])
        found += _differences([pair for pair in comparisons if pair.set == name], confidence)
    return found


def _header(confidence: float) -> tuple[str, ...]:
    interval = f"({confidence:.0%} interval)"
    return "arm", "items", f"loss, nats per token {interval}", f"exact match {interval}"


def _row(score: ArmScore) -> tuple[str, ...]:
    loss = _interval(nats, score.loss_nats, score.loss_low, score.loss_high)
    rate = _interval(share, score.exact_match, score.exact_match_low, score.exact_match_high)
    return score.arm, count(score.num_items), loss, rate


def _interval(
    show: Callable[[float], str], mean: float | None, low: float | None, high: float | None
) -> str:
    if mean is None:
        return "n/a"
    ends = f" ({show(low)} to {show(high)})" if low is not None and high is not None else ""
    return show(mean) + ends


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns as wide as their widest cell; numbers of items to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if _is_count(cell) else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def _is_count(cell: str) -> bool:
    return cell == "items" or cell.replace(",", "").isdecimal()


def _differences(pairs: Sequence[Comparison], confidence: float) -> list[str]:
    """How far the arm is from each baseline, over the same items; nothing without a baseline."""
    if not pairs:
        return []
    metrics = list(dict.fromkeys(pair.metric for pair in pairs))
    unit = {"loss": "loss, nats per token", "exact match": "exact match, points"}
    rows = [(f"{pairs[0].arm} minus", *(unit[metric] for metric in metrics))]
    for baseline in dict.fromkeys(pair.baseline for pair in pairs):
        standing = {pair.metric: _standing(pair) for pair in pairs if pair.baseline == baseline}
        rows.append((baseline, *(standing.get(metric, "n/a") for metric in metrics)))
    title = (
        f"  Differences over the same items (one training of each arm, {confidence:.0%} intervals):"
    )
    return [title, *_aligned(rows), f"  {_sentence(pairs)}"]


def _sentence(pairs: Sequence[Comparison]) -> str:
    """The same in words."""
    sentences = []
    for metric in dict.fromkeys(pair.metric for pair in pairs):
        baselines: dict[str, list[str]] = {}
        for pair in pairs:
            if pair.metric == metric:
                baselines.setdefault(_told(pair), []).append(pair.baseline)
        told = [f"{words} {' and '.join(names)}" for words, names in baselines.items()]
        sentences.append(f"By {metric}, {pairs[0].arm} is {' and '.join(told)}.")
    return " ".join(sentences)


def _standing(pair: Comparison) -> str:
    """The difference with its interval, and what it tells of the arm."""
    ends = (pair.difference, pair.low, pair.high)
    if pair.metric == "loss":
        mean, low, high = (f"{x:+.4f}" for x in ends)
    else:
        mean, low, high = (f"{100 * x:+.1f}" for x in ends)
    return f"{mean} ({low} to {high}), {_told(pair).removesuffix(' than').removesuffix(' from')}"


def _told(pair: Comparison) -> str:
    if pair.low <= 0 <= pair.high:
        return "not told apart from"
    return "better than" if (pair.high < 0) == (pair.metric == "loss") else "worse than"
