"""What a path leads to besides files: asked before it is opened, since to open a pipe is to wait for its writer."""

import stat
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def kind_unless_file(path: Path) -> str | None:
    """ "a named pipe" and the like; None of a file.

    Raises:
        OSError, ValueError: there is nothing of that name.
    """
    return _KINDS.get(stat.S_IFMT(path.stat().st_mode))
