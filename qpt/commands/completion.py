"""``qpt --print-completion SHELL``: the script that completes commands and options in a shell.

Called by ``qpt.cli``; the script is written by shtab, which comes with the extra ``completion``.
"""

from __future__ import annotations

import argparse
from typing import Any

from jsonargparse import ArgumentParser

SHELLS = ("bash", "zsh", "fish")


class PrintCompletion(argparse.Action):
    """Print the script of a shell and exit; exit with status 2 where shtab is not installed."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        try:
            import shtab
        except ImportError:
            parser.exit(2, f"{parser.prog}: error: {option_string} needs shtab: pip install 'qpt[completion]'\n")
        _complete_files(parser, shtab.FILE)
        print(parser.get_completion_script(f"shtab-{values}"))
        raise SystemExit(0)  # jsonargparse lets the parser do nothing more, not even exit


def _complete_files(parser: ArgumentParser, file: Any) -> None:
    """Mark arguments that are text without choices: nearly all of them name files or folders."""
    for action in parser._actions:
        # `_typehint` is where jsonargparse keeps the type of an argument.
        if getattr(action, "_typehint", None) is str and not action.choices:
            action.complete = file  # type: ignore[attr-defined]
    if parser._subcommands_action:
        for command in parser._subcommands_action._name_parser_map.values():
            _complete_files(command, file)
