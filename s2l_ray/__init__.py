"""S2L (SmallToLarge, NeurIPS 2024) data selection as a distributed system on Ray.

    import s2l_ray as s2l

    run = s2l.run("mine.yaml")                 # or s2l.load("runs/mine")
    run.trajectories().to_numpy()              # float32 (N, T), nats per token
    run.select(budget=1000).write("subset.jsonl")
    run.export("trl", "for-trl", budget=1000)  # rows and configuration of a trainer
    run.extend(["new.jsonl"])
    s2l.compare("mine.yaml").table()           # does the subset help? against random, with seeds

    order = s2l.rank(losses, ids)              # numpy in, numpy out, no Ray
    order[:1000]                               # the subset of 1,000 examples

The functions are imported when they are first used: `import s2l_ray` takes neither torch nor Ray.
"""

from typing import TYPE_CHECKING, Any

from s2l_ray.version import __version__ as __version__

if TYPE_CHECKING:
    from s2l_ray.arrays import Clusters as Clusters
    from s2l_ray.arrays import cluster as cluster
    from s2l_ray.arrays import rank as rank
    from s2l_ray.compared import Comparison as Comparison
    from s2l_ray.compared import compare as compare
    from s2l_ray.errors import UserError as UserError
    from s2l_ray.pipeline.subset import Selection as Selection
    from s2l_ray.runs import Run as Run
    from s2l_ray.runs import load as load
    from s2l_ray.runs import run as run
    from s2l_ray.tables import Table as Table

_MODULES = {
    "run": "runs",
    "load": "runs",
    "compare": "compared",
    "Run": "runs",
    "Selection": "pipeline.subset",
    "Comparison": "compared",
    "Table": "tables",
    "cluster": "arrays",
    "rank": "arrays",
    "Clusters": "arrays",
    "UserError": "errors",
}
"""Exported name -> the module of this package that has it."""

__all__ = [  # noqa: RUF022 - in the order in which one meets them
    "run",
    "load",
    "compare",
    "Run",
    "Comparison",
    "Table",
    "Selection",
    "cluster",
    "rank",
    "Clusters",
    "UserError",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
