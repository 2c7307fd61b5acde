"""``RUN/index.html``: a run's report about itself, kept up to date without holding the run up.

Called by ``qpt.pretraining.engine``; the report is ``qpt.report.build``'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from qpt.io import write_whole

PAGE = "index.html"
SHARE = 0.01  # of the time of a run that its pages may take before its end
_FIRST_COST_S = 5.0  # assumed of the first page


class RunPage:
    """Writes the page at the end of a run, and before it as often as SHARE allows."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._cost, self._written = _FIRST_COST_S, time.monotonic()

    def update(self, say: Callable[[str], None], *, finished: bool = False) -> None:
        """Write the page from the last checkpoint and the run's records. finished: even if it was just written, and
        with the nearest neighbours, which take a pass of the encoder over photographs.

        Whatever goes wrong is said and goes no further: a page is not worth a run.
        """
        started = time.monotonic()
        if not finished and (started - self._written) * SHARE < self._cost:
            return
        try:
            from qpt.report.build import write_report  # here: what it imports is needed by nothing else in a run

            write_whole(self.run / PAGE, lambda aside: write_report([self.run], aside, neighbours=finished, quiet=True))
        except Exception as error:
            say(f"{PAGE} was not written: {type(error).__name__}: {error}")
        self._written = time.monotonic()
        self._cost = self._written - started
