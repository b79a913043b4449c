"""Files that a path, a directory or a glob names, without what is never rows.

Left out below directories and by wildcards: hidden files, `_SUCCESS`, `_temporary/` and other names
that begin with an underscore, checksums, descriptions of data sets, and folders of runs.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pyarrow import fs

from s2l_ray.storage import listing
from s2l_ray.storage.readers import file_info, is_file, open_file

RUN_MARK = "run.json"
"""The file that marks a folder as a run."""
INPUTS = "inputs"
"""The folder below a run where its user may keep files that it reads; no stage writes there."""
DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json")
"""What `datasets` writes beside rows; `state.json` as well, where one of these is."""


@dataclass(frozen=True)
class Walk:
    """Lists the files of patterns in one file system.

    Attributes:
        filesystem: the file system.
        own_run: the path of the run that reads the files, which is never entered but for its
            folder `INPUTS`, where that is named; "" for none.
    """

    filesystem: fs.FileSystem
    own_run: str = ""

    def matches(self, path: str) -> list[fs.FileInfo]:
        """Return the files that a file, a directory or a glob names, each once.

        In a glob, `**` matches any number of directories. Of a file that several links lead to, one
        path is returned: its own, or else the first one. A link to nothing is returned as well, and
        whatever else is neither a file nor a directory; their type says so.

        Raises:
            OSError: a directory cannot be read.
        """
        info = file_info(self.filesystem, path)
        if info.type in (fs.FileType.File, fs.FileType.Unknown) or self._is_link_to_nothing(info):
            return [info]
        if info.type == fs.FileType.Directory:
            return self._each_once(self._glob(path, ["**", "*"], (self.real(path),)))
        parts = path.split("/")
        wild = [number for number, part in enumerate(parts) if re.search(r"[*?\[]", part)]
        if not wild:
            return []
        start = "/".join(parts[: wild[0]]) or "/"
        return self._each_once(self._glob(start, parts[wild[0] :], (self.real(start),)))

    def is_run(self, directory: str) -> bool:
        """Tell whether a directory is the folder of a run."""
        mark = f"{directory}/{RUN_MARK}"
        if not is_file(self.filesystem, mark):
            return False
        with open_file(self.filesystem, mark) as stream:
            return b'"s2l_ray"' in stream.read(1000)

    def is_own(self, path: str) -> bool:
        """Tell whether a path is the folder of the own run, or below it and not in `INPUTS`."""
        own, real = self.real(self.own_run) if self.own_run else "", f"{self.real(path)}/"
        return bool(own) and real.startswith(f"{own}/") and not real.startswith(f"{own}/{INPUTS}/")

    def real(self, path: str) -> str:
        """Return a path without links; only local files have any."""
        is_local = isinstance(self.filesystem, fs.LocalFileSystem)
        return os.path.realpath(path) if is_local else path

    def _each_once(self, matches: Iterator[fs.FileInfo]) -> list[fs.FileInfo]:
        by_file: dict[str, fs.FileInfo] = {}
        for info in sorted(matches, key=lambda info: str(info.path)):
            own = self.real(info.path)
            if own not in by_file or info.path == own:
                by_file[own] = info
        return list(by_file.values())

    def _glob(
        self, directory: str, parts: Sequence[str], above: Sequence[str]
    ) -> Iterator[fs.FileInfo]:
        """Yield the files below `directory` that match `parts`, one pattern per directory level.

        `above` has the real paths of it and of the directories that led to it.
        """
        name, rest = parts[0], parts[1:] or ["*"]
        if name == "**":
            yield from self._glob(directory, rest, above)
        infos = self._entries(directory)
        described = {info.base_name for info in infos} & {*DESCRIPTIONS}
        for info in infos:
            if not fnmatchcase(info.base_name, name) or _is_aside(info.base_name, name):
                continue
            if info.type == fs.FileType.Directory and (name == "**" or len(parts) > 1):
                real = self.real(info.path)
                # A link to a folder that leads to it would be followed for ever.
                if real in above or self.is_own(info.path):
                    continue
                if name == "**" and self.is_run(info.path):
                    continue
                below = parts if name == "**" else rest
                yield from self._glob(info.path, below, [*above, real])
            elif info.type != fs.FileType.Directory and len(parts) == 1 and name != "**":
                is_state = bool(described) and info.base_name == "state.json"
                if not (is_state or info.base_name in DESCRIPTIONS or self.is_own(info.path)):
                    yield info

    def _entries(self, directory: str) -> list[fs.FileInfo]:
        """Return what is in a directory, also links to nothing, which pyarrow leaves out."""
        try:
            infos = listing.entries(self.filesystem, directory)
            known = {info.base_name for info in infos}
        except UnicodeDecodeError:
            names = [os.fsencode(name) for name in os.listdir(directory)]
            strange = [name for name in names if name.decode(errors="replace").encode() != name]
            raise OSError(
                f"{len(strange):,} of {len(names):,} names in {directory} are not UTF-8 (first: "
                f"{strange[0]!r}): rename them"
            ) from None
        if isinstance(self.filesystem, fs.LocalFileSystem) and os.path.isdir(directory):
            with os.scandir(directory) as entries:
                links = sorted(e.path for e in entries if e.is_symlink() and e.name not in known)
            infos += [fs.FileInfo(link, fs.FileType.NotFound) for link in links]
        return list(infos)

    def _is_link_to_nothing(self, info: fs.FileInfo) -> bool:
        is_local = isinstance(self.filesystem, fs.LocalFileSystem)
        return is_local and info.type == fs.FileType.NotFound and os.path.islink(info.path)


def _is_aside(base_name: str, pattern: str) -> bool:
    """Tell whether a name is hidden, of a checksum, or put aside by the program that wrote it."""
    is_hidden = any(base_name.startswith(m) and not pattern.startswith(m) for m in "._")
    return is_hidden or (base_name.endswith(".crc") and not pattern.endswith(".crc"))
