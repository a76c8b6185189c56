"""Every guard that we ship has its page, and the index names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from guards.guard import available

DOCS = Path(__file__).resolve().parents[2] / "docs"
OURS = sorted(name for name, point in available().items() if point.value.startswith("guards."))


@pytest.mark.parametrize("name", OURS)
def test_it_has_a_page_with_what_one_must_know(name: str) -> None:
    page = (DOCS / "guards" / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name}\n")
    for words in (("annot see",), ("easured", "uality"), ("ost", "Speed")):
        assert any(word in page for word in words), f"{name}.md does not say: {words[0]}"
    assert f"(guards/{name}.md)" in (DOCS / "guards.md").read_text(encoding="utf-8")
