"""Strata that are found: groups of examples with like embeddings, made by k-means.

Centroids are fitted to a sample of embeddings, on one worker. Then each worker goes once over the
parts that it holds, a block at a time, and writes the number of the nearest centroid of every row.
The rows of the sample are chosen by hashes of their ids, and k-means adds up integers. So the bytes
are the same under any number of workers.

Shape letters: N rows of a part, S sample rows, H components of an embedding, G strata, P pairs of a
stratum of the rows and a found one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from s2l_ray import hashing
from s2l_ray.artifacts.keys import column_keys
from s2l_ray.artifacts.manifest import EMBEDDINGS, STRATA, pass_folder
from s2l_ray.artifacts.tables import Parts
from s2l_ray.clusters import kmeans, quality
from s2l_ray.clusters.fleet import Fleet
from s2l_ray.config.clusters import ClustersConfig, found_name
from s2l_ray.errors import DataError, first
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location

SAMPLE, START = 5, 6
"""Salts: each use of the seed gets other random numbers (`worker` has those below)."""
ROWS_IN_SAMPLE = 25_600
NUMBERS_IN_SAMPLE = 1 << 24
"""The sample has fewer rows where embeddings are so wide that it would hold more numbers."""
LEAST_ROWS_PER_STRATUM = 25
"""The sample has at least this many rows for each stratum, however wide embeddings are."""
ROWS_PER_BLOCK = 4096
STAGED = "staged"
"""The folder of the numbers; it is removed when the stage is finished."""
REDO = "Set `trajectories.embeddings: true` and redo them with `--from trajectories`"


@dataclass(frozen=True)
class FoundStrata:
    """The found stratum of every row, in one file for each part of the trajectories.

    Attributes:
        centroid_GH: float32 (G, H), by number of the stratum.
        folder: holds `strata-NNNNNN.npy`, int32 (N,), by number of the part.
    """

    centroid_GH: np.ndarray
    folder: Location

    def replace(self, table: pa.Table, part: int) -> pa.Table:
        """Return the table of a part with its found strata in the column `stratum`."""
        names = pa.array(map(found_name, range(len(self.centroid_GH))), pa.string())
        number_N = labels_file(self.folder, part).read_npy()
        column = table.column_names.index("stratum")
        return table.set_column(column, "stratum", names.take(pa.array(number_N)))


def labels_file(folder: Location, part: int) -> Location:
    """Return the file with the numbers of the strata of a part."""
    return folder / f"strata-{part:06d}.npy"


def embedding_files(trajectories: Parts) -> list[Location | None]:
    """Return the file of embeddings of each part of the trajectories; None for a part without.

    A part without rows has none.

    Raises:
        DataError: no part has one.
    """
    folders = (trajectories.folder, *trajectories.more)
    names = {str(folder): pass_folder(folder, EMBEDDINGS) for folder in folders}
    there = {str(folder / name) for folder in names.values() for name in folder.names()}
    files = [
        names[str(part.parent)] / f"{EMBEDDINGS}{part.name.removeprefix('part')}"
        for part in trajectories.files()
    ]
    found = [file if str(file) in there else None for file in files]
    if files and not any(found):
        raise DataError(
            f"clusters: strata are found in embeddings, and there are none for the {len(files):,} "
            f"parts in {trajectories.folder_names}. {REDO}."
        )
    return found


def find(
    fleet: Fleet,
    config: ClustersConfig,
    folder: Location,
    stored_GH: np.ndarray | None = None,
    *,
    progress: Progress,
) -> tuple[FoundStrata, dict[str, Any]] | None:
    """Find the strata of all rows, and write their numbers into `folder`.

    Args:
        fleet: workers of the class `StrataWorker`.
        config: the section, with `strata: auto`.
        folder: the folder of the stage; the numbers are in one that is removed at its end.
        stored_GH: centroids that exist already; None fits new ones.

    Returns:
        the strata; and for the summary the number of rows of each and, if the rows have strata of
        their own, the adjusted Rand index of both. None if there are no rows.
    """
    num_rows, width = sum(fleet.call_all("num_rows")), max(fleet.call_all("width"))
    if not num_rows:
        return None
    progress.start(2 if stored_GH is None else 1, "passes over embeddings")
    if stored_GH is None:
        wanted = config.strata_of(num_rows)
        size = max(min(ROWS_IN_SAMPLE, NUMBERS_IN_SAMPLE // width), LEAST_ROWS_PER_STRATUM * wanted)
        fits = fleet.shuffle([""], "samples", "centroids", min(size / num_rows, 1.0), wanted)
        stored_GH = fits[""]
        progress.update(1)
    found = FoundStrata(stored_GH, folder / STAGED)
    counts = sum(fleet.call_all("label", stored_GH, found.folder), Counter[tuple[str, int]]())
    progress.update(1)
    return found, _summary(counts, len(stored_GH))


def _summary(counts: Mapping[tuple[str, int], int], num_strata: int) -> dict[str, Any]:
    pairs = sorted(counts)
    size_P = np.array([counts[pair] for pair in pairs])
    number_P = np.array([number for _, number in pairs])
    names, own_P = np.unique([name for name, _ in pairs], return_inverse=True)
    size_G = np.bincount(number_P, size_P, minlength=num_strata).astype(int).tolist()
    sizes = {found_name(number): size for number, size in enumerate(size_G)}
    if len(names) < 2:
        return {"sizes": sizes}
    agreement = quality.adjusted_rand_index(own_P, number_P, size_P)
    return {"sizes": sizes, "agreement": agreement, "num_strata_of_rows": len(names)}


def told(
    summary: Mapping[str, Any],
    found: FoundStrata,
    of_strata: Mapping[str, Any],
    folder: Location,
) -> dict[str, Any]:
    """Leave the centroids of new strata in `folder`, and return the summary with what was found."""
    (folder / STRATA).write_npy(found.centroid_GH)
    notes = [sentence(of_strata), *summary.get("notes", [])]
    return {**summary, "found_strata": dict(of_strata), "notes": notes}


def sentence(of_strata: Mapping[str, Any]) -> str:
    """Return in words what `find` returns for the summary."""
    sizes = of_strata["sizes"].values()
    text = f"{len(sizes):,} strata found in embeddings, of {min(sizes):,} to {max(sizes):,} rows"
    if "agreement" not in of_strata:
        return text
    return (
        f"{text}; they agree to {of_strata['agreement']:.2f} (adjusted Rand index) with the "
        f"{of_strata['num_strata_of_rows']:,} that the rows have"
    )


class StrataWorker:
    """Finds strata of the rows of some parts, one part after the other.

    Args:
        files: parts of trajectories, by number.
        embeddings: the file of embeddings of each part; None for a part without.
        seed: decides the sample and the start.
    """

    def __init__(
        self, files: dict[int, Location], embeddings: Sequence[Location | None], seed: int
    ) -> None:
        self.files, self.embeddings, self.seed = files, embeddings, seed

    def num_rows(self) -> int:
        """Return the number of rows of all parts."""
        return sum(file.read_table(["stratum"]).num_rows for file in self.files.values())

    def width(self) -> int:
        """Return the number of components of an embedding, or 0 without parts.

        Raises:
            DataError: parts have different ones.
        """
        widths = sorted({_width(file) for part in self.files if (file := self.embeddings[part])})
        if len(widths) > 1:
            raise DataError(
                f"clusters: embeddings have {widths[0]:,} and {widths[1]:,} components, and cannot "
                f"be compared. {REDO}."
            )
        return widths[0] if widths else 0

    def samples(
        self, names: Sequence[str], share: float, wanted: int
    ) -> dict[str, tuple[np.ndarray, int]]:
        """Return the embeddings of the rows with hashes in the lowest `share`, float16 (S, H)."""
        below = np.uint64(min(int(share * 2.0**64), 2**64 - 1))
        samples = []
        for part in self.files:
            if (file := self.embeddings[part]) is None:
                continue
            table = file.read_table()
            key_N = column_keys(table["example_id"])
            is_sampled_N = hashing.mixed(key_N, self.seed, SAMPLE) <= below
            samples.append(_vectors(table.filter(pa.array(is_sampled_N))))
        sample_SH = np.concatenate(samples) if samples else np.empty((0, 0), np.float16)
        return {name: (sample_SH, wanted) for name in names}

    def centroids(self, *shards: Mapping[str, tuple[np.ndarray, int]]) -> dict[str, np.ndarray]:
        """Return the centroids of a whole sample, float32 (G, H), the largest stratum first.

        Args:
            shards: the results of `samples` from all workers.
        """
        fits = {}
        for name in shards[0]:
            wanted = shards[0][name][1]
            sample_SH = np.concatenate([shard[name][0] for shard in shards if len(shard[name][0])])
            fits[name] = _fitted(sample_SH.astype(np.float32), wanted, self.seed + START)
        return fits

    def label(self, centroid_GH: np.ndarray, folder: Location) -> Counter[tuple[str, int]]:
        """Write the numbers of the strata of all parts.

        Returns:
            the number of rows by the stratum that they have and the number of the found one.

        Raises:
            DataError: the rows of a part and of its embeddings differ.
        """
        counts: Counter[tuple[str, int]] = Counter()
        for part, file in self.files.items():
            table = file.read_table(["example_id", "stratum"])
            number_N = _nearest(self._vectors_of(part, table, file), centroid_GH)
            labels_file(folder, part).write_npy(number_N)
            counts.update(zip(table["stratum"].to_pylist(), number_N.tolist(), strict=True))
        return counts

    def _vectors_of(self, part: int, table: pa.Table, file: Location) -> np.ndarray:
        """Return the embeddings of the rows of a part, float16 (N, H)."""
        vectors = self.embeddings[part]
        if vectors is None and not table.num_rows:
            return np.empty((0, 0), np.float16)
        there = vectors.read_table() if vectors is not None else None
        ids = table["example_id"].to_pylist()
        of_vectors = there["example_id"].to_pylist() if there is not None else []
        if there is None or ids != of_vectors:
            known = set(of_vectors)
            others = [name for name in ids if name not in known] or ids
            raise DataError(
                f"clusters: {file} has {len(ids):,} rows, and its {len(of_vectors):,} embeddings "
                f"are not those of {len(others):,} of them (first: {first(others)}). {REDO}."
            )
        return _vectors(there)


def _fitted(sample_SH: np.ndarray, wanted: int, seed: int) -> np.ndarray:
    centroid_GH = kmeans.initial_centroids(sample_SH, wanted, seed)
    count_G = kmeans.summarise(sample_SH, centroid_GH).count_K
    # Equal counts keep the order of k-means, which depends on the sample alone.
    order_G = np.argsort(-count_G, kind="stable")
    return centroid_GH[order_G][: int((count_G > 0).sum())]


def _nearest(vector_NH: np.ndarray, centroid_GH: np.ndarray) -> np.ndarray:
    """Return the numbers of the nearest centroids, int32 (N,)."""
    number_N = np.empty(len(vector_NH), np.int32)
    for start in range(0, len(vector_NH), ROWS_PER_BLOCK):
        rows = slice(start, start + ROWS_PER_BLOCK)
        number_N[rows], _ = kmeans.nearest(vector_NH[rows].astype(np.float32), centroid_GH)
    return number_N


def _vectors(table: pa.Table) -> np.ndarray:
    """Return the column `embedding`, float16 (N, H)."""
    column = table["embedding"].combine_chunks()
    flat: np.ndarray = column.flatten().to_numpy()
    return flat.reshape(len(column), column.type.list_size)


def _width(file: Location) -> int:
    width: int = file.read_schema().field("embedding").type.list_size
    return width
