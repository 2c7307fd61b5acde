"""The README and docs/results.md show what is in benchmarks/results, to the digit."""

import pytest

from benchmarks import speed_table, tables


def test_measured_blocks_are_up_to_date() -> None:
    for path, text in tables.render().items():
        assert path.read_text() == text, f"{path.name}: run `python -m benchmarks.tables`"


def test_replace_block_touches_only_its_block() -> None:
    text = "a\n<!-- begin measured: x -->\nold\n<!-- end measured: x -->\nb\n"
    assert tables.replace_block(text, "x", "new") == text.replace("old", "new")
    with pytest.raises(ValueError, match="markers"):
        tables.replace_block(text, "y", "new")


def test_methods_must_match_between_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(name: str) -> dict[str, object]:
        return {"methods": [{"name": name, "regimes": {}}]}

    monkeypatch.setattr(tables, "load", loaded)
    with pytest.raises(ValueError, match="methods must be those of pcuid"):
        tables.evaluation_table(("srcc",))


def test_speeds_need_their_rows() -> None:
    content = {"name": "loader", "rows": []}
    with pytest.raises(ValueError, match=r"loader\.json: must have rows of 'load'"):
        speed_table._figures(content, "load", "2 loader processes")
