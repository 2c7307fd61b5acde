"""The root folder of a data set, in which files are found without regard to letter case.

Called by the readers in ``qpt.evaluate.datasets.layouts``; it lists folders. Official archives mix cases ("I01.BMP"
beside "i25.bmp", ".JPG" in the score file and ".jpg" on disk), and those who copy them change more.
"""

from __future__ import annotations

import os
from pathlib import Path

from qpt.errors import InputError
from qpt.evaluate.table import TableError


class Folder:
    """A data set's root. Each folder is listed once: a set of 40,000 images costs a few directory scans."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"dataset: root must be a folder, got {root}")
        self._listings: dict[Path, dict[str, Path]] = {}

    def find(self, relative: str) -> Path:
        """Return the file or folder of this name in any case; where there is none, the path it should have."""
        path = self.root
        for part in relative.replace("\\", "/").split("/"):
            listing = self._listing(path)
            path = listing.get(part) or listing.get(part.lower()) or path / part
        return path

    def has(self, relative: str) -> bool:
        return self.find(relative).exists()

    def need(self, *files: str | tuple[str, ...]) -> list[Path]:
        """Return the score files: a name each, or alternatives of which the first that is there counts.

        Raises TableError listing all that are missing.
        """
        found, problems = [], []
        for file in files:
            names = (file,) if isinstance(file, str) else file
            path = next((p for p in map(self.find, names) if p.is_file()), None)
            if path is None:
                problems.append(f"{' or '.join(names)}: no such file")
            else:
                found.append(path)
        if problems:
            raise TableError(self.root, problems, [problem.split(":")[0] for problem in problems])
        return found

    def first_folder(self, *names: str) -> str:
        """Return the first of these folders that is there, else the first: its files are then reported missing."""
        return next((name for name in names if name == "" or self.find(name).is_dir()), names[0])

    def subfolders(self) -> list[Path]:
        """Return the folders right below the root, sorted by name."""
        return sorted(path for path in self.root.iterdir() if path.is_dir())

    def _listing(self, folder: Path) -> dict[str, Path]:
        """Return the entries of a folder by their own names and, after these, in lower case."""
        if folder not in self._listings:
            names = sorted(os.listdir(folder)) if folder.is_dir() else []
            paths = {name: folder / name for name in names}
            self._listings[folder] = {name.lower(): path for name, path in paths.items()} | paths
        return self._listings[folder]
