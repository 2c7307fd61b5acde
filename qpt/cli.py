"""The ``qpt`` command line: one module of ``qpt.commands`` for each subcommand.

A command module has HELP, EXAMPLE, ``add_arguments(parser)`` and ``run(args) -> exit status``; it imports what is heavy
inside ``run``, so that ``qpt --help`` is quick and ``qpt doctor`` works on a broken installation. The parser is
jsonargparse's, an argparse that also reads dataclasses and YAML (``qpt pretrain`` uses both).
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from qpt.commands.streams import prepare_streams
from qpt.errors import BackendError, InputError, StalledError
from qpt.process import follow_thread_limits
from qpt.version import __version__

COMMANDS = (
    "doctor", "degrade", "plan", "pretrain", "evaluate", "compare", "fit", "score", "export", "datasets", "probe",
    "report", "demo",
)  # fmt: skip


class _Help(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Print each option with its default, and the examples with their line breaks."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return description(action)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return metavar(action)

    _get_default_metavar_for_positional = _get_default_metavar_for_optional


class _CommandParser(ArgumentParser):
    """The parser of one command, for which ``--patch_size`` is ``--patch-size``, and a former name the present one."""

    renamed: Mapping[str, str] = {}  # former name of a setting -> present name; add_arguments may set it

    def parse_args(self, args: Sequence[str], *rest: Any, **named: Any) -> Namespace:  # type: ignore[override]
        return super().parse_args(self._present_options(args), *rest, **named)

    def parse_string(self, content: str, *rest: Any, **named: Any) -> Namespace:
        for old, new in self.renamed.items():
            content, found = re.subn(rf"^{old}(?=\s*:)", new, content, flags=re.MULTILINE)
            if found:
                _warn_renamed(old, new)
        return super().parse_string(content, *rest, **named)

    def _present_options(self, argv: Sequence[str]) -> list[str]:
        present = {_dash(f"--{old}"): _dash(f"--{new}") for old, new in self.renamed.items()}
        end = argv.index("--") if "--" in argv else len(argv)
        words = []
        for word in argv[:end]:
            if name := re.match(r"--[A-Za-z][\w-]*(?==|\Z)", word):  # an option, not a value such as my_photos
                option = _dash(name[0])
                if option in present:
                    _warn_renamed(option, present[option])
                word = present.get(option, option) + word[name.end() :]
            words.append(word)
        return [*words, *argv[end:]]


def _warn_renamed(old: str, new: str) -> None:
    warnings.warn(f"qpt: {old} is now called {new}", FutureWarning, stacklevel=2)


def _dash(option: str) -> str:
    return option.replace("_", "-")


def build_parser() -> ArgumentParser:
    """Return the parser of all commands; ``docs/front.py`` writes docs/cli.md from it."""
    parser = ArgumentParser(
        prog="qpt",
        usage="qpt COMMAND [options]",
        description="Self-supervised pre-training of blind image quality assessment models.",
        formatter_class=_Help,  # subcommands take it from here
        version=__version__,
        allow_abbrev=True,  # --patch-s for --patch-size, as argparse does
    )
    subcommands = parser.add_subcommands(required=True, dest="command", metavar="COMMAND")
    for name in COMMANDS:
        subcommands.add_subcommand(name, command := command_parser(name), help=command.description)
        command.prog = f"qpt {name}"
    return parser


def command_parser(name: str) -> ArgumentParser:
    """Return the parser of one command."""
    module = importlib.import_module(f"qpt.commands.{name}")
    parser = _CommandParser(
        description=f"{module.HELP[0].upper()}{module.HELP[1:].removesuffix('.')}.",
        epilog="example:\n" + textwrap.indent(textwrap.dedent(module.EXAMPLE).strip(), "  "),
        print_config="--print-config",
    )
    module.add_arguments(parser)
    # jsonargparse names options after the fields of PretrainConfig, which have underscores. `dest` keeps them: it names
    # the keys of YAML files.
    for option, action in list(parser._option_string_actions.items()):
        parser._option_string_actions[_dash(option)] = parser._option_string_actions.pop(option)
        action.option_strings = [_dash(string) for string in action.option_strings]
        if option == "--print-config":
            action.help = "print the settings as YAML and exit; =skip_default leaves out those with their default"
    needed = [invocation(action) for action in parser._actions if not action.option_strings or action.required]
    parser.usage = " ".join(["qpt", name, *needed, "[options]"])
    return parser


def invocation(action: argparse.Action) -> str:
    """Return what is typed for an argument: ``--patch-size N``, ``IMAGE``, ``[IMAGE ...]``."""
    value = "" if action.nargs == 0 else metavar(action)
    forms = {"?": f"[{value}]", "*": f"[{value} ...]", "+": f"{value} ..."}
    return " ".join(filter(None, [*action.option_strings[-1:], forms.get(str(action.nargs), value)]))


def metavar(action: argparse.Action) -> str:
    """Return the word for an argument's value: the one that its command chose, its choices, or one for its type."""
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices:
        return "{" + ",".join(map(str, action.choices)) + "}"
    kind = getattr(action, "_typehint", None)  # jsonargparse keeps the type of an argument here
    return "N" if kind is int else "X" if kind is float else action.dest.upper()


def description(action: argparse.Action) -> str:
    """Return an argument's help with its default, unless the help names one or the default is "not given"."""
    text, default = action.help or "", action.default
    text = text[: -1 if text.endswith(".") and not text.endswith("..") else None]
    switch = action.nargs == 0  # --json and the like: off unless given
    if switch or default in (None, "", [], argparse.SUPPRESS) or "(default" in text:
        return text
    return f"{text} (default: {str(default).lower() if isinstance(default, bool) else default})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status (2 for bad input or a missing backend, 130 after Ctrl-C)."""
    prepare_streams()
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"  # one line, without the place in the code
    args = build_parser().parse_args(argv)
    run = importlib.import_module(f"qpt.commands.{args.command}").run
    follow_thread_limits()
    try:
        status = int(run(args[args.command]))
        sys.stdout.flush()  # here, where a reader that went away or a full disk has words
        return status
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
