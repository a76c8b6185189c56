"""The code guard: what it finds in labelled texts, where, and what must not look like code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from guards.artifacts import Artifacts
from guards.code import KINDS, MAX_CHARS, MAX_PASSAGES, CodeGuard, Options, build
from guards.errors import ConfigError
from guards.guard import Result
from guards.models import ModelStore
from guards.policy import options_of
from guards.text import texts_of
from guards.types import Exchange, Failure, FailureCode, Message, ToolCall, Unit

SAMPLES = yaml.safe_load((Path(__file__).parent / "data" / "code.yaml").read_text(encoding="utf-8"))
CODE = [sample for half in SAMPLES.values() for sample in half["code"]]
NONE = [text for half in SAMPLES.values() for text in half["none"]]


@pytest.fixture(scope="module")
def guard() -> CodeGuard:
    return build({}, ModelStore())


def check(guard: CodeGuard, *answers: Message, **options: Any) -> Result:
    exchange = Exchange(response=answers)
    unit = Unit(texts_of(exchange, "response"), exchange, "response")
    typed = options_of(Options, options, "options")
    (result,) = guard.check([unit], typed, Artifacts(None, None))
    return result


def found(guard: CodeGuard, text: str, least: float = 0.5, **options: Any) -> list[tuple[str, str]]:
    result = check(guard, Message("assistant", text), **options)
    assert not isinstance(result, Failure)
    assert all(hit.kind in KINDS for hit in result)
    return [
        (hit.kind, "".join(text[part.start : part.end] for part in hit.ranges)) for hit in result if hit.score >= least
    ]


@pytest.mark.parametrize(("language", "text"), CODE)
def test_finds_code(guard: CodeGuard, language: str, text: str) -> None:
    assert found(guard, text)


def test_tells_the_language_of_nine_in_ten(guard: CodeGuard) -> None:
    right = sum(f"code_{language}" in {kind for kind, _ in found(guard, text)} for language, text in CODE)
    assert right >= 0.9 * len(CODE)


@pytest.mark.parametrize("text", NONE)
def test_prose_data_and_formulas_are_no_code(guard: CodeGuard, text: str) -> None:
    assert found(guard, text) == []


def test_code_within_prose_is_marked_and_the_prose_is_not(guard: CodeGuard) -> None:
    code = "def area(radius):\n    return 3.14 * radius ** 2"
    assert found(guard, f"🙂 Sure, this is how.\n\n{code}\n\nCall it with a number, and 🎉.") == [("code_python", code)]


def test_a_labelled_block_is_marked_inside_its_fences(guard: CodeGuard) -> None:
    assert found(guard, "Here:\n```rust\nx\n```\n", least=0.9) == [("code_rust", "x\n")]
    assert found(guard, "1. Here:\n   ```sql\n   select 1\n", least=0.9) == [("code_sql", "   select 1\n")]


def test_blocks_of_data_are_no_code(guard: CodeGuard) -> None:
    for label in ("json", "yaml", "text", "markdown", "mermaid"):
        assert found(guard, f"```{label}\nimport os\nprint(os.getcwd())\n```", least=0.0) == []


def test_a_command_within_a_sentence_is_a_mention_with_a_low_score(guard: CodeGuard) -> None:
    assert found(guard, "To update, use `git pull` now.") == []
    assert found(guard, "To update, use `git pull` now.", least=0.2) == [("code_shell", "git pull")]


def test_languages_that_do_not_count_are_left_out(guard: CodeGuard) -> None:
    text = "```python\nx = 1\n```\n\n```bash\nls -l\n```\n"
    assert found(guard, text, languages=["shell"]) == [("code_shell", "ls -l\n")]


@pytest.mark.parametrize(
    ("text", "missing"),
    [("Here it is:\n```python\nprint(1)\n```", False), ("I cannot write code.", True), ("", True)],
)
def test_code_may_be_required(guard: CodeGuard, text: str, missing: bool) -> None:
    result = check(guard, Message("assistant", text), require=True)
    (hit,) = [hit for hit in result if hit.kind == "no_code"]  # type: ignore[union-attr]
    assert (hit.score >= 0.5) is missing


def test_required_code_may_be_in_any_part_of_an_answer_and_not_in_a_tool_call(guard: CodeGuard) -> None:
    parts = [{"type": "text", "text": "Here:"}, {"type": "text", "text": "```python\nprint(1)\n```"}]
    call = Message("assistant", tool_calls=[ToolCall()])
    result = check(guard, call, Message("assistant", parts), Message("assistant", "No."), require=True)
    assert [hit.score for hit in result if hit.kind == "no_code"] == [0.0, 1.0]  # type: ignore[union-attr]


def test_what_is_found_is_bounded(guard: CodeGuard) -> None:
    text = "import os\n\n\n\n" * 9_000
    assert len(found(guard, text)) == MAX_PASSAGES


def test_an_exchange_with_a_text_over_the_cap_is_refused(guard: CodeGuard) -> None:
    assert check(guard, Message("assistant", "a" * (MAX_CHARS + 1))) == Failure(FailureCode.INPUT_TOO_LARGE)


@given(st.text("`~ \n{}();=#$defimport\"'é🙂\0\ud800"))
def test_takes_any_text(guard: CodeGuard, text: str) -> None:
    for kind, _ in found(guard, text, least=0.0):
        assert kind in KINDS


def test_unknown_languages_are_refused_with_the_policy() -> None:
    with pytest.raises(ConfigError, match=r"options: languages: 'pyton' is not known; did you mean 'python'"):
        options_of(Options, {"languages": ["pyton"]}, "options")
