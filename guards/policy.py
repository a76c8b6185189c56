"""Policies: strict YAML in, decisions out.

A policy says for each guard how it runs (``guards``) and what follows from what it finds (``rules``); ``overrides``
change both for a tenant or a route. Its version is a hash of its content, so two policies that say the same are the
same and a version can never be reused for something else. `Policy.decide` is pure: same input, same output.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from guards.errors import PolicyError
from guards.strict import load_yaml, nearest, problems_of
from guards.text import merge_redactions
from guards.types import (
    Action,
    Failed,
    Finding,
    PolicyRef,
    Reason,
    Redaction,
    Stage,
    Verdict,
)

__all__ = [
    "GuardRule",
    "GuardSettings",
    "Override",
    "Policy",
    "PolicyDocument",
    "Selector",
    "configs_folder",
    "options_of",
]

OnFailure = Literal["allow", "block"]
STAGES: tuple[Stage, ...] = ("request", "response")

MAX_POLICY_BYTES = 1_048_576
"""A policy travels as one Kafka record; real ones have a few kilobytes."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GuardSettings(_Strict):
    """How a guard runs. Everything may be left out."""

    stages: tuple[Stage, ...] | None = Field(None, description="Stages at which it looks; default: all that it can.")
    threshold: float = Field(
        0.5, ge=0, le=1, description="Score from which its findings count, unless a rule says other."
    )
    on_failure: OnFailure | dict[Stage, OnFailure] = Field(
        "allow", description="What it means that this guard could not look: for both stages, or by stage."
    )
    inline: bool = Field(True, description="Runs in the sidecar (modes local and hybrid), not only over the stream.")
    options: dict[str, Any] = Field(default_factory=dict, description="The guard's own options (docs/guards.md).")

    def failure_action(self, stage: Stage) -> Action:
        word = self.on_failure if isinstance(self.on_failure, str) else self.on_failure.get(stage, "allow")
        return Action(word)


class GuardRule(_Strict):
    """What follows from a guard's findings. The strictest matching rule decides; all that match are reasons."""

    name: str = Field(min_length=1, max_length=100)
    guard: str
    kinds: tuple[str, ...] | None = Field(None, description="Kinds of findings; default: all.")
    stages: tuple[Stage, ...] = Field(STAGES, description="Stages; default: both.")
    threshold: float | None = Field(None, ge=0, le=1, description="Default: the guard's.")
    action: Action
    shadow: bool = Field(False, description="Decide and record, but do not enforce.")


class Selector(_Strict):
    """Which exchanges an override is for; several keys must all match."""

    tenant: str | tuple[str, ...] | None = None
    route: str | tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Selector:
        if self.tenant is None and self.route is None:
            raise ValueError("name a tenant or a route")
        return self

    def matches(self, tenant: str, route: str) -> bool:
        return _matches(self.tenant, tenant) and _matches(self.route, route)


def _matches(wanted: str | tuple[str, ...] | None, value: str) -> bool:
    if wanted is None:
        return True
    return value == wanted if isinstance(wanted, str) else value in wanted


class GuardOverride(_Strict):
    """Like `GuardSettings`, but only what is written changes."""

    stages: tuple[Stage, ...] | None = None
    threshold: float | None = Field(None, ge=0, le=1)
    on_failure: OnFailure | dict[Stage, OnFailure] | None = None
    inline: bool | None = None
    options: dict[str, Any] | None = None


class Override(_Strict):
    """Changes for some tenants or routes; later overrides win. A rule replaces the rule of its name, or is added."""

    when: Selector
    guards: dict[str, GuardOverride] = Field(default_factory=dict)
    rules: tuple[GuardRule, ...] = ()
    without_rules: tuple[str, ...] = Field((), description="Names of rules that do not apply here.")


class PolicyDocument(_Strict):
    """A policy file."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    description: str = ""
    shadow: bool = Field(False, description="The whole policy decides and is recorded, but is not enforced.")
    guards: dict[str, GuardSettings] = Field(default_factory=dict)
    rules: tuple[GuardRule, ...] = ()
    overrides: tuple[Override, ...] = ()

    @field_validator("rules")
    @classmethod
    def _names_are_unique(cls, rules: tuple[GuardRule, ...]) -> tuple[GuardRule, ...]:
        names = [rule.name for rule in rules]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two rules are named {name!r}")
        return rules


class Policy:
    """A validated policy. Make one with `load` (a file), `parse` (its text) or `default`.

    ``name`` and ``version`` (12 hex digits over the content) go into every decision.
    """

    def __init__(self, document: PolicyDocument, source: str = "") -> None:
        self.document = document
        self.source = source
        self.name = document.name
        canonical = json.dumps(document.model_dump(mode="json"), sort_keys=True, ensure_ascii=True)
        self.version = hashlib.sha256(canonical.encode()).hexdigest()[:12]
        self._resolved: dict[tuple[str, str], Policy] = {}

    @cached_property
    def ref(self) -> PolicyRef:
        return PolicyRef(self.name, self.version)

    # ------------------------------------------------------------ making one

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read and check a file. Raises `PolicyError` with one line per fault."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PolicyError(str(path), [f"cannot be read: {error}"]) from error
        return cls.parse(text, source=str(path))

    @classmethod
    def parse(cls, text: str, source: str = "policy") -> Policy:
        """Check the text of a policy file. Raises `PolicyError` with one line per fault, each with its key path."""
        if len(text.encode("utf-8", "surrogatepass")) > MAX_POLICY_BYTES:
            raise PolicyError(source, [f"larger than {MAX_POLICY_BYTES} bytes"])
        data = load_yaml(text, source)
        if not isinstance(data, dict):
            raise PolicyError(source, ["expected a mapping with the keys name, guards and rules"])
        try:
            document = PolicyDocument.model_validate(data)
        except ValidationError as error:
            raise PolicyError(source, problems_of(error, PolicyDocument)) from error
        policy = cls(document, text)
        problems = policy._problems()
        if problems:
            raise PolicyError(source, problems)
        return policy

    @classmethod
    def default(cls) -> Policy:
        """The stock policy, ``configs/policies/default.yaml``."""
        return cls.load(configs_folder() / "policies" / "default.yaml")

    def _problems(self) -> list[str]:
        from guards.guard import available

        known = available()
        named = [(f"guards.{name}", name) for name in self.document.guards]
        named += [(f"rules.{i}.guard", rule.guard) for i, rule in enumerate(self.document.rules)]
        rule_names = {rule.name for rule in self.document.rules}
        problems = []
        for i, override in enumerate(self.document.overrides):
            named += [(f"overrides.{i}.guards.{name}", name) for name in override.guards]
            named += [(f"overrides.{i}.rules.{j}.guard", rule.guard) for j, rule in enumerate(override.rules)]
            problems += [
                f"overrides.{i}.without_rules: no rule is named {name!r}{nearest(name, rule_names)}"
                for name in override.without_rules
                if name not in rule_names
            ]
        for path, name in named:
            if name not in known:
                problems.append(f"{path}: no guard is called {name!r}{nearest(name, known)}")
            elif name not in self.document.guards:
                problems.append(f"{path}: the guard {name!r} is not switched on; add it under guards")
        return problems

    # ------------------------------------------------------------ using it

    @property
    def guards(self) -> Mapping[str, GuardSettings]:
        """The guards that run, by name, with their settings."""
        return self.document.guards

    @cached_property
    def slow_guards(self) -> frozenset[str]:
        """Those of the guards that are slow: they run in `tidegate worker slow` only."""
        from guards.guard import slow_names

        return slow_names() & self.document.guards.keys()

    def resolve(self, tenant: str, route: str) -> Policy:
        """The policy as it applies to a tenant and a route: overrides merged, same name and version."""
        if not self.document.overrides:
            return self
        applying = tuple(o for o in self.document.overrides if o.when.matches(tenant, route))
        if not applying:
            return self
        key = (tenant, route)
        resolved = self._resolved.get(key)
        if resolved is None:
            resolved = self._merge(applying)
            if len(self._resolved) < 10_000:  # tenants times routes; made-up names must not grow the memory
                self._resolved[key] = resolved
        return resolved

    def _merge(self, overrides: Sequence[Override]) -> Policy:
        guards = dict(self.document.guards)
        rules = {rule.name: rule for rule in self.document.rules}
        for override in overrides:
            for name, change in override.guards.items():
                written = {key: getattr(change, key) for key in change.model_fields_set}
                if "options" in written:
                    written["options"] = {**guards[name].options, **(written["options"] or {})}
                guards[name] = guards[name].model_copy(update=written)
            for name in override.without_rules:
                rules.pop(name, None)
            rules.update({rule.name: rule for rule in override.rules})
        document = self.document.model_copy(update={"guards": guards, "rules": tuple(rules.values()), "overrides": ()})
        merged = Policy(document, self.source)
        merged.version = self.version
        return merged

    def threshold(self, rule: GuardRule) -> float:
        return self.document.guards[rule.guard].threshold if rule.threshold is None else rule.threshold

    def decide(self, findings: Iterable[Finding], failures: Iterable[Failed], stage: Stage) -> Verdict:
        """Findings and failures of one stage → a verdict. Call it on a resolved policy. Pure.

        The strictest enforced rule that matches decides. A failure of a guard whose ``on_failure`` says ``block`` is
        a reason to block, with the kind ``failure:<code>``. What shadow rules would have done is listed apart.
        """
        findings = tuple(findings)
        enforced: list[Reason] = []
        shadowed: list[Reason] = []
        for rule in self.document.rules:
            if stage not in rule.stages:
                continue
            target = shadowed if rule.shadow or self.document.shadow else enforced
            target.extend(self._reasons(rule, findings))
        for failed in failures:
            settings = self.document.guards[failed.guard]
            action = settings.failure_action(stage)
            if action is Action.BLOCK:
                reason = Reason(failed.guard, f"failure:{failed.code}", "on_failure", 1.0, 0.0, action)
                (shadowed if self.document.shadow else enforced).append(reason)
        decision = max((reason.action for reason in enforced), key=lambda a: a.severity, default=Action.ALLOW)
        redactions: tuple[Redaction, ...] = ()
        if decision is Action.REDACT:
            redactions = merge_redactions(
                Redaction(span.location, span.start, span.end, f"<{span.kind}>")
                for reason in enforced
                if reason.action is Action.REDACT
                for span in reason.spans
            )
        return Verdict(decision, tuple(enforced), tuple(shadowed), redactions)

    def _reasons(self, rule: GuardRule, findings: tuple[Finding, ...]) -> list[Reason]:
        threshold = self.threshold(rule)
        by_kind: dict[str, list[Finding]] = {}
        for finding in findings:
            if finding.guard != rule.guard or finding.score < threshold:
                continue
            if rule.kinds is None or finding.kind in rule.kinds:
                by_kind.setdefault(finding.kind, []).append(finding)
        return [
            Reason(
                guard=rule.guard,
                kind=kind,
                rule=rule.name,
                score=max(f.score for f in matching),
                threshold=threshold,
                action=rule.action,
                spans=tuple(dict.fromkeys(span for f in matching for span in f.spans)),
            )
            for kind, matching in by_kind.items()
        ]


def configs_folder() -> Path:
    """Where the stock configuration lies: beside the packages in a checkout, inside ``streams`` in a wheel."""
    root = Path(__file__).resolve().parent.parent
    for folder in (root / "streams" / "configs", root / "configs"):
        if folder.is_dir():
            return folder
    raise PolicyError("configs", ["the folder with the stock configuration is missing; install the package again"])


def options_of(options_type: type[msgspec.Struct], options: Mapping[str, Any], path: str) -> msgspec.Struct:
    """The typed options of a guard. Raises `PolicyError` with the key path and the nearest right name."""
    fields = options_type.__struct_fields__
    unknown = [key for key in options if key not in fields]
    if unknown:
        raise PolicyError("policy", [f"{path}.{key}: unknown key{nearest(key, fields)}" for key in unknown])
    try:
        return msgspec.convert(dict(options), options_type)
    except msgspec.ValidationError as error:
        raise PolicyError("policy", [f"{path}: {error}"]) from error
