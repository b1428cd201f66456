"""Files appear whole or not at all, whichever room writes them."""

import errno
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voxelquant.errors import BadInputError


@contextmanager
def atomic_path(
    path: str | os.PathLike[str], error: type[BadInputError] = BadInputError
) -> Iterator[Path]:
    """Yield a temporary sibling to write to; it takes the final name only if nothing was raised.

    The folder is made if need be; what stood under the final name stays until then.

    Args:
        path: final name.
        error: what to raise when the file cannot be written.

    Raises:
        BadInputError: as `error`: the folder cannot be made or written, or the disk is full.
    """
    final = Path(path)
    sibling = open_sibling(final, error)
    mode = sibling.stat().st_mode
    try:
        yield sibling
        sibling.chmod(mode)  # some writers make the file anew, for their user alone
        os.replace(sibling, final)
    except OSError as reason:
        raise _cannot_write(final, reason, error) from reason
    finally:
        sibling.unlink(missing_ok=True)


def open_sibling(final: Path, error: type[BadInputError] = BadInputError) -> Path:
    """An empty file beside `final`, hence on the same file system, with ordinary permissions.

    Raises:
        BadInputError: as `error`: no file name, or the folder cannot be made or written.
    """
    if not final.name:
        raise error(f"got {str(final)!r} as the file to write, need the name of a file")
    sibling = final.with_name(f".{final.stem}.{os.getpid()}{final.suffix}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        sibling.touch()
    except OSError as reason:
        raise _cannot_write(final, reason, error) from reason
    return sibling


def remove_unfinished(final: str | os.PathLike[str]) -> None:
    """Remove what killed processes left of this file; only while no process writes it."""
    final = Path(final)
    prefix = f".{final.stem}."
    for sibling in final.parent.glob(f"{glob.escape(prefix)}*{final.suffix}"):
        if sibling.stem.removeprefix(prefix).isdecimal():  # of a process
            sibling.unlink(missing_ok=True)


def _cannot_write(final: Path, reason: OSError, error: type[BadInputError]) -> BadInputError:
    why = reason.strerror or reason
    mend = "make room, or choose" if getattr(reason, "errno", None) == errno.ENOSPC else "choose"
    return error(f"{final}: cannot be written ({why}); {mend} another folder")
