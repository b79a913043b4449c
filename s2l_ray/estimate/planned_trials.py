"""The size of a comparison, and what is known of its time, before anything runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from s2l_ray.artifacts.amounts import Quantities, Work
from s2l_ray.comparison.trials import State
from s2l_ray.config import budgets
from s2l_ray.config.comparison import ComparisonConfig
from s2l_ray.config.sections import RunConfig
from s2l_ray.config.training import RandomModel, TargetConfig
from s2l_ray.notation import flops
from s2l_ray.progress import duration
from s2l_ray.training import schedule
from s2l_ray.training.work import training_work

UNKNOWN_TIME = (
    "time unknown: no finished trial has measured it. Interrupt s2l compare after the first, "
    "which it keeps, and plan again"
)


def lines(config: RunConfig, quantities: Quantities, state: State | None) -> list[str]:
    """Return the lines of `s2l plan` about a comparison; none if there is no section for it.

    Args:
        config: the configuration.
        quantities: the amounts that its stages work on.
        state: which trials are finished; None where none can be, as clusters are still to be made.
    """
    section, target, pool = config.comparison, config.target, quantities.pool
    if section is None or target is None or pool is None:
        return []
    from s2l_ray.models import local_models

    trained = _rows_of_trials(section, quantities)
    shape = local_models.shape(target.model)
    untrained = len(section.seeds) if isinstance(target.model, RandomModel) else 1
    number = len(section.seeds) * len(trained) + untrained
    if state is None:
        trainings, num_todo = _foreseen(section, target, trained), number
    else:
        trainings = [(arm.num_rows, steps) for arm, steps in state.todo if steps]
        num_todo, number = len(state.todo), len(state.done) + len(state.todo)
    works = [
        training_work(
            target.model_copy(update={"max_steps": steps}), pool.amount.scaled_to(rows), shape
        )
        for rows, steps in trainings
    ]
    text = f"{number:,} trials: {_named(section)}"
    if any(_seems_more(budget, quantities) for budget in section.budgets):
        text += ", of which the largest is more than there seem to be"
    if not num_todo:
        return [f"{'comparison':<16}{text}; all of them are finished"]
    if num_todo < number:
        text += f"; {number - num_todo:,} are finished, {num_todo:,} to do"
    cost = f"{quantities.about}{sum(work.tokens for work in works):,} tokens"
    if shape is not None:
        cost += f", {flops(sum(work.flops or 0.0 for work in works))}"
    time = _time(state.done if state is not None else [], works, num_todo)
    return [
        f"{'comparison':<16}{text}; at most {cost} to train on",
        f"{'':<16}{time}",
    ]


def _seems_more(budget: budgets.Budget, quantities: Quantities) -> bool:
    """Tell whether a budget is more than the estimated pool."""
    tokens = budgets.num_tokens(budget)
    if tokens is not None:
        return quantities.pool is not None and tokens > quantities.pool.amount.tokens
    return isinstance(budget, int) and budget > quantities.num_rows


def _named(section: ComparisonConfig) -> str:
    """Return what is compared, as a phrase: 2 methods x 2 budgets x 3 seeds, no training."""
    counts = (
        (len(section.methods), "method"),
        (len(section.budgets), "budget"),
        (len(section.seeds), "seed"),
    )
    named = " x ".join(f"{n:,} {name}{'s' if n > 1 else ''}" for n, name in counts)
    return f"{named}{', all data' if section.all_data else ''}, no training"


def _time(done: Sequence[Mapping[str, Any]], works: Sequence[Work], num_todo: int) -> str:
    """Return the time that trials take by that of finished ones, one after the other."""
    timed = [result for result in done if "seconds_evaluating" in result]  # others are older
    trained = sum(result["flops_training"] or 0.0 for result in timed)
    todo = [work.flops for work in works if work.flops is not None]
    if not trained or len(todo) < len(works):
        return UNKNOWN_TIME
    training = sum(todo) * sum(result["seconds_training"] for result in timed) / trained
    evaluating = num_todo * sum(result["seconds_evaluating"] for result in timed) / len(timed)
    seconds = duration(training + evaluating)
    return (
        f"some {seconds} one after the other, by the time of the {len(timed):,} finished ones: "
        "divide by the workers that will train at once"
    )


def _foreseen(
    section: ComparisonConfig, target: TargetConfig, trained: Sequence[int]
) -> list[tuple[int, int]]:
    """Return the rows and the steps of every training, by the rows of those of one seed."""
    own = target.model_copy(update={"max_steps": None})
    most = max(trained[: len(section.budgets) * len(section.methods)])
    of_one_seed = [
        (rows, schedule.num_steps(most, target))
        if section.steps == "equal"
        else (rows, schedule.num_steps(rows, own))
        for rows in trained
    ]
    return of_one_seed * len(section.seeds)


def _rows_of_trials(section: ComparisonConfig, quantities: Quantities) -> list[int]:
    """Return the rows of every trial of one seed, those of the methods first."""
    assert quantities.pool is not None
    amount = quantities.pool.amount
    of_budgets = []
    for budget in section.budgets:
        wanted = budgets.num_tokens(budget)
        if wanted is not None:
            of_budgets.append(round(wanted / max(amount.row_tokens, 1)))
        elif isinstance(budget, float):
            of_budgets.append(max(int(budget * quantities.num_rows + 1e-6), 1))
        else:
            of_budgets.append(int(budget))
    whole = [quantities.num_rows] if section.all_data else []
    return of_budgets * len(section.methods) + whole
