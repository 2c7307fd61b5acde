"""The ``qpt`` command line: one module of ``qpt.commands`` for each subcommand.

A command module has HELP, EXAMPLE, ``add_arguments(parser)`` and ``run(args) -> exit status``; it imports what is heavy
inside ``run``, so that ``qpt --help`` is quick and ``qpt doctor`` works on a broken installation. The parser is
jsonargparse's, an argparse that also reads dataclasses and YAML (``qpt pretrain`` uses both).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import textwrap
from collections.abc import Sequence

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from qpt.errors import BackendError, InputError, StalledError

COMMANDS = (
    "doctor", "degrade", "plan", "pretrain", "evaluate", "compare", "fit", "score", "export", "datasets", "probe",
    "report", "demo",
)  # fmt: skip


class _Help(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Types and defaults after each option; examples with their line breaks."""


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="qpt",
        description="Self-supervised pre-training of blind image quality assessment models.",
        formatter_class=_Help,  # subcommands take it from here
    )
    subcommands = parser.add_subcommands(required=True, dest="command")
    for name in COMMANDS:
        module = importlib.import_module(f"qpt.commands.{name}")
        command = ArgumentParser(
            description=module.HELP,
            epilog="example:\n" + textwrap.indent(textwrap.dedent(module.EXAMPLE).strip(), "  "),
        )
        module.add_arguments(command)
        subcommands.add_subcommand(name, command, help=module.HELP)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status (2 for bad input or a missing backend, 130 after Ctrl-C)."""
    args = build_parser().parse_args(argv)
    run = importlib.import_module(f"qpt.commands.{args.command}").run
    try:
        return int(run(args[args.command]))
    except BrokenPipeError:  # the reader of a pipe went away: `qpt score ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (InputError, BackendError, StalledError, OSError) as error:
        message = str(error).removeprefix(f"{args.command}: ")  # often named alike
        print(f"qpt {args.command}: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"qpt {args.command}: interrupted", file=sys.stderr)
        return 130
