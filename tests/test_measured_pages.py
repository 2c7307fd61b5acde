"""README.md, docs/results.md and docs/scaling.md show what is in the records, to the digit."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import scaling, speed_table
from benchmarks.harness import RESULTS

DOCS = Path(__file__).resolve().parent.parent / "docs"


def page_module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_page", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_measured_figures_are_those_of_the_records() -> None:
    results = page_module("results")
    for page in results.PAGES:
        assert page.read_text(encoding="utf-8") == results.render(page), f"{page.name}: run `python docs/results.py`"
    readme = results.PAGES[0].read_text(encoding="utf-8")
    assert all(f"<!-- begin measured: {name} -->" in readme for name in ("floors", "speed"))


def test_only_measured_blocks_are_replaced_and_wrong_markers_are_refused(tmp_path: Path) -> None:
    results = page_module("results")
    page = tmp_path / "page.md"
    block = "<!-- begin measured: study -->\n{}\n<!-- end measured: study -->"
    page.write_text(f"a\n{block.format('old')}\nb\n", encoding="utf-8")
    assert results.render(page) == f"a\n{block.format(results.BLOCKS['study']())}\nb\n"
    for wrong in (block.format("old").replace("study", "x"), "<!-- begin measured: study -->\n"):
        page.write_text(wrong)
        with pytest.raises(ValueError, match="pairs of markers"):
            results.render(page)


def test_a_record_without_the_rows_of_the_speed_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loader\.json: must have rows of 'load'"):
        speed_table._figures({"name": "loader", "rows": []}, "load", "2 loader processes")


def test_the_speed_table_says_on_which_instruction_sets_its_figures_hold() -> None:
    def record(name: str, **machine: object) -> dict[str, object]:
        return {"name": name, "environment": {"machine": machine}}

    old, wide = record("step", cpu="A"), record("loader", instructions=["avx2", "avx512f"])
    assert speed_table.instructions([old, old]) == ""
    assert speed_table.instructions([wide, wide]) == " Instruction sets: avx2, avx512f."
    assert speed_table.instructions([record("degrade", instructions=[])]) == " Instruction sets: none."
    mixed = speed_table.instructions([wide, old, record("degrade", instructions=["avx2"])])
    assert mixed == " Instruction sets: avx2, avx512f (loader); not recorded (step); avx2 (degrade)."

    def load(name: str) -> dict[str, object]:
        content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        content["environment"]["machine"]["instructions"] = ["amx_bf16", "avx512f"]
        return content

    assert speed_table.markdown(load).splitlines()[0].endswith("; medians. Instruction sets: amx_bf16, avx512f.")


def test_the_speed_table_names_the_libraries_of_its_record() -> None:
    def load(name: str) -> dict[str, Any]:
        content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        if name == "degrade":
            for row in content["rows"]:
                row["backend"] = {"pillow": "variopinta", "numpy": "kornia compiled"}.get(
                    row["backend"], row["backend"]
                )
        return content

    names = "the fastest of OpenCV, albumentations, variopinta, Kornia and Kornia under `torch.compile`"
    assert f"| {names} |" in speed_table.markdown(load)


def test_the_scaling_page_is_that_of_its_record() -> None:
    result = json.loads((RESULTS / "scaling.json").read_text(encoding="utf-8"))
    assert (DOCS / "scaling.md").read_text(encoding="utf-8") == page_module("scaling").render(result), (
        "run `python docs/scaling.py`"
    )


def test_the_scaling_model_counts_the_network_and_the_pairs() -> None:
    facts = scaling.counted()
    head = 2048 * 2048 + 2048 + 2048 * scaling.DIM + scaling.DIM
    assert facts["norms"] == 53
    assert facts["parameters"] == 25_557_032 - (2048 * 1000 + 1000) + head  # torchvision's, without its classifier
    one, many = scaling.step_ms(1, caching=False), scaling.step_ms(64, caching=False)
    rows = scaling.IMAGES * scaling.COMPOSITIONS
    assert one["communicate"] == 0 < many["communicate"]
    assert many["loss"] / one["loss"] == pytest.approx((64 * rows + scaling.POOL) / (rows + scaling.POOL))
    assert one["encode"] == pytest.approx(scaling.step_ms(1, caching=True)["encode"] * 4 / 5)
