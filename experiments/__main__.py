"""``python -m experiments model|study|synthetic ...``; each has its own ``--help``."""

import sys
from collections.abc import Sequence

from experiments import model, study, synthetic_set

COMMANDS = {"model": model, "study": study, "synthetic": synthetic_set}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return its exit status, 2 without a command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in COMMANDS:
        lines = [f"  {name:9} {module.HELP}" for name, module in COMMANDS.items()]
        print("usage: python -m experiments NAME ...\n\n" + "\n".join(lines), file=sys.stderr)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    return COMMANDS[arguments[0]].main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
