"""The process that a program starts in: it gives up everything, and becomes the program.

This file is run, not imported: `python -I -S sandbox_launcher.py SETTINGS`, with the program on
standard input. It uses the standard library alone. It ends with FAILED if it cannot cut itself off.

Linux only: namespaces(7), mount(2), pivot_root(2), prctl(2), setrlimit(2).
"""

import ctypes
import json
import os
import resource
import signal
import sys

FAILED = 125
NOBODY = 65_534
_NEW_USER = 0x10000000
_NEW_REST = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
"""New mounts, cgroups, host name, inter-process communication, process ids and network."""
_BIND, _RECURSIVE, _PRIVATE, _REMOUNT = 0x1000, 0x4000, 0x40000, 0x20
_READ_ONLY, _NO_SUID, _NO_DEVICES = 0x1, 0x2, 0x4
_KEPT_FLAGS = {2: 0x2, 4: 0x4, 8: 0x8, 1024: 0x400, 2048: 0x800, 4096: 0x200000}
"""What statvfs reports of a mount, and the flags with which it is mounted again."""
_DETACH = 2
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_PARENT_DEATH_SIGNAL, _DUMPABLE, _NO_NEW_PRIVILEGES = 1, 4, 38
_DEVICES = ("/dev/null", "/dev/urandom")

_libc = ctypes.CDLL(None, use_errno=True)


def _called(name: str, *arguments: object) -> None:
    """Call a function of the C library.

    Raises:
        OSError: it failed.
    """
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    texts = (text.encode() for text in (source, target, kind))
    _called("mount", *texts, ctypes.c_ulong(flags), options.encode())


def _leave_namespaces() -> bool:
    """Enter new namespaces; return True if that took a new one of users."""
    if os.getuid() == 0:
        try:
            _called("unshare", _NEW_REST)
            return False
        except PermissionError:  # root of a container, without the right to mount
            _become_nobody()
            _called("prctl", _DUMPABLE, 1, 0, 0, 0)  # so that its own maps can be written
    uid, gid = os.getuid(), os.getgid()
    _called("unshare", _NEW_REST | _NEW_USER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {uid} 1"),
        ("gid_map", f"{NOBODY} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return True


def _become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def _enter_root(root: str, readable: list[str], megabytes: int) -> None:
    """Make `root` the file system: `readable` paths, two devices, and an empty /tmp."""
    _mount("none", "/", "", _PRIVATE | _RECURSIVE)
    options = f"size={megabytes}m,nr_inodes=1024,mode=755"
    _mount("tmpfs", root, "tmpfs", _NO_SUID | _NO_DEVICES, options)
    for path in (*readable, *_DEVICES):
        _bind(path, root + path)
    os.chdir(root)
    os.makedirs("tmp", exist_ok=True)  # it may hold a folder of Python's
    os.chmod("tmp", 0o1777)  # noqa: S103 (of the sandbox alone)
    number = _SYS_PIVOT_ROOT[os.uname().machine]
    _called("syscall", number, b".", b".")
    _called("umount2", b".", _DETACH)
    os.chdir("/tmp")  # noqa: S108 (of the sandbox alone)


def _bind(path: str, target: str) -> None:
    """Show `path` at `target`, for reading."""
    if os.path.islink(path):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
    try:
        _mount(path, target, "", _BIND)
    except OSError:  # what is mounted beneath may not be taken away in a namespace of users
        _mount(path, target, "", _BIND | _RECURSIVE)
    of_mount = os.statvfs(target).f_flag
    kept = sum(flag for bit, flag in _KEPT_FLAGS.items() if of_mount & bit)
    flags = _BIND | _REMOUNT | _READ_ONLY | _NO_SUID
    _mount("none", target, "", flags | kept)


def _limit(limits: dict[str, int]) -> None:
    """Set limits that cannot be raised again; there are no further processes or threads."""
    for name, value in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _become(settings: dict) -> None:
    """Give up privileges, and become the program's Python."""
    _called("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _called("prctl", _PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    _limit(settings["limits"])
    command = [settings["python"], "-s", "-P", "-"]
    os.execve(settings["python"], command, settings["environment"])  # noqa: S606 (no shell)


def _isolated(settings: dict) -> int:
    """Cut this process off, run the program in a child, and return its exit status."""
    has_own_users = _leave_namespaces()
    _enter_root(settings["root"], settings["readable"], settings["megabytes"])
    child = os.fork()  # the first process of the new namespace; with it all others end
    if child == 0:
        try:
            if not has_own_users:
                _become_nobody()
            _become(settings)
        finally:
            os._exit(FAILED)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status >= 0 else 128 - status


def main() -> None:
    settings = json.loads(sys.argv[1])
    try:
        _called("prctl", _PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if settings["root"]:
            sys.exit(_isolated(settings))
        _become(settings)  # bubblewrap has cut this process off already
    except (OSError, KeyError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
