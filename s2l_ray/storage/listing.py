"""What is directly in a folder, on every file system alike."""

from pyarrow import fs


def entries(filesystem: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    """Return the files and folders directly in `folder`; none if it does not exist.

    pyarrow lists a folder on gs:// only if it has an object of its own, which nothing but a console
    makes. There, folders are read off the names of all objects below.
    """
    everywhere = filesystem.type_name == "gcs"
    infos = filesystem.get_file_info(
        fs.FileSelector(folder, recursive=everywhere, allow_not_found=True)
    )
    if not everywhere:
        return list(infos)
    found = dict[str, fs.FileInfo]()
    for info in infos:
        name, _, below = info.path.removeprefix(f"{folder}/").partition("/")
        inner = f"{folder}/{name}"
        found[inner] = fs.FileInfo(inner, fs.FileType.Directory) if below else info
    return list(found.values())
