"""The arms of a comparison as lines of text for a terminal."""

from collections.abc import Callable, Sequence

from s2l_ray.report.page import ArmScore, Comparison, count, nats, share


def lines(
    scores: Sequence[ArmScore], comparisons: Sequence[Comparison], confidence: float
) -> list[str]:
    """For each set a table of its arms, and a sentence that says what their differences tell."""
    found: list[str] = []
    for name in dict.fromkeys(score.set for score in scores):
        found += [*([""] if found else []), name]
        rows = [_row(score) for score in scores if score.set == name]
        found += _aligned([_header(confidence), *rows])
        found += _sentence([pair for pair in comparisons if pair.set == name], confidence)
    return found


def _header(confidence: float) -> tuple[str, str, str, str]:
    interval = f"({confidence:.0%} interval)"
    return "arm", "items", f"loss, nats per token {interval}", f"exact match {interval}"


def _row(score: ArmScore) -> tuple[str, str, str, str]:
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


def _aligned(rows: Sequence[tuple[str, str, str, str]]) -> list[str]:
    arms, items, losses = (max(len(row[column]) for row in rows) for column in range(3))
    return [
        f"  {arm:<{arms}}  {num_items:>{items}}  {loss:<{losses}}  {rate}"
        for arm, num_items, loss, rate in rows
    ]


def _sentence(pairs: Sequence[Comparison], confidence: float) -> list[str]:
    """One line out of the paired differences of one set; none without any."""
    clauses = [
        f"by {metric}, {of_metric[0].arm} is " + " and ".join(_standing(pair) for pair in of_metric)
        for metric in ("loss", "exact match")
        if (of_metric := [pair for pair in pairs if pair.metric == metric])
    ]
    if not clauses:
        return []
    kind = f"Paired differences, with {confidence:.0%} intervals over the items and one training"
    return [f"  {kind} of each arm: {'; '.join(clauses)}."]


def _standing(pair: Comparison) -> str:
    """How the arm stands to its baseline, with the difference and its interval."""
    ends = (pair.difference, pair.low, pair.high)
    if pair.metric == "loss":
        mean, low, high = (f"{x:+.4f}" for x in ends)
        unit = "nats"
    else:
        mean, low, high = (f"{100 * x:+.1f}" for x in ends)
        unit = "points"
    if pair.low <= 0 <= pair.high:
        relation = "not told apart from"
    else:
        relation = "better than" if (pair.high < 0) == (pair.metric == "loss") else "worse than"
    return f"{relation} {pair.baseline} ({mean} {unit}, {low} to {high})"
