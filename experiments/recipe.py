"""The arms of a study, read from a YAML file such as ``recipes/study.yaml``. Used by ``experiments.study``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qpt.errors import InputError
from qpt.io import read_yaml
from qpt.pretraining.config import PretrainConfig

RECIPE = Path(__file__).parent / "recipes" / "study.yaml"
KINDS = ("pretrained", "untrained", "named", "recalibrated", "beside", "classical")
ONE_SEED = ("named", "classical")  # nothing about them is random
DERIVED = ("recalibrated", "beside")  # from the encoder of another arm


@dataclass(frozen=True)
class Arm:
    """One arm.  settings: fields of PretrainConfig over the base of the recipe.  against: the arm it is compared with.
    of: the arm whose encoder a recalibrated arm starts from, or one beside is put beside its initial encoder."""

    name: str
    about: str
    group: str
    kind: str = "pretrained"
    against: str = "base"
    of: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """base: settings of all arms.  folder: where the files named in settings are."""

    base: dict[str, Any]
    arms: dict[str, Arm]
    folder: Path

    def config(self, arm: Arm, data: Path, seed: int) -> dict[str, Any]:
        """Return all settings of an arm with a seed, checked; the file of a space has its absolute path."""
        fields = {**self.base, **arm.settings, "data": str(data), "out": "", "seed": seed}
        if str(fields.get("space", "")).endswith((".yaml", ".yml")):
            fields["space"] = str((self.folder / fields["space"]).resolve())
        PretrainConfig.from_dict(fields)
        return fields


def read_recipe(path: Path, steps: int | None = None) -> Recipe:
    """Read a recipe.  steps: replaces those of the base; arms with steps of their own keep their ratio to the base.

    Raises InputError for an arm that names one that does not exist, or has an unknown kind or field.
    """
    content = read_yaml(path)
    base, arms = content["base"], {}
    ratio = 1.0 if steps is None else steps / base["steps"]
    for name, given in content["arms"].items():
        unknown = sorted(set(given) - set(Arm.__dataclass_fields__))
        if unknown:
            raise InputError(f"study: arm {name} of {path.name} must have known fields, got {', '.join(unknown)}")
        arm = Arm(name, **given)
        if "steps" in arm.settings:
            arm.settings["steps"] = max(1, round(arm.settings["steps"] * ratio))
        arms[name] = arm
    if steps is not None:
        base["steps"] = steps
    for arm in arms.values():
        needs = {"against": arm.against, **({"of": arm.of} if arm.kind in DERIVED else {})}
        for key, value in needs.items():
            if value not in arms:
                raise InputError(f"study: {key} of arm {arm.name} must name an arm of {path.name}, got {value!r}")
        if arm.kind not in KINDS:
            raise InputError(f"study: kind of arm {arm.name} must be one of {', '.join(KINDS)}, got {arm.kind!r}")
    return Recipe(base, arms, path.parent)


def choose(recipe: Recipe, names: Sequence[str]) -> list[Arm]:
    """Return the arms of these names and groups, and those that derived arms start from, derived arms last.

    Otherwise they are in the order of the recipe. Raises InputError for an unknown name.
    """
    known = {*recipe.arms, *(arm.group for arm in recipe.arms.values())}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"study: arms must be names or groups ({', '.join(sorted(known))}), got {', '.join(unknown)}")
    chosen = {arm.name for arm in recipe.arms.values() if arm.name in names or arm.group in names}
    chosen |= {recipe.arms[name].of for name in chosen if recipe.arms[name].of}
    arms = [arm for arm in recipe.arms.values() if arm.name in chosen]
    return sorted(arms, key=lambda arm: arm.kind in DERIVED)
