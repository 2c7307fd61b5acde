"""An hour of use (``make verify``; ``QPT_SOAK_MINUTES`` sets another time) leaves memory, descriptors, threads and
children as they were after the first rounds; the quick form takes five rounds.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import LONG

MINUTES = float(os.environ.get("QPT_SOAK_MINUTES", "60" if LONG else "0"))


@pytest.mark.timeout(60 * MINUTES + 1200)
def test_nothing_grows_with_use(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.soak", str(60 * MINUTES), str(tmp_path)]
    # One arena: those that glibc gives to threads grow in steps of their own, up to 90 MiB above what is in use.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "QPT_LONG": "", "MALLOC_ARENA_MAX": "1"}
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stderr[-5000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    # Imports, caches and pools of threads come in the first rounds.
    settled = rows[max(3, len(rows) // 4) :]
    for name in ("descriptors", "threads", "children"):
        values = [row[name] for row in settled]
        assert max(values[len(values) // 2 :]) <= max(values[: (len(values) + 1) // 2]), (name, rows)
    memory = np.array([row["memory_mib"] for row in settled])
    slope_mib = np.polyfit(np.arange(len(memory)), memory, 1)[0]  # of a round
    if len(memory) >= 10:  # the allocator's own steps are as large as what few rounds could show
        noise_mib = float(np.abs(np.diff(memory)).mean())
        assert slope_mib * len(memory) < max(20.0, 3 * noise_mib), (slope_mib, rows)
    else:
        assert memory[-1] - memory[0] < 60, rows
