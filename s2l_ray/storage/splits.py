"""Splits of a data set in files: which file belongs to which, and which of them are read.

Names are those of data sets on the Hugging Face hub: train-00000-of-00002.parquet, test.jsonl,
validation/part-0.json.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from s2l_ray.errors import DataError, first

_KIND_BY_WORD = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "heldout"), "test"),
}
_SHARD = re.compile(r"(?P<split>.+)-[0-9]{5}-of-[0-9]{5}")
ALL = "all"
"""The name of all splits together."""


@dataclass(frozen=True)
class Split:
    """A split that names of files tell: `train_sft`, of the kind train.

    Attributes:
        name: as the files have it.
        kind: train, validation or test.
    """

    name: str
    kind: str

    def is_called(self, wanted: str) -> bool:
        """Tell whether `wanted` is its name, or another word for its kind alone."""
        return wanted == self.name or (
            self.name in _KIND_BY_WORD and _KIND_BY_WORD.get(wanted) == self.kind
        )


def split_of(path: str) -> Split | None:
    """Return the split that a path below a data set tells, or None if it tells none.

    The name of the file decides; if it tells none, the nearest folder that tells one.
    """
    *folders, name = path.split("/")
    stem = name.split(".")[0]
    shard = _SHARD.fullmatch(stem)
    kind = _kind(shard["split"] if shard else stem)
    if kind is not None:
        word = next(word for word in _words(stem) if _KIND_BY_WORD.get(word) == kind)
        # Hyphens stand between the names of a data set and of its split.
        return Split(shard["split"].rpartition("-")[2] if shard else word, kind)
    for folder in reversed(folders):
        kind = _kind(folder)
        if kind is not None:
            return Split(folder, kind)
    return None


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\W_\d]+", name.lower()) if word]


def _kind(name: str) -> str | None:
    """Return the kind of split that a name has a word for; None if it has none, or several."""
    kinds = {_KIND_BY_WORD[word] for word in _words(name) if word in _KIND_BY_WORD}
    return kinds.pop() if len(kinds) == 1 else None


def choose(
    paths: Sequence[str], wanted: str | None, preferred: Sequence[str], where: str
) -> tuple[list[str], str]:
    """Return the paths of the split to read, and a note if others are left out ("" if none is).

    Files of one split, or of none, are all read.

    Args:
        paths: files below one folder, relative to it.
        wanted: the name of a split, `ALL`, or None for the first kind in `preferred` that exists.
        preferred: kinds of splits.
        where: the key and the folder, for messages.

    Raises:
        DataError: the wanted split does not exist, or it is unclear which one is meant.
    """
    split_by_path = {path: split_of(path) for path in paths}
    splits = list(dict.fromkeys(split for split in split_by_path.values() if split is not None))
    if wanted == ALL or not splits or (wanted is None and len(splits) == 1):
        return list(paths), _note_on_folders(paths, where)
    if wanted is not None:
        chosen = [split for split in splits if split.is_called(wanted)]
    else:
        kind = next((kind for kind in preferred if any(s.kind == kind for s in splits)), "")
        chosen = [split for split in splits if split.kind == kind]
        chosen = [split for split in chosen if split.name == kind] or chosen
    names = sorted(split.name for split in splits)
    if len(chosen) != 1:
        problem = f"no split {wanted!r}" if wanted else "no split that is meant beyond doubt"
        raise DataError(
            f"{where} has {problem}, but {len(names)} others: {first(names, 8)}. Name one of them, "
            f"as data.split or by its files; data.split: {ALL} reads all."
        )
    kept = [path for path in paths if split_by_path[path] == chosen[0]]
    if len(kept) == len(paths):
        return kept, _note_on_folders(kept, where)
    others = [name for name in names if name != chosen[0].name]
    left_out = f" ({first(others, 8)})" if others else ""
    return kept, (
        f"{where}: split {chosen[0].name} alone is read, {len(kept)} of {len(paths)} files; the "
        f"others{left_out} are left out"
    )


def _note_on_folders(paths: Sequence[str], where: str) -> str:
    """Return a note if a split has shards in several folders, as configurations have."""
    shards = [path for path in paths if _SHARD.fullmatch(path.rpartition("/")[2].split(".")[0])]
    folders = sorted({path.rpartition("/")[0] for path in shards})
    if len(folders) < 2:
        return ""
    return (
        f"{where}: shards of {len(folders)} folders are read together ({first(folders)}); if these "
        "are configurations of one data set, name one"
    )
