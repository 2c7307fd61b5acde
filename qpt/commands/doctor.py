"""`qpt doctor`: print what works here and how to get what does not. The looking is done by qpt.doctor."""

from __future__ import annotations

import argparse
import json

HELP = "versions, backends, why a missing one is missing and the command that fixes it"
EXAMPLE = "  qpt doctor\n  qpt doctor --json | jq .cpu_works"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 if the CPU path works, whatever is missing for GPUs; 1 if it does not."""
    from qpt.doctor import diagnose

    diagnosis = diagnose()
    if args.json:
        print(json.dumps(diagnosis.as_dict(), indent=2))
        return 0 if diagnosis.cpu_works else 1
    for title, table in (("versions", diagnosis.versions), ("machine", diagnosis.machine)):
        print(title)
        for name, value in table.items():
            print(f"  {name:<16} {value}")
    print("backends")
    for check in diagnosis.checks:
        print(f"  {'ok     ' if check.ok else 'missing'} {check.name:<16} {check.detail}")
        if check.fix:
            print(f"  {'':<24} fix: {check.fix}")
    print("the CPU path works" if diagnosis.cpu_works else "the CPU path is broken: see above")
    return 0 if diagnosis.cpu_works else 1
