"""`tidegate eval`: keys of the JSON, bad usage, backends of a profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from guards.models import ModelStore
from streams.cli import app

FIGURES = "precision recall specificity f1 f2 ap auc char span mrr map recall_at_1"
KEYS = f"guard n threshold {FIGURES} by_label by_language intervals texts_per_s p50_ms p95_ms failures"
SECRET = "the key is AKIA" + "Q3EGRV2TNMZ5WXYB and no other"
ROWS = [
    {"text": SECRET, "label": 1, "language": "en"},
    {"text": "Nothing to see here.", "label": 0, "language": "en"},
    {"text": "Hier auch nicht.", "label": 0, "language": "de"},
]


def evaluate(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["eval", *arguments])


def write(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def test_the_keys_of_the_json(tmp_path: Path) -> None:
    result = evaluate("secrets", write(tmp_path, ROWS), "--json", "--suggest", "precision=0.95")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert set(KEYS.split()) <= set(told)
    assert (told["guard"], told["n"], told["recall"], told["specificity"]) == ("secrets", 3, 1.0, 1.0)
    assert set(told["by_language"]) == {"de", "en"}
    assert told["by_language"]["de"]["recall"] is None
    assert told["suggestions"][0]["precision"] == 1.0
    assert (told["char"], told["mrr"]) == (None, None)
    assert SECRET not in result.output


def test_places(tmp_path: Path, model_store: ModelStore) -> None:
    text = "Write to jane.doe@example.com"
    row = {"text": text, "spans": [{"start": 9, "end": len(text), "label": "EMAIL_ADDRESS"}]}
    told = json.loads(evaluate("pii", write(tmp_path, [row]), "--json").stdout)
    assert told["char"] == told["span"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "f2": 1.0}
    assert told["by_label"]["EMAIL_ADDRESS"]["same"]["f2"] == 1.0
    assert set(told["intervals"]["span"]) == {"precision", "recall", "f1", "f2"}
    told = json.loads(evaluate("pii", write(tmp_path, [row]), "--json", "--options", '{"kinds": ["PERSON"]}').stdout)
    assert told["char"]["recall"] == 0.0


def test_a_table_for_people_and_several_files(tmp_path: Path) -> None:
    first, second = write(tmp_path, ROWS, "a.jsonl"), write(tmp_path, ROWS[1:], "b.jsonl")
    result = evaluate("secrets", first, second)
    assert result.exit_code == 0
    assert "secrets from 0.5 on: 5 rows" in result.stdout
    assert all(word in result.stdout for word in ("95 % interval", "a.jsonl", "b.jsonl", "specificity", "texts/s"))


def test_a_kind_that_was_never_found_is_told(tmp_path: Path) -> None:
    result = evaluate("secrets", write(tmp_path, ROWS), "--kind", "none_such")
    assert result.exit_code == 0
    assert "no finding was of the kind 'none_such'; there were " in result.stderr


def test_failures_are_told_and_end_with_1_when_nothing_could_be_seen(tmp_path: Path, model_store: ModelStore) -> None:
    result = evaluate("relevance", write(tmp_path, [ROWS[1]]), "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert (told["n"], told["failures"], told["failures_by_code"]) == (1, 1, {"request_missing": 1})
    assert told["recall"] is told["specificity"] is None
    assert "relevance could not look at 1 of 1 rows: request_missing 1" in result.stderr


def test_the_threshold_is_the_lowest_at_which_the_policy_acts(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    rules = ", ".join(f"{{name: r{t}, guard: secrets, threshold: 0.{t}, action: flag}}" for t in (8, 3, 5))
    policy.write_text(f"name: a\nguards: {{secrets: {{}}}}\nrules: [{rules}]\n")
    rows = write(tmp_path, ROWS)
    assert json.loads(evaluate("secrets", rows, "--json", "--policy", str(policy)).stdout)["threshold"] == 0.3
    policy.write_text("name: a\nguards: {secrets: {threshold: 0.6}}\n")
    assert json.loads(evaluate("secrets", rows, "--json", "--policy", str(policy)).stdout)["threshold"] == 0.6
    told = evaluate("secrets", rows, "--json", "--policy", str(policy), "--threshold", "0.9").stdout
    assert json.loads(told)["threshold"] == 0.9


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("toxicitie", "ROWS"), "no guard is called 'toxicitie'; did you mean 'toxicity'?"),
        (("secrets", "/missing.jsonl"), "/missing.jsonl: cannot be read"),
        (("secrets", "ROWS", "--suggest", "f1=0.5"), "expected precision=…, recall=… or fpr=…"),
        (("secrets", "ROWS", "--field", "text"), "expected OURS=THEIRS"),
        (("secrets", "ROWS", "--options", "[1]"), "--options: expected a JSON object"),
        (("pii", "ROWS", "--options", '{"kindz": []}'), "guards.pii.options.kindz: unknown key; did you mean 'kinds'?"),
        (("toxicity", "ROWS", "--guard-options", '{"backend": "detoxify"}'), "guards.toxicity: "),
        (
            ("toxicity", "ROWS", "--guard-options", '{"backend": "none"}'),
            "guards.toxicity.backend: invalid enum value 'none'",
        ),
        (("injection", "ROWS", "--stage", "response"), "cannot look at the stage 'response'"),
        (("secrets", "BAD"), "rows.jsonl:2: Object missing required field `label`"),
        (("secrets",), "Missing argument 'FILE…'"),
    ],
)
def test_bad_usage_ends_with_2(tmp_path: Path, model_store: ModelStore, arguments: tuple[str, ...], said: str) -> None:
    rows = [ROWS[0], {"text": "x"}] if "BAD" in arguments else ROWS
    path = write(tmp_path, rows)
    result = evaluate(*(path if part in ("ROWS", "BAD") else part for part in arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
