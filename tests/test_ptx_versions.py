"""The executed Triton kernels, the loss's among them, as other releases of Triton than the installed one compile them.

In the long form only: each release is installed into build/versions/triton-VERSION (about 0.5 GB, kept for the next
run; the folder is $WORK, as for .ci/versions) and used by a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LONG

pytestmark = pytest.mark.rung("PTX execution")

ROOT = Path(__file__).parents[1]
RELEASES = ("3.3.1", "3.6.0", "3.7.1")
FILES = ("tests/test_ptx_triton.py", "tests/test_ptx_contrastive.py")


def installed(release: str) -> Path:
    """Return the folder of a release. Skips the test where no index has it for this Python."""
    folder = Path(os.environ.get("WORK", ROOT / "build/versions")) / f"triton-{release}"
    if not (folder / "triton" / "__init__.py").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        result = subprocess.run([*command, f"triton=={release}"], capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"triton {release} does not install: {result.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.mark.skipif(not LONG, reason="long form: QPT_LONG=1 (other releases of Triton)")
@pytest.mark.parametrize("release", RELEASES)
def test_another_release_of_triton(release: str, tmp_path: Path) -> None:
    folder = installed(release)
    environment = {name: value for name, value in os.environ.items() if name not in ("QPT_LONG", "CI")}
    environment |= {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "TRITON_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", "import triton; print(triton.__version__)"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == release, found.stderr
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--timeout", "3000", *FILES],
        env=environment, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    print(tests.stdout)
    assert tests.returncode == 0, tests.stdout + tests.stderr
