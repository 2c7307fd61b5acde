"""The script ``qpt``, and ``python -m qpt``, the same without an installed script."""

import sys


def main() -> int:
    """Run the command line; an interrupt while it is still being imported is one line too."""
    try:
        from qpt.cli import main

        return main()
    except KeyboardInterrupt:
        print("qpt: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
