"""``python -m qpt``: the command line without an installed script."""

from qpt.cli import main

raise SystemExit(main())
