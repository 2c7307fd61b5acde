"""Faults of an image file, which concern that file alone, and faults of the machine, which concern everything read.

Whatever reads image files goes through ``explained``: each exception of a decoder becomes an ``UnreadableError``,
unless its errno says that the disk, the memory or the number of open files is to blame; then it is a ``ReadError``,
and worth another attempt (``read_with_retries``).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from qpt.errors import BackendError, InputError

T = TypeVar("T")

#: What an operating system says of one file. Anything else with an errno may happen to a sound file as well.
_OF_THE_FILE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}
    | {errno.EINVAL, errno.EILSEQ, errno.EFBIG, errno.EOVERFLOW, errno.ENXIO, errno.ENODEV, errno.ESPIPE}
)
_WAITS_S = (0.1, 0.5, 2.0)  # before each attempt but the first


class UnreadableError(InputError):
    """One file is no readable image. The message is the reason, without the file's name."""


class ReadError(OSError):
    """Reading failed for a reason that lies outside the file. The message says which, and what helps."""


class RemoteError(ReadError):
    """A URL could not be read in any of its attempts, or must not be: it is not tried again."""


def is_machine_fault(error: BaseException) -> bool:
    """Return whether an exception tells of the machine (disk, network, memory, open files) and not of one file."""
    if isinstance(error, OSError):
        return isinstance(error, ReadError) or (error.errno is not None and error.errno not in _OF_THE_FILE)
    return isinstance(error, MemoryError)


@contextmanager
def explained() -> Iterator[None]:
    """Raise UnreadableError or ReadError for any exception of a decoder or of the file system."""
    try:
        yield
    except (InputError, BackendError, ReadError):
        raise
    except Exception as error:
        if is_machine_fault(error):
            raise ReadError(_machine_reason(error)) from error
        raise UnreadableError(_file_reason(error)) from error


def read_with_retries(read: Callable[[], T], name: Callable[[], str]) -> T:
    """Return ``read()``, called again up to three times, within 3 s, after a ReadError.

    name: gives the name of the file, for the error.
    Raises ReadError, which names the file, if every attempt fails so, and at once whatever else ``read`` raises.
    """
    for wait_s in _WAITS_S:
        try:
            return read()
        except RemoteError:
            raise
        except ReadError:
            time.sleep(wait_s)
    try:
        return read()
    except ReadError as error:
        raise ReadError(f"{name()} could not be read in {1 + len(_WAITS_S)} attempts: {error}") from error


def _machine_reason(error: BaseException) -> str:
    code = error.errno if isinstance(error, OSError) else errno.ENOMEM
    if code in (errno.EMFILE, errno.ENFILE):
        return f"{os.strerror(code)} (raise the limit with `ulimit -n`, or use fewer workers)"
    if code == errno.ENOMEM:
        return f"{os.strerror(code)} (use fewer workers, or a smaller cache_mib or max_pixels)"
    return f"{os.strerror(code or errno.EIO)} (a fault of the disk or the network, not of the file)"


def _file_reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror})"
    text = str(error).strip()
    return f"cannot be decoded ({text.splitlines()[0] if text else type(error).__name__})"
