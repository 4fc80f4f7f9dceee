"""Files that are whole or not there: written aside, then renamed."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path


def write_whole(path: str | Path, content: bytes | str) -> Path:
    """Write a file so that at its name stands the old content or the new one, never a part.

    Args:
        path: Replaced if it exists. Its folder must exist.
        content: Text is written as UTF-8.

    Raises:
        OSError: the folder is missing or cannot be written; nothing is left behind.
    """
    path = Path(path)
    _check_place(path)
    data = content.encode() if isinstance(content, str) else content
    handle, aside = _file_aside(path)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o666 & ~_umask())  # mkstemp's 0600 is for secrets
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise
    return path


def check_writable(path: str | Path) -> None:
    """Find out before long work whether `write_whole` would be able to write there.

    Raises:
        OSError: it would not.
    """
    path = Path(path)
    _check_place(path)
    handle, aside = _file_aside(path)
    os.close(handle)
    os.unlink(aside)


def _check_place(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, a file name is needed", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "folder not found", str(path.parent))


def _file_aside(path: Path) -> tuple[int, str]:
    try:
        return tempfile.mkstemp(prefix=f".{path.name}-", suffix=".part", dir=path.parent)
    except OSError as error:  # it names the file aside, which nobody asked for
        raise OSError(error.errno, error.strerror, str(path)) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
