"""What `Run.extend` returns: new data in a run."""

from dataclasses import dataclass

from s2l_ray.artifacts.extensions import Extension
from s2l_ray.report import extensions as extension_report
from s2l_ray.storage.location import Location


@dataclass(frozen=True)
class Extended:
    """New data in a run.

    Attributes:
        run: the run that was extended.
        extension: the extension of the given data; None if no extension changed.
    """

    run: Location
    extension: Extension | None

    @property
    def summary(self) -> dict[str, str]:
        """The lines of the terminal: new rows, their clusters, and whether these still fit."""
        return dict(extension_report.summary_lines(self.extension)) if self.extension else {}

    @property
    def selected(self) -> list[str]:
        """The file with the subset of the whole pool; empty if the run has no selection."""
        return [str(file) for file in extension_report.subset_files(self.run)]
