"""``qpt datasets``: list the known data sets and check folders. The work is in ``qpt.evaluate.datasets``."""

from __future__ import annotations

import argparse
from typing import Any

HELP = "list the known data sets: what each needs, whom to ask for it; or check a folder"
EXAMPLE = (
    "  qpt datasets\n"
    "  qpt datasets check koniq10k --root data/koniq10k\n"
    "  qpt datasets check live:original --root data/live --json"
)
_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=("list", "check"), default="list", help="list (default) or check")
    parser.add_argument("name", nargs="?", type=str, default=None, metavar="NAME", help="the data set to check")
    parser.add_argument("--root", type=str, metavar="FOLDER", default=None, help="the folder to check")
    parser.add_argument(
        "--leaks",
        action="store_true",
        help="also look for near-duplicates across references (slow: decodes all)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON; for check, with every missing file")
    parser.add_argument("--markdown", action="store_true", help="print the list as a Markdown table")


def run(args: argparse.Namespace) -> int:
    """Return 0, or 1 for a check of a folder that is not the whole data set."""
    import json

    from qpt.errors import InputError
    from qpt.evaluate.datasets import DATASETS, as_dict, markdown

    if args.action == "check":
        return _check(args)
    if args.name is not None or args.root is not None or args.leaks:
        raise InputError("datasets: to check a folder: qpt datasets check NAME --root FOLDER")
    if args.markdown:
        print(markdown(), end="")
    elif args.json:
        print(json.dumps([as_dict(entry) for entry in DATASETS.values()], indent=1))
    else:
        print("\n\n".join(_described(as_dict(entry)) for entry in DATASETS.values()))
    return 0


def _check(args: argparse.Namespace) -> int:
    import json

    from qpt.errors import InputError
    from qpt.evaluate.datasets import check_dataset

    if args.name is None or args.root is None or args.markdown:
        raise InputError("datasets: check needs a name and --root: qpt datasets check NAME --root FOLDER")
    found = check_dataset(args.name, args.root, leaks=args.leaks)
    print(json.dumps(found, indent=1) if args.json else _checked(found))
    return 0 if found["complete"] else 1


def _described(entry: dict[str, Any]) -> str:
    split = "official" if entry["official_split"] else f"none official; random by {entry['split_by']}"
    lines = {
        "images": f"{entry['images']}" + (f" of {entry['references']} references" if entry["references"] else ""),
        "scores": entry["scale"],
        "split": split,
        "needs": ", ".join(entry["needs"]),
        "choices": "; ".join(f"{option}: {', '.join(values)}" for option, values in entry["options"].items()),
        "ask": entry["owner"],
        "cite": entry["paper"],
        "note": entry["terms"],
    }
    return f"{entry['name']}: {entry['title']}\n" + "\n".join(f"  {k:<8} {v}" for k, v in lines.items() if v)


def _checked(found: dict[str, Any]) -> str:
    lines = [f"{found['name']}: {found['images']} of {found['expected']} images"]
    if found.get("references") is not None:
        lines.append(f"references: {found['references']} of {found['expected_references']}")
    for name, (train, val, test) in found.get("splits", {}).items():
        lines.append(f"split {name}: {train} train, {val} val, {test} test")
    lines += found.get("notes", [])
    lines += [f"warning: {warning}" for warning in found.get("warnings", [])]
    if found["missing"]:
        lines.append(f"{len(found['missing'])} missing file(s)")
    if found["problems"]:
        lines.append(f"{len(found['problems'])} problem(s):")
        lines += [f"  {problem}" for problem in found["problems"][:_SHOWN]]
        if len(found["problems"]) > _SHOWN:
            lines.append(f"  ... and {len(found['problems']) - _SHOWN} more; --json has all")
    lines.append("complete" if found["complete"] else "not complete, or not the published set")
    return "\n".join(lines)
