"""The three standard streams of the command line: there, and able to show every character.

Called by ``qpt.cli`` before a command runs.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings


def prepare_streams() -> None:
    """Point streams that were closed (``2>&-``) at the null device; show what an encoding lacks as an escape."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # Else the next file that is opened gets this number, and what a library writes to it goes into that file.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115 - kept open
    # What other libraries say of their caches, of letters that a font lacks or of an image's side data helps nobody who
    # asked for scores. ``python -W`` and PYTHONWARNINGS bring it back.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(?!(qpt|__main__)\b)")
        # matplotlib has this one come from its caller.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
