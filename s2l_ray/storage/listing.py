"""What is in a folder, on every file system alike.

pyarrow's client of S3 takes an answer that ends within its headers for a page without entries, and
for the last one. So a store is asked twice where it seems to have nothing, or a page or more.
"""

from pyarrow import fs

PAGE = 1_000
"""Entries of a full page of S3; a list of fewer was one page, and was answered whole."""


def entries(filesystem: fs.FileSystem, folder: str, *, below: bool = False) -> list[fs.FileInfo]:
    """Return the files and folders directly in `folder`; none if it does not exist.

    pyarrow lists a folder on gs:// only if it has an object of its own, which nothing but a console
    makes. There, folders are read off the names of all objects below.

    Args:
        below: whether all files below are wanted; folders may be among them or not.
    """
    of_names = filesystem.type_name == "gcs" and not below
    infos = _listed(filesystem, folder, recursive=below or of_names)
    if not of_names:
        return infos
    found = dict[str, fs.FileInfo]()
    for info in infos:
        name, _, rest = info.path.removeprefix(f"{folder}/").partition("/")
        inner = f"{folder}/{name}"
        found[inner] = fs.FileInfo(inner, fs.FileType.Directory) if rest else info
    return list(found.values())


def _listed(filesystem: fs.FileSystem, folder: str, *, recursive: bool) -> list[fs.FileInfo]:
    selector = fs.FileSelector(folder, recursive=recursive, allow_not_found=True)
    infos = list(filesystem.get_file_info(selector))
    if filesystem.type_name == "local" or 0 < len(infos) < PAGE:
        return infos
    return max(infos, list(filesystem.get_file_info(selector)), key=len)
