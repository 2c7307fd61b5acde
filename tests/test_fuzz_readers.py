"""Every reader of files takes damaged ones: a right result or one clear error, within 2 GiB and 20 s, without a process
or a connection. Each quick run takes the same seeds; ``make verify`` takes 10,000 cases for each reader.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LONG
from tests.fuzz_readers import READERS

#: Readers side by side in one process, so that the quick form imports torch once for all.
GROUPS = [[name] for name in READERS] if LONG else [list(READERS)]
CASES = 10_000 if LONG else 120


@pytest.mark.timeout(6 * 3600 if LONG else 600)
@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0] if len(names) == 1 else "all")
def test_damaged_files_are_read_or_refused(names: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "FUZZ_FOLDER": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.fuzz_readers", *names, "--cases", str(CASES)]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, errors="replace")
    last = tmp_path / "case"
    assert done.returncode == 0, f"{last.read_text() if last.exists() else ''}{done.stderr[-6000:]}"
    counts = json.loads(done.stdout.splitlines()[-1])
    for name, (results, refusals) in counts.items():
        assert results + refusals == CASES
        assert refusals > 0, name  # else the damage is none
        assert results > 0, name
