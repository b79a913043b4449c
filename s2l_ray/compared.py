"""What `s2l.compare` returns: the results of a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2l_ray.arguments import loaded_config
from s2l_ray.comparison import results, shown
from s2l_ray.comparison import run as comparison
from s2l_ray.config.paths import check_absolute, paths_of
from s2l_ray.config.sections import RunConfig
from s2l_ray.display import Say, with_display
from s2l_ray.distributed import session
from s2l_ray.storage.location import Location
from s2l_ray.tables import Table
from s2l_ray.version import __version__

if TYPE_CHECKING:
    import pandas as pd


@with_display
def compare(
    config: str | Path | RunConfig,
    *,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    address: str | None = None,
    say: Say = print,
) -> "Comparison":
    """Train the target on the subset of every method, budget and seed; `s2l compare` from Python.

    What is finished is not done again: a further method, budget or seed trains only what is new.

    Args:
        config: a YAML file with a section `comparison`, or a configuration that was read.
        overrides: keys of the file with other values, as for `run`.
        address: join the Ray cluster there. Default: RAY_ADDRESS, else Ray is started here.
        say: is called with each line about the progress; `lambda line: None` is silence.

    Raises:
        UserError: the user can correct the cause. Finished trials stay finished.

    Examples:
        >>> s2l.compare("mine.yaml").table()[["label", "mean", "low", "high", "p"]]
    """
    loaded = loaded_config(config, overrides)
    if session.joins_cluster(address):
        check_absolute(paths_of(loaded))
    say(f"s2l_ray {__version__}: {loaded.run_dir}")
    return Comparison(comparison.compare(loaded, address=address, say=say))


@dataclass(frozen=True)
class Comparison:
    """A finished comparison; its files are read when they are asked for.

    Attributes:
        location: the folder, `comparison/` of the run.
    """

    location: Location

    def __repr__(self) -> str:
        return f"Comparison({self.location.uri!r})"

    @property
    def path(self) -> str:
        """The folder, absolute, or its URI."""
        return self.location.uri

    def table(self) -> "pd.DataFrame":
        """Return means over seeds, 95% intervals and differences to random, as they are printed.

        Columns: set, metric, budget, label, seeds, examples, training_tokens, mean, low, high,
        difference, difference_low, difference_high, p (Holm-corrected), seconds_selecting,
        seconds_training, flops.
        """
        return results.read_table(self.location).to_pandas()

    def results(self) -> Table:
        """Return a row for each arm, seed, set and metric; `to_numpy()` is the values."""
        return Table([self.location / results.RESULTS_FILE], results.RESULTS.names, "value")

    def items(self) -> Table:
        """Return a row for each arm, seed and held-out item; `to_numpy()` is the losses."""
        file = self.location / results.ITEMS_FILE
        return Table([file], file.read_schema().names, "loss_nats")

    def lines(self) -> list[str]:
        """Return the tables as text, with a sentence for each set, metric and budget."""
        return shown.lines(results.read_table(self.location))
