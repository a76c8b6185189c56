"""The command line: help, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from guards.models import ModelStore
from guards.policy import configs_folder
from streams.cli import app
from streams.dev.ports import free_port
from streams.gateway.checker import Answer

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    ("up",),
    ("sidecar",),
    ("check",),
    ("replay",),
    ("windows",),
    ("doctor",),
    ("eval",),
    ("schema",),
    *(("worker", name) for name in ("checks", "monitor")),
    *(("policy", name) for name in ("validate", "test", "apply", "show", "schema")),
    *(("topics", name) for name in ("create", "list")),
    *(("models", name) for name in ("list", "pull", "build", "verify")),
)


def tidegate(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def write(folder: Path, text: str) -> str:
    path = folder / "policy.yaml"
    path.write_text(text)
    return str(path)


MISSPELT = "name: a\nguards: {toxicity: {treshold: 0.3}}\n"


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_and_exit_codes(command: tuple[str, ...]) -> None:
    result = tidegate(*command, "--help")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert f"tidegate {' '.join(command)}" in text.split("Examples")[-1]
    assert "Exit codes: 0 ok" in text


def test_the_version() -> None:
    assert tidegate("--version").stdout == f"tidegate {version('tidegate')}\n"


def test_help_is_there_at_once() -> None:
    """Under 0.4 s on an idle machine; the best of three, with room for a busy one."""
    fastest_s = 9.9
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "streams.cli", "--help"], cwd=ROOT, capture_output=True, check=True
        )
        fastest_s = min(fastest_s, time.perf_counter() - began)
    assert b"Usage: tidegate" in done.stdout
    assert fastest_s < 1.0


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys, streams.cli; heavy = {'pydantic', 'msgspec', 'faust', 'aiokafka', 'spacy', 'onnxruntime', 'numpy',"
        " 'httpx', 'starlette', 'asyncio'}; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    "command",
    [
        ("policy", "validate"),
        ("policy", "test"),
        ("policy", "apply", "--kafka", "127.0.0.1:9"),
        ("check", "Hello", "--policy"),
        ("sidecar", "--policy-file"),
        ("worker", "checks", "--policy-file"),
        ("worker", "monitor", "--policy-file"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_misspelt_key_ends_with_2_and_its_path(tmp_path: Path, command: tuple[str, ...]) -> None:
    result = tidegate(*command, write(tmp_path, MISSPELT))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "guards.toxicity.treshold: unknown key; did you mean 'threshold'?" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bogus",), "No such command"),
        (("windows", "--horizon", "2m"), "--horizon"),
        (("check", "--question", "x", "y"), "--question goes with --stage response"),
        (("check", "--profile", "missing", "x"), "no profile 'missing'"),
        (("check", "--document", "@/missing/file", "x"), "cannot be read"),
        (("replay", "/missing/file", "--kafka", "127.0.0.1:9"), "cannot be read"),
        (("replay", "x", "--rate", "1", "--max"), "give one of --rate, --speed and --max"),
        (("policy", "show", "--source"), "--source needs the NAME"),
    ],
)
def test_bad_usage_ends_with_2(arguments: tuple[str, ...], said: str) -> None:
    result = tidegate(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("command", [("windows",), ("policy", "show"), ("replay", "FILE")])
def test_a_sidecar_that_does_not_answer_ends_with_3(tmp_path: Path, command: tuple[str, ...]) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text('{"schema": "tidegate.request.v1", "exchange_id": "a", "messages": []}\n')
    arguments = [str(events) if part == "FILE" else part for part in command]
    result = tidegate(*arguments, "--port", str(free_port()))
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "no sidecar answers" in result.stderr
    assert "--port" in result.stderr


@pytest.mark.parametrize("command", [("topics", "create"), ("topics", "list"), ("policy", "show")])
def test_a_broker_that_does_not_answer_ends_with_3(command: tuple[str, ...]) -> None:
    result = tidegate(*command, "--kafka", f"127.0.0.1:{free_port()}")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "127.0.0.1:" in result.stderr


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("streams.settings.load_settings", interrupted)
    result = tidegate("doctor")
    assert result.exit_code == 130
    assert "Traceback" not in result.stderr


def test_a_fault_of_ours_is_not_taken_for_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("streams.settings.load_settings", broken)
    assert isinstance(tidegate("doctor").exception, RuntimeError)


# ---------------------------------------------------------------- check


def checked(model_store: ModelStore, *arguments: str, stdin: str | None = None) -> tuple[Result, dict[str, Any]]:
    result = tidegate("check", "--json", *arguments, stdin=stdin)
    return result, json.loads(result.stdout)


def test_check_answers_as_the_sidecar_does(model_store: ModelStore) -> None:
    result, answer = checked(model_store, "My card is 4111 1111 1111 1111.")
    assert result.exit_code == 0
    assert answer["decision"] == "redact"
    assert answer["messages"] == [{"role": "user", "content": "My card is <CREDIT_CARD>."}]
    assert set(answer) <= set(Answer.__struct_fields__)
    msgspec.convert(answer, Answer)


def test_check_reads_standard_input_and_can_exit_with_1(model_store: ModelStore) -> None:
    result, answer = checked(model_store, "--exit-code", "-", stdin="Write to jane.doe@example.com")
    assert (result.exit_code, answer["decision"]) == (1, "redact")
    result, answer = checked(model_store, "--exit-code", "Good morning.")
    assert (result.exit_code, answer["decision"]) == (0, "allow")
    assert "messages" not in answer


def test_check_looks_at_an_answer_with_its_question_and_documents(model_store: ModelStore, tmp_path: Path) -> None:
    page = tmp_path / "page.txt"
    page.write_text("The lighthouse was built in 1822.")
    asked = ("--stage", "response", "--question", "When was it built?", "--document", f"@{page}")
    _, answer = checked(model_store, *asked, "The lighthouse was built in 1822.")
    assert {"hallucination", "relevance"} <= set(answer["coverage"]["scanned"])
    _, answer = checked(model_store, "--stage", "response", "The lighthouse was built in 1822.")
    assert {item["guard"]: item["code"] for item in answer["coverage"]["failed"]}["relevance"] == "request_missing"


def test_check_shows_a_table_for_people(model_store: ModelStore) -> None:
    result = tidegate("check", "Write to jane.doe@example.com [bold]")
    assert result.stdout.startswith("decision: redact")
    assert "redact-pii" in result.stdout
    assert "redacted: Write to <EMAIL_ADDRESS> [bold]" in result.stdout


# ---------------------------------------------------------------- policy, models, doctor


def test_validate_names_the_policy_and_its_version() -> None:
    result = tidegate("policy", "validate", str(configs_folder() / "policies" / "default.yaml"))
    assert result.exit_code == 0
    assert "policy default, version " in result.stdout


def test_validate_looks_at_the_options_of_guards(model_store: ModelStore, tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\nguards: {pii: {options: {kindz: [PERSON]}}}\n")
    result = tidegate("policy", "validate", path)
    assert result.exit_code == 2
    assert "guards.pii.options.kindz: unknown key; did you mean 'kinds'?" in result.stderr
    path = write(tmp_path, "name: a\nguards: {injection: {stages: [response]}}\n")
    result = tidegate("policy", "validate", path)
    assert result.exit_code == 2
    assert "guards.injection.stages: it cannot look at the stage 'response'" in result.stderr


def test_a_case_that_does_not_hold_ends_with_1(model_store: ModelStore, tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\nguards: {pii: {}}\nrules: [{name: r, guard: pii, action: flag}]\n")
    (tmp_path / "policy.cases.yaml").write_text(
        "- {name: holds, text: Good morning., expect: {decision: allow}}\n"
        "- {name: does not, text: Write to jane.doe@example.com., expect: {decision: redact}}\n"
    )
    result = tidegate("policy", "test", path)
    assert result.exit_code == 1
    assert "FAILED  does not" in result.stdout
    assert "the decision is flag, expected redact: r (EMAIL_ADDRESS " in result.stdout
    assert "1 of 2 cases hold" in result.stdout
    told = json.loads(tidegate("policy", "test", path, "--json").stdout)
    assert [case["ok"] for case in told[path]] == [True, False]


def test_a_policy_without_cases_ends_with_2(tmp_path: Path) -> None:
    result = tidegate("policy", "test", write(tmp_path, "name: a\n"))
    assert result.exit_code == 2
    assert "policy.cases.yaml: cannot be read" in result.stderr


def test_an_empty_model_store_ends_with_1_and_names_the_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIDEGATE_MODELS", str(tmp_path))
    result = tidegate("models", "list", "--json")
    assert result.exit_code == 1
    assert "missing" in {model["state"] for model in json.loads(result.stdout)}
    assert "run `tidegate models pull`" in result.stderr
    assert tidegate("check", "Hello").exit_code == 2


def test_doctor_tells_what_is_not_well_and_never_the_key(
    monkeypatch: pytest.MonkeyPatch, model_store: ModelStore
) -> None:
    monkeypatch.setenv("TIDEGATE_HASH_KEY", "a-secret-key-of-32-characters-xx")
    port = str(free_port())
    result = tidegate(
        "doctor", "--json", "--kafka", f"127.0.0.1:{port}", "--redis", f"redis://127.0.0.1:{port}/0", "--port", port
    )
    found = {item["check"]: item for item in json.loads(result.stdout)}
    assert result.exit_code == 1
    assert [name for name, item in found.items() if not item["ok"]] == ["broker", "store", "sidecar"]
    assert all(item["fix"] for item in found.values() if not item["ok"])
    assert found["event loop"]["ok"]
    assert "a-secret-key" not in result.stdout + result.stderr
