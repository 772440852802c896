"""Every variant of the benchmark still finds the text in the code that it replaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import variants


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_a_variant_changes_the_modules_it_names_and_no_others(name: str, tmp_path: Path) -> None:
    variants.copy(tmp_path, variants.VARIANTS[name])  # raises where there is nothing to change
    changed = {each.module for each in variants.VARIANTS[name]}
    for module in ("datapath/splice", "datapath/connection"):
        same = (tmp_path / f"tproxy/{module}.py").read_text() == (variants.TREE / f"{module}.py").read_text()
        assert same == (module not in changed)
