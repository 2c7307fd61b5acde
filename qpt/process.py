"""Settings of the whole process and not of one call: threads, forks, and torch's default device.

Imported by ``qpt`` itself, so that forked children are known from the first import on; used by the ops, by pre-training
and by ``qpt doctor``. Importing it imports no torch; it changes settings of torch in forked children only.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from qpt import compat

_VARIABLES = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS")
THREAD_LIMITS = ("affinity", *_VARIABLES, "cgroup")
_CGROUPS, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # options of mallopt, malloc.h
# Set in forked children.
_forked = False


def thread_limits() -> dict[str, int]:
    """Return the number of threads that each of THREAD_LIMITS allows; those that set none are absent.

    A variable that is no number of at least 1 counts as unset. A container's quota is rounded down, to 1 at least.
    """
    limits = {"affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1}
    for name in _VARIABLES:
        # OMP_NUM_THREADS may be a list, a number for each level of nesting.
        text = os.environ.get(name, "").partition(",")[0].strip()
        if text.isdecimal() and int(text):
            limits[name] = int(text)
    quota = _cpu_quota()
    if quota is not None:
        limits["cgroup"] = max(1, math.floor(quota))
    return limits


def usable_threads(processes: int = 1) -> int:
    """Return the default number of threads of one of ``processes`` processes that share this machine.

    Cores and quota are shared out; a number in the environment is that of each process. torchrun sets OMP_NUM_THREADS
    to 1 where the user set none: under it, and with several processes, a 1 does not count.
    """
    limits = thread_limits()
    if "TORCHELASTIC_RUN_ID" in os.environ and processes > 1 and limits.get("OMP_NUM_THREADS") == 1:
        del limits["OMP_NUM_THREADS"]
    shared = [limit // processes for name, limit in limits.items() if name not in _VARIABLES]
    return max(1, min([*shared, *(limit for name, limit in limits.items() if name in _VARIABLES)]))


def follow_thread_limits() -> None:
    """Lower torch's number of threads to what the container allows, which torch does not look at."""
    limits = thread_limits()
    if min(limits.values()) < limits["affinity"]:
        with contextlib.suppress(ImportError):
            import torch

            torch.set_num_threads(min(torch.get_num_threads(), min(limits.values())))


def _cpu_quota() -> float | None:
    """Return the CPUs that the control groups of this process grant, the least over their parents; None without."""
    try:
        lines = _OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _CGROUPS / "cpu" if controllers else _CGROUPS
        # Inside a container the path is often that of the host, and the root is the container's own group.
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                if controllers:
                    parts = [(group / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")]
                else:
                    parts = (group / "cpu.max").read_text(encoding="ascii").split()
                quota, period = (float(part) for part in parts)
                if quota > 0:
                    quotas.append(quota / period)
            if group == root:
                break
    return min(quotas, default=None)


def is_forked() -> bool:
    """Return True in a process forked from one that may have started threads, of which OpenMP's pool does not know."""
    return _forked


def _after_fork() -> None:
    # The pool of OpenMP, which torch and qpt._C share, believes in threads that the child does not have, and waits for
    # them for ever. With one thread nothing asks the pool. DataLoader does the same in its workers.
    global _forked
    _forked = True
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _forked_before_import() -> bool:
    # Spawned children of multiprocessing have their start method set.
    child = multiprocessing.parent_process() is not None
    return child and multiprocessing.get_start_method(allow_none=True) in (None, "fork")


@contextlib.contextmanager
def tensors_on_cpu() -> Iterator[None]:
    """Let torch's own code (optimisers, DataLoader) make its tensors on the CPU, whatever the caller's default is."""
    import torch

    # Only where it is needed: under such a context every call of torch takes a detour through Python.
    with torch.device("cpu") if compat.default_device().type != "cpu" else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Let the C library keep the memory of freed tensors for the next ones; at the end it is given back.

    Concerns glibc alone. From then on new threads allocate from the same memory as the main one.
    """
    import ctypes

    try:
        library = ctypes.CDLL(None)
        mallopt, malloc_trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError):
        yield
        return
    # glibc takes memory of more than 32 MiB from the system anew for each tensor: the page faults of an image of 1152 x
    # 1152 px took as long as the encoder's arithmetic. A thread with an arena of its own could keep 64 MiB at most.
    mallopt(_ARENA_MAX, 1)
    for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
        mallopt(option, 2**30)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest values that glibc's own adjustment reaches
        mallopt(_TRIM_THRESHOLD, 64 << 20)
        malloc_trim(0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
if _forked_before_import():
    _after_fork()
