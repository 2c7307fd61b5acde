"""The rooms of the package: modules import from their own room and earlier ones, and never each other in a circle.

``ROOMS`` is the order of ``docs/design.md``, whose table joins some rooms in one line. An import inside a function
counts like any other.
"""

import ast
from pathlib import Path

import qpt

PACKAGE = Path(qpt.__file__).parent
#: Lowest first. A module may import from its own room and from those before it.
ROOMS = (
    *("errors", "version", "compat", "process", "build", "io"),
    *("data", "degradations", "kernels", "ops", "models", "runs"),
    *("evaluate", "report", "pretraining", "export", "planning"),
    *("commands", "cli", "__main__"),
)


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package; a package is named without ``__init__``."""
    # ``qpt/kernels`` is a link, which ``rglob`` does not follow.
    files = (path for folder in (PACKAGE, PACKAGE / "kernels") for path in folder.rglob("*.py"))
    found = {".".join(("qpt", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in files}
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


def imports_of(path: Path, known: set[str]) -> dict[str, set[str]]:
    """Module of the package -> names taken from it, of all imports in a file that are executed."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            for name in (alias.name for alias in node.names):
                full = f"{node.module}.{name}"
                module, taken = (full, set()) if full in known else (node.module, {name})
                found.setdefault(module, set()).update(taken)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                found.setdefault(alias.name, set())
    return {module: names for module, names in found.items() if module in known}


MODULES = modules()
# ``qpt/__init__.py`` names modules of every room; no module may import it for what it re-exports.
IMPORTS = {name: imports_of(path, set(MODULES)) for name, path in MODULES.items() if name != "qpt"}


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_module_belongs_to_a_room() -> None:
    assert {room(name) for name in IMPORTS} == set(ROOMS)


def test_no_module_imports_from_a_room_above_its_own() -> None:
    upward = [
        f"{name} imports {used}"
        for name, imported in IMPORTS.items()
        for used in imported
        if used != "qpt" and ROOMS.index(room(used)) > ROOMS.index(room(name))
    ]
    assert not upward
    assert not [name for name, imported in IMPORTS.items() if "qpt" in imported and imported["qpt"] - {"__version__"}]


def test_no_modules_import_each_other_in_a_circle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name in done or name not in IMPORTS:
            return
        for used in IMPORTS[name]:
            # A package imports its own modules to register or re-export them; they name it only as a prefix.
            if used != name:
                visit(used, (*path, name))
        done.add(name)

    for name in IMPORTS:
        visit(name, ())


def test_other_rooms_take_few_names_from_a_module_that_stands_on_its_room() -> None:
    """A module that imports five or more of its room is an entry to it (``evaluate.run``): not a place for helpers."""
    taken: dict[str, set[str]] = {}
    for name, imported in IMPORTS.items():
        for used, names in imported.items():
            own_room = {module for module in IMPORTS.get(used, ()) if room(module) == room(used)}
            # The op table is made of the files of its rows, and is what every room reads of it.
            entry = used not in ("qpt", "qpt.degradations.op_table")
            if entry and len(own_room) >= 5 and room(used) != room(name):
                taken.setdefault(used, set()).update(names)
    # ``evaluate.probe`` has the most: ``probe``, ``probe_run`` and the result that they return.
    assert taken and not {name: names for name, names in taken.items() if len(names) > 3}


def test_no_module_takes_a_private_name_of_another_room() -> None:
    private = [
        f"{name} takes {taken} from {used}"
        for name, imported in IMPORTS.items()
        for used, names in imported.items()
        for taken in names
        if taken.startswith("_") and not taken.startswith("__") and used != "qpt" and room(used) != room(name)
    ]
    assert not private


def test_a_circle_and_an_upward_arrow_are_seen(tmp_path: Path) -> None:
    """The reader of imports sees them wherever they stand in a file."""
    file = tmp_path / "module.py"
    file.write_text(
        "import qpt.io\nfrom qpt.ops import extension as e\n\n"
        "def f():\n    from qpt.report.page import Page, write_page\n"
        "if TYPE_CHECKING:\n    from qpt.cli import main\n"
    )
    assert imports_of(file, set(MODULES)) == {
        "qpt.io": set(),
        "qpt.ops.extension": set(),
        "qpt.report.page": {"Page", "write_page"},
    }
