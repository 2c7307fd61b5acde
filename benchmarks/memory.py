"""Peak memory of one form of the contrastive loss in a fresh process, as the operating system counts it.

``peak_mib`` is called by ``bench_contrastive.py``; it starts ``python -m benchmarks.memory``, which prints a JSON line.
Relies on Linux: VmRSS and VmHWM of /proc/self/status, and 5 written to /proc/self/clear_refs, which resets the latter.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.contrastive_baselines import FORMS, Inputs, Setting, make_inputs

ROOT = Path(__file__).resolve().parent.parent
Answer = TypeVar("Answer")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
AVAILABLE = _CLEAR.exists()
# Large enough that libraries start their threads and take what they keep, small beside any measured size.
_WARM_UP = (64, 4096)


def peak_mib(setting: Setting, name: str, threads: int) -> float:
    """Return the peak MiB of the form ``name`` beyond its inputs and the returned gradient.

    RuntimeError with the process's last line if it fails, as one that runs out of memory does.
    """
    if not AVAILABLE:
        raise RuntimeError(f"memory of {name!r} at {setting.shape}: there is no {_CLEAR} on this system")
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(asdict(setting)), name, "--threads", str(threads)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if result.returncode != 0:
        reason = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise RuntimeError(f"memory of {name!r} at {setting.shape}: {reason[-1]}")
    return float(json.loads(result.stdout.splitlines()[-1])["peak_mib"])


def measure_peak(setting: Setting, name: str) -> float:
    """Return the same for this process; to be called once, before anything else has used memory."""
    form = FORMS[name]
    rows, keys = min(setting.n, _WARM_UP[0]), min(setting.k, _WARM_UP[1])
    form.make(make_inputs(replace(setting, n=rows, k=keys)))()
    inputs: Inputs = make_inputs(setting)
    call = form.make(inputs)
    if form.compiles:
        call()  # the compiler's own memory is not the loss's
    answer, peak = peak_of(call)
    held = sum(tensor.nbytes for tensor in answer if tensor is not None)
    return max(0.0, (peak - held) / 2**20)


def peak_of(call: Callable[[], Answer]) -> tuple[Answer, int]:
    """Return the result of ``call``, and the process's peak in bytes beyond what it held before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5", encoding="utf-8")
    before = _status("VmRSS")
    answer = call()
    return answer, _status("VmHWM") - before


def _status(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="utf-8").splitlines())
    return int(lines[field].split()[0]) * 1024


def main(arguments: list[str] | None = None) -> int:
    """Run the command line of the fresh process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory")
    parser.add_argument("setting", help="JSON of benchmarks.contrastive_baselines.Setting")
    parser.add_argument("name", choices=FORMS)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(json.dumps({"peak_mib": measure_peak(Setting(**json.loads(options.setting)), options.name)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
