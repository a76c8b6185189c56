"""`tidegate policy`: validate, test, apply and show policies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streams.commands.console import (
    EXIT_NO,
    EXIT_OK,
    JsonOption,
    KafkaOption,
    PortOption,
    ProfileOption,
    examples,
    print_json,
    run,
    say,
    show_table,
    sub_app,
)

if TYPE_CHECKING:
    from guards.cases import CaseResult
    from guards.policy import GuardOverride, GuardSettings, Policy
    from streams.policies import PolicyHistory

__all__ = ["app"]

app = sub_app("Validate, test, apply and show policies.")

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A policy file (YAML).")]


@app.command(epilog=examples("tidegate policy validate configs/policies/default.yaml"))
def validate(file: FileArgument, profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Check a policy file: keys, values, rules, guards and their options. Exit code 2 names each fault's key path.

    Guards are loaded (with their models) only where the policy sets options or stages for them, or where they are slow.
    """
    from guards.policy import Policy

    policy = Policy.load(file)
    _check_options(file, policy, profile)
    if as_json:
        print_json({"name": policy.name, "version": policy.version, "guards": list(policy.guards), "ok": True})
    else:
        rules = len(policy.document.rules)
        print(f"{file}: ok: policy {policy.name}, version {policy.version}, {len(policy.guards)} guards, {rules} rules")


def _check_options(file: Path, policy: Policy, profile: str | None) -> None:
    from guards.errors import PolicyError
    from guards.guard import build
    from guards.policy import options_of
    from streams.settings import load_settings

    named: list[tuple[str, str, GuardSettings | GuardOverride]] = [
        (f"guards.{name}", name, settings) for name, settings in policy.guards.items()
    ]
    for number, override in enumerate(policy.document.overrides):
        named += [(f"overrides.{number}.guards.{name}", name, change) for name, change in override.guards.items()]
    slow = policy.slow_guards  # some of their options are required
    tuned = [entry for entry in named if entry[2].options or entry[2].stages or entry[1] in slow]
    if not tuned:
        return
    chosen = load_settings(profile)
    guards = build(sorted({name for _, name, _ in tuned}), chosen.guards, chosen.model_store())
    for path, name, settings in tuned:
        options = {**policy.guards[name].options, **(settings.options or {})}
        options_of(guards[name].options_type, options, f"{path}.options")
        impossible = set(settings.stages or ()) - guards[name].stages
        if impossible:
            raise PolicyError(str(file), [f"{path}.stages: it cannot look at the stage {min(impossible)!r}"])


@app.command(
    "test",
    epilog=examples(
        "tidegate policy test configs/policies/default.yaml", "tidegate policy test my.yaml other.yaml --json"
    ),
)
def run_tests(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Policy files; FILE.cases.yaml lies beside.")],
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a policy's test cases (default.yaml: default.cases.yaml beside it) through the real guards.

    Exit code 1 when a case does not hold.
    """
    from guards.cases import cases_path, load_cases, run_cases
    from guards.engine import Engine
    from guards.guard import build
    from guards.policy import Policy
    from streams.settings import load_settings

    suites = [(file, Policy.load(file), load_cases(cases_path(file))) for file in files]
    names = dict.fromkeys(name for _, policy, _ in suites for name in policy.guards)
    settings = load_settings(profile)
    store = settings.model_store()
    guards = build(names, settings.guards, store)
    results: dict[str, list[CaseResult]] = {}
    for file, policy, cases in suites:
        results[str(file)] = run_cases(Engine(policy, guards=guards, models=store), policy, cases)
    if as_json:
        print_json(results)
    else:
        for file, found in ((file, results[str(file)]) for file in files):
            _show_results(str(file), found)
    failed = any(not result.ok for found in results.values() for result in found)
    raise typer.Exit(EXIT_NO if failed else EXIT_OK)


def _show_results(file: str, results: list[CaseResult]) -> None:
    for result in results:
        if not result.ok:
            print(f"FAILED  {result.name}")
            for problem in result.problems:
                print(f"        {problem}")
    passed = sum(result.ok for result in results)
    print(f"{file}: {passed} of {len(results)} cases hold")


@app.command(
    epilog=examples(
        "tidegate policy apply my-policy.yaml --comment 'stricter for acme'",
        "tidegate policy apply p.yaml --kafka broker:9092",
    )
)
def apply(
    file: FileArgument,
    author: Annotated[str, typer.Option(help="Who applies it. Default: the user of this session.")] = "",
    comment: Annotated[str, typer.Option(help="Why.")] = "",
    port: PortOption = None,
    kafka: KafkaOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a policy and put it in force: workers and sidecars that follow its name take it up within a second.

    The broker is the sidecar's, or --kafka. The file is validated first.
    """
    from guards.policy import Policy
    from streams.commands.sidecar_api import find_kafka
    from streams.policies import apply_policy

    policy = Policy.load(file)
    _check_options(file, policy, profile)

    async def publish() -> None:
        settings, _ = await find_kafka(kafka, port, profile)
        await apply_policy(settings, policy, author=author, comment=comment)

    run(publish())
    if as_json:
        print_json({"name": policy.name, "version": policy.version})
    else:
        print(f"policy {policy.name}, version {policy.version}, is in force")


@app.command(
    epilog=examples("tidegate policy show", "tidegate policy show default --source", "tidegate policy show --json")
)
def show(
    name: Annotated[str | None, typer.Argument(help="One policy. Default: all.")] = None,
    source: Annotated[bool, typer.Option("--source", help="Print the policy file in force (needs NAME).")] = False,
    port: PortOption = None,
    kafka: KafkaOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which version of each policy is in force, and the versions there were. Exit code 1 when there is none."""
    from streams.commands.sidecar_api import find_kafka
    from streams.policies import read_policies

    if source and name is None:
        raise typer.BadParameter("--source needs the NAME of a policy")

    async def read() -> PolicyHistory:
        settings, _ = await find_kafka(kafka, port, profile)
        return await read_policies(settings)

    history = run(read())
    names = [found for found in sorted(history.pointers) if name in {None, found}]
    if not names:
        say("no policy is in force" if name is None else f"no policy {name!r} is in force")
        raise typer.Exit(EXIT_NO)
    if source and name is not None:
        version = history.in_force(name)
        if version is None:
            say(f"the version of {name!r} that is in force is missing from the topic")
            raise typer.Exit(EXIT_NO)
        print(version.source, end="")
    elif as_json:
        print_json(
            [
                {
                    "name": found,
                    "in_force": history.pointers[found].version,
                    "versions": [
                        {"version": v.version, "time": v.time, "author": v.author, "comment": v.comment}
                        for v in history.versions.get(found, ())
                    ],
                }
                for found in names
            ]
        )
    else:
        _show_history(history, names)


def _show_history(history: PolicyHistory, names: list[str]) -> None:
    rows = [
        (name, v.version, "yes" if v.version == history.pointers[name].version else "", v.time, v.author, v.comment)
        for name in names
        for v in history.versions.get(name, ())
    ]
    show_table(("policy", "version", "in force", "time", "author", "comment"), rows)


@app.command("schema", epilog=examples("tidegate policy schema", "tidegate policy schema --check"))
def write_schema(
    out_file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Default: configs/schema.json.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit code 1 when the file is stale.")] = False,
) -> None:
    """Write the JSON Schema of policy files, for editors and CI."""
    from guards.policy import configs_folder
    from streams.schema import policy_schema, write_or_check

    path = out_file or configs_folder() / "schema.json"
    raise typer.Exit(EXIT_OK if write_or_check({path: policy_schema()}, check=check, say=say) else EXIT_NO)
