"""The study: arms that differ in one thing, several seeds each, pre-trained and evaluated.

``python -m experiments study PHOTOS --table CSV --out DIR``. An arm and seed is a folder of ``--out`` and a process of
its own (``experiments.task``), ``--jobs`` at a time; each that ends is put into ``--results`` at once. The study may be
killed at any moment: the same command continues it, and runs nothing again that the results hold with the same
settings, even if its folder is gone.
"""

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import rounded, write_record
from experiments import study_tables, task
from experiments.recipe import DERIVED, ONE_SEED, RECIPE, Arm, Recipe, choose, read_recipe
from qpt.io import write_json

HELP = "pre-training arms compared on tables of scores"
FORMAT = "qpt-study-2"
RESULTS = Path(__file__).parent / "results" / "study.json"
ROOT = Path(__file__).resolve().parent.parent


def command_line(arguments: Sequence[str]) -> str:
    """Return the command as records keep it: of a path, the last two parts."""
    words = ["/".join(Path(word).parts[-2:]) if "/" in word else word for word in arguments]
    return shlex.join(["python", "-m", "experiments", "study", *words])


class Study:
    """The folder of a study and its file of results, which one process at a time may write."""

    def __init__(self, out: Path, results: Path, recipe: Recipe, photos: Path, options: argparse.Namespace) -> None:
        self.out, self.results, self.recipe, self.photos, self.options = out, results, recipe, photos, options
        self._children: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self.stopped = False
        self.content = self._read_results()

    def folder(self, arm: str, seed: int) -> Path:
        return self.out / arm / f"seed{seed}"

    def prepare(self, arm: Arm, seed: int) -> Path:
        """Write the folder and task of an arm and seed; ValueError if they exist with other settings."""
        folder = self.folder(arm.name, seed)
        of = str(self.folder(arm.of, seed) / "run") if arm.kind in DERIVED else ""
        content = {
            "arm": arm.name,
            "kind": arm.kind,
            "of": of,
            "config": self.recipe.config(arm, self.photos, seed),
            "tables": [str(csv.resolve()) for csv in self.options.table],
            "crops": self.options.crops,
            "crop_px": self.options.crop_px,
        }
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "task.json"
        if file.is_file():
            there = json.loads(file.read_text(encoding="utf-8"))
            changed = [key for key in content if key != "tables" and there[key] != content[key]]
            if changed:
                raise ValueError(
                    f"study: {folder} was begun with other {', '.join(changed)}; give another --out, or remove it"
                )
            content["environment"] = there["environment"]
        else:
            content["environment"] = task.describe()
        write_json(content, file)
        return folder

    def recorded(self, arm: Arm, seed: int) -> bool:
        """Tell whether the results hold this arm and seed with these settings and tables, wherever it was run.

        They do not if a chosen arm starts from its weights and these are not in the folder.
        """
        wanted = rounded(task.settings_over(self.recipe.base, self.recipe.config(arm, self.photos, seed)))
        names = {task.table_name(csv) for csv in self.options.table}
        crops = {"crops": self.options.crops, "crop_px": self.options.crop_px}
        held = any(
            (row["arm"], row["seed"], row["settings"]) == (arm.name, seed, wanted)
            and names <= row["tables"].keys()
            and all(crops.items() <= row["tables"][name].items() for name in names)
            for row in self.content["rows"]
        )
        needed = any(other.of == arm.name for other in choose(self.recipe, self.options.arms))
        return held and (not needed or (self.folder(arm.name, seed) / "run").is_dir())

    def run(self, folders: Sequence[Path]) -> bool:
        """Run what is not finished, ``jobs`` at a time, and write the results after each; True if all ended well."""
        failed = []
        with ThreadPoolExecutor(self.options.jobs) as pool:
            waiting = {pool.submit(self._one, folder): folder for folder in folders}
            for done in as_completed(waiting):
                folder = waiting[done]
                status = done.result()
                name = f"{folder.parent.name} {folder.name}"
                if status == 0:
                    self.keep(folder)
                    print(f"{name}: done", file=sys.stderr)
                elif not self.stopped:
                    failed.append(name)
                    print(f"{name}: ended with status {status}; see {folder / 'output.txt'}", file=sys.stderr)
        return not failed and not self.stopped

    def _one(self, folder: Path) -> int:
        """Run an arm and seed and return its exit status; 0 at once if it is finished."""
        if self.stopped:
            return task.STOPPED
        if task.collect(folder, self.recipe.base) is not None:
            return 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        with open(folder / "output.txt", "ab") as output:
            command = [sys.executable, "-m", "experiments.task", str(folder)]
            with self._lock:
                if self.stopped:
                    return task.STOPPED
                child = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
                self._children.add(child)
            status = None
            while status is None:
                try:
                    status = child.wait(timeout=2)
                except subprocess.TimeoutExpired:
                    # Asked to stop in its last step, pre-training ends and evaluation begins: ask again.
                    if self.stopped:
                        child.terminate()
            with self._lock:
                self._children.discard(child)
        return status

    def stop(self, number: int = signal.SIGTERM, frame: object = None) -> None:
        """Ask running arms to save and end; begin no other."""
        self.stopped = True
        for child in list(self._children):
            child.terminate()

    def keep(self, folder: Path) -> None:
        """Put the row of a finished arm and seed into the file of results."""
        row = task.collect(folder, self.recipe.base)
        if row is None:
            return
        row = rounded(row)
        same = [r for r in self.content["rows"] if (r["arm"], r["seed"]) == (row["arm"], row["seed"])]
        if same == [row]:
            return
        self.content["rows"] = [r for r in self.content["rows"] if r not in same] + [row]
        order = list(self.content["arms"])
        self.content["rows"].sort(key=lambda r: (order.index(r["arm"]), r["seed"]))
        present = {r["arm"] for r in self.content["rows"]}
        arms = {name: about for name, about in self.content["arms"].items() if name in present}
        command = command_line(self.options.arguments)
        if command not in self.content["commands"]:
            self.content["commands"].append(command)
        write_record({**self.content, "arms": arms}, self.results)

    def add(self, arm: Arm) -> None:
        """Add an arm that the recipe does not have."""
        self.recipe.arms[arm.name] = arm
        self.content["arms"][arm.name] = self._about(arm)

    def _about(self, arm: Arm) -> dict[str, Any]:
        """Describe an arm for the file of results."""
        steps = arm.settings.get("steps", self.recipe.base["steps"])
        named = {key: getattr(arm, key) for key in ("about", "group", "kind", "against", "settings")}
        return {**named, "steps": steps}

    def _read_results(self) -> dict[str, Any]:
        """Read the file of results and add the arms of the recipe; ValueError if its runs have another base."""
        arms = {arm.name: self._about(arm) for arm in self.recipe.arms.values()}
        empty = {"format": FORMAT, "commands": [], "base": self.recipe.base, "arms": arms, "rows": []}
        if not self.results.is_file():
            return empty
        content: dict[str, Any] = json.loads(self.results.read_text(encoding="utf-8"))
        if content.get("format") != FORMAT or content["base"] != rounded(self.recipe.base):
            raise ValueError(f"study: {self.results} holds another study; give another --results")
        gone = {row["arm"] for row in content["rows"]} - set(arms)
        return {**content, "arms": {**arms, **{name: content["arms"][name] for name in gone}}}


def best_run(study: Study, minutes: float) -> list[Path]:
    """Prepare the long run, once: the best arm so far, a seed that no arm had, the steps that these minutes allow.

    Returns its folder, or nothing if the results hold a long run.
    """
    if any(study.content["arms"][row["arm"]]["group"] == "best" for row in study.content["rows"]):
        return []
    file = study.out / "best.json"
    if not file.is_file():
        name = study_tables.best_arm(study.content)
        rows = [row for row in study.content["rows"] if row["arm"] == name]
        pace = statistics.median(row["seconds"] / row["steps"] for row in rows)  # of several machines, perhaps
        unused = 1 + max(row["seed"] for row in study.content["rows"])
        chosen = {"arm": name, "steps": max(1, round(minutes * 60 / pace)), "seed": unused}
        write_json({**chosen, "minutes": minutes}, file)
    chosen = json.loads(file.read_text(encoding="utf-8"))
    arm = study.recipe.arms[chosen["arm"]]
    settings = {**arm.settings, "steps": chosen["steps"]}
    long = Arm(f"{arm.name}-long", f"{arm.name}, the best, for longer", "best", against=arm.name, settings=settings)
    study.add(long)
    return [study.prepare(long, chosen["seed"])]


@contextmanager
def _signals(study: Study) -> Iterator[None]:
    before = {number: signal.signal(number, study.stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments study", description=__doc__.split("\n\n")[0])
    parser.add_argument("photos", type=Path, help="folder of photographs to pre-train on")
    parser.add_argument(
        "--table", type=Path, action="append", required=True, help="CSV image,mos[,ref]; may be repeated"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="YAML of the arms (default: recipes/study.yaml)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON (default: results/study.json)")
    parser.add_argument("--arms", nargs="+", default=["claims"], help="names or groups of arms (default: claims)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each arm (default 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--steps", type=int, help="steps of every arm (default: the recipe's)")
    parser.add_argument("--jobs", type=int, default=1, help="arms at a time, one thread each (default 1)")
    parser.add_argument("--crops", type=int, default=9, help="most crops of a photograph, in evaluation (default 9)")
    parser.add_argument("--crop-px", type=int, default=384, help="side of a crop, in evaluation (default 384)")
    parser.add_argument("--best", type=float, metavar="MINUTES", help="then one run of the best arm, about so long")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 when all arms are finished, 1 if one failed, 2 for a user's error, 130 when stopped."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    options.arguments = arguments
    try:
        recipe = read_recipe(options.recipe, options.steps)
        arms = choose(recipe, options.arms)
        study = Study(options.out.resolve(), options.results, recipe, options.photos.resolve(), options)
        first = [arm for arm in arms if arm.kind not in DERIVED]
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        with _signals(study):
            well = True
            for part in (first, arms[len(first) :]):  # derived arms start from runs of the first part
                todo = [
                    (arm, seed)
                    for seed in seeds
                    for arm in part
                    if not (arm.kind in ONE_SEED and seed > 0) and not study.recorded(arm, seed)
                ]
                well &= study.run([study.prepare(arm, seed) for arm, seed in todo])
            if options.best is not None and well:
                well &= study.run(best_run(study, options.best))
    except (ValueError, OSError) as error:
        print(f"experiments study: error: {error}", file=sys.stderr)
        return 2
    if study.content["rows"]:
        print(study_tables.markdown(study.content))
    return 130 if study.stopped else 0 if well else 1
