"""Every policy that a page of docs/guards shows is one that loads, options and all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guards.errors import ModelMissingError
from guards.guard import build
from guards.models import ModelStore
from guards.policy import Policy, options_of

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs" / "guards").glob("*.md"))
SNIPPETS = [
    pytest.param(snippet, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, snippet in enumerate(
        re.findall(r"^```yaml\n(guards:.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_policies_in_the_docs_load(snippet: str) -> None:
    policy = Policy.parse(f"name: docs\n{snippet}")
    for name, settings in policy.guards.items():
        try:
            guard = build([name], {}, ModelStore())[name]
        except ModelMissingError as error:
            pytest.skip(str(error))
        options_of(guard.options_type, settings.options, f"guards.{name}.options")
        assert set(settings.stages or ()) <= guard.stages


def test_pages_show_policies() -> None:
    assert SNIPPETS
