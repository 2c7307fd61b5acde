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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from qpt.commands.completion import SHELLS, PrintCompletion
from qpt.commands.streams import prepare_streams
from qpt.errors import BackendError, InputError, StalledError, hint
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


class _Parser(ArgumentParser):
    """A parser whose refusals are one line, in the project's words."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        parser = getattr(ex, "subcommand_parser", None) or self
        self.exit(2, f"{parser.prog}: error: {_in_words(message, parser)}\n")


class _CommandParser(_Parser):
    """The parser of one command, for which ``--patch_size`` is ``--patch-size``, a whole number an integer however it
    is written (8.0, 1e3), and a former name the present one."""

    renamed: Mapping[str, str] = {}  # former name of a setting -> present name; add_arguments may set it
    #: From the arguments that were given, those that they imply and that are overruled by them; likewise.
    implied: Callable[[Namespace], list[str]] | None = None

    def parse_args(self, args: Sequence[str], *rest: Any, **named: Any) -> Namespace:  # type: ignore[override]
        words = self._present_options(args)
        if self.implied is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # it comes again below
                given = super().parse_args(words, env=False, defaults=False, _skip_validation=True)
            try:
                words = [*self.implied(given), *words]
            except InputError as error:
                self.error(str(error).removeprefix(f"{self.prog.rpartition(' ')[2]}: "))
        return super().parse_args(words, *rest, **named)

    def parse_path(self, cfg_path: Any, *rest: Any, **named: Any) -> Namespace:
        try:
            return super().parse_path(cfg_path, *rest, **named)
        except UnicodeDecodeError as error:
            self.error(f"config must be YAML in UTF-8, got {cfg_path} with byte 0x{error.object[error.start]:02x}")

    def parse_string(self, content: str, *rest: Any, **named: Any) -> Namespace:
        from qpt.io import parse_yaml, to_yaml

        try:
            given = parse_yaml(content)
        except ValueError as error:
            self.error(f"config must be YAML, got: {' '.join(str(error).split())}")
        if not isinstance(given, dict):
            self.error(f"config must be a YAML mapping of settings, got {type(given).__name__}")
        settings: dict[str, Any] = {}
        actions = {action.dest: action for action in self._actions}
        for key, value in given.items():
            name = str(key).replace("-", "_")
            if name in self.renamed:
                _warn_renamed(name, self.renamed[name])
                name = self.renamed[name]
            if name not in actions:
                self.error(f"config must hold known settings only, got {key!r}: {hint(name, list(actions))}")
            settings[name] = _whole(value, actions[name])
        return super().parse_string(to_yaml(settings), *rest, **named)

    def _present_options(self, argv: Sequence[str]) -> list[str]:
        present = {_dash(f"--{old}"): _dash(f"--{new}") for old, new in self.renamed.items()}
        end = argv.index("--") if "--" in argv else len(argv)
        words: list[str] = []
        action = None  # of the option before a word
        for word in argv[:end]:
            if name := re.match(r"--[A-Za-z][\w-]*(?==|\Z)", word):  # an option, not a value such as my_photos
                option = _dash(name[0])
                if option in present:
                    _warn_renamed(option, present[option])
                option = present.get(option, option)
                known = self._option_string_actions
                named = [option] if option in known else [each for each in known if each.startswith(option)]
                action = known[named[0]] if len(named) == 1 else None
                value = word[name.end() + 1 :]
                word = f"{option}={self._value(value, action)}" if "=" in word else option
            else:
                word, action = self._value(word, action), None
            words.append(word)
        return [*words, *argv[end:]]

    def _value(self, word: str, action: argparse.Action | None) -> str:
        """Return the text of a value: a home folder that no shell has expanded is, and a number is written plainly."""
        # An option whose default is a text, such as --init, may be empty.
        if word == "" and (action is None or action.nargs == 0 or action.default is None):
            option = None if action is None or action.nargs == 0 else action.option_strings[-1]
            self.error(f"{option or 'an argument'} must not be empty")
        return os.path.expanduser(word) if word.startswith("~/") else str(_whole(word, action))


def _whole(value: object, action: argparse.Action | None) -> object:
    """Return an int for a whole number that is written otherwise, such as 8.0 or 1e3, if that is what is wanted."""
    written = isinstance(value, str) and re.fullmatch(r"[+-]?\d+\.0*|[+-]?\d*\.?\d+[eE][+-]?\d+", value)
    if getattr(action, "_typehint", None) is int and (written or isinstance(value, float)):
        number = float(value)  # type: ignore[arg-type]
        return int(number) if number.is_integer() else value
    return value


#: What an operating system says of a path that was given; its other errors are faults of the run.
_OF_A_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
_KINDS = {"<class 'int'>": "an integer", "<class 'float'>": "a number", "<class 'bool'>": "true or false"}


def _in_words(message: str, parser: ArgumentParser) -> str:
    """Return what the parser, argparse or jsonargparse, has to say, as one sentence."""
    message = " ".join(message.split())
    if found := re.fullmatch(r"unrecognized arguments: (.*)", message):
        words = found[1].split()
        unknown = next((word.partition("=")[0] for word in words if re.match("--?[A-Za-z]", word)), None)
        if unknown is None:
            return f"there is no place for the argument {words[0]!r}; see {parser.prog} --help"
        if unknown.lstrip("-") in [action.dest for action in parser._actions if not action.option_strings]:
            return f"there is no option {unknown}; give the value without it, as in {parser.usage}"
        near = hint(f"--{unknown.lstrip('-')}", list(parser._option_string_actions), cutoff=0.6)
        return f"there is no option {unknown}; {near if near.endswith('?') else f'see {parser.prog} --help'}"
    if found := re.fullmatch(r'Parser key "([^"]+)": Expected a (.*)\. Got value: (.*)', message):
        name, kind, value = found.groups()
        choices = re.findall(r"'([^']*)'", kind) if kind.startswith("typing.Literal") else []
        return _refusal(_dash(f"--{name}"), _KINDS.get(kind, kind), value, choices)
    if found := re.fullmatch(r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", message):
        return _refusal(found[1], "", found[2], [choice.strip("'") for choice in found[3].split(", ")])
    if found := re.fullmatch(r"the following arguments are required: (.*)", message):
        return f"{', '.join(map(_argument, found[1].split(', ')))} must be given"
    if message.startswith('expected "command"'):
        return f"COMMAND must be given, one of {', '.join(COMMANDS)}"
    return re.sub(r'^Parser key "([^"]+)": ', lambda key: f"{_dash(f'--{key[1]}')}: ", message)


def _refusal(name: str, kind: str, value: str, choices: Sequence[str]) -> str:
    near = hint(value.lower(), choices) if choices else ""
    rule = f"one of {', '.join(choices)}" if choices else kind
    return f"{name} must be {rule}, got {value!r}" + (f"; {near}" if near.endswith("?") else "")


def _argument(key: str) -> str:
    return key.rpartition(".")[2]


def _warn_renamed(old: str, new: str) -> None:
    warnings.warn(f"qpt: {old} is now called {new}", FutureWarning, stacklevel=2)


def _dash(option: str) -> str:
    return option.replace("_", "-")


def build_parser() -> ArgumentParser:
    """Return the parser of all commands; ``docs/front.py`` writes docs/cli.md from it."""
    parser = _Parser(
        prog="qpt",
        usage="qpt COMMAND [options]",
        description="Self-supervised pre-training of blind image quality assessment models.",
        formatter_class=_Help,  # subcommands take it from here
        version=__version__,
        allow_abbrev=True,  # --patch-s for --patch-size, as argparse does
    )
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=SHELLS,
        metavar="{" + ",".join(SHELLS) + "}",
        help="print the script that completes commands and options in a shell, and exit",
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
    """Run one command; returns its exit status.

    1: the answer is no, or the run failed for a reason outside the command line (the disk, the loader). 2: bad input or
    a missing backend. 130: after Ctrl-C.
    """
    name = "qpt"
    try:
        prepare_streams()
        warnings.formatwarning = lambda message, *_, **__: f"{message}\n"  # one line, without the place in the code
        args = build_parser().parse_args(argv)
        name = f"qpt {args.command}"
        run = importlib.import_module(f"qpt.commands.{args.command}").run
        follow_thread_limits()
        status = int(run(args[args.command]))
        sys.stdout.flush()  # here, where a reader that went away or a full disk has words
        return status
    except BrokenPipeError:  # the reader of a pipe went away: `qpt score ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (InputError, BackendError, StalledError, OSError) as error:
        message = str(error).removeprefix(f"{name.partition(' ')[2]}: ")  # often named alike
        print(f"{name}: error: {message}", file=sys.stderr)
        return 2 if isinstance(error, (InputError, BackendError, *_OF_A_PATH)) else 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
