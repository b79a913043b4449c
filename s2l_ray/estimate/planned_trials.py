"""The size of a comparison, before anything runs."""

from s2l_ray.artifacts.amounts import Quantities
from s2l_ray.config import budgets
from s2l_ray.config.comparison import ComparisonConfig
from s2l_ray.config.sections import RandomModel, RunConfig
from s2l_ray.estimate.costs import readable
from s2l_ray.training import schedule
from s2l_ray.training.work import training_work


def lines(config: RunConfig, quantities: Quantities) -> list[str]:
    """Return the lines of `s2l plan` about a comparison; none if there is no section for it."""
    section, target, pool = config.comparison, config.target, quantities.pool
    if section is None or target is None or pool is None:
        return []
    from s2l_ray.models import local_models

    trained = _rows_of_trials(section, quantities)
    most = max(trained[: len(section.budgets) * len(section.methods)])
    equal = target.model_copy(update={"max_steps": schedule.num_steps(most, target)})
    settings = equal if section.steps == "equal" else target.model_copy(update={"max_steps": None})
    shape = local_models.shape(target.model)
    works = [training_work(settings, pool.amount.scaled_to(rows), shape) for rows in trained]
    tokens = len(section.seeds) * sum(work.tokens for work in works)
    flops = len(section.seeds) * sum(work.flops or 0.0 for work in works)
    cost = f"{quantities.about}{tokens:,} tokens"
    cost += f", {readable(flops)}FLOP" if shape is not None else ""
    counts = (
        (len(section.methods), "method"),
        (len(section.budgets), "budget"),
        (len(section.seeds), "seed"),
    )
    named = " x ".join(f"{n:,} {name}{'s' if n > 1 else ''}" for n, name in counts)
    untrained = len(section.seeds) if isinstance(target.model, RandomModel) else 1
    number = len(section.seeds) * len(trained) + untrained
    text = f"{number:,} trials: {named}{', all data' if section.all_data else ''}, no training"
    return [f"{'comparison':<16}{text}; at most {cost} to train on"]


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
