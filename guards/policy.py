"""Policies: strict YAML in, decisions out.

A policy says for each guard how it runs (``guards``) and what follows from what it finds (``rules``); ``overrides``
change both for a tenant or a route. Its version is a hash of its content, so two policies that say the same are the
same and a version can never be reused for something else. `Policy.decide` is pure: same input, same output.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from guards.errors import PolicyError
from guards.masking import Operator, replacement
from guards.strict import load_yaml, nearest, problems_of
from guards.text import merge_redactions
from guards.types import (
    Action,
    Failed,
    Finding,
    PolicyRef,
    Reason,
    Redaction,
    Span,
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
    mask: Operator | dict[str, Operator] = Field(
        "replace",
        description="What `redact` leaves: `replace` the kind's name, `mask` asterisks, `hash` the kind's name and a"
        " keyed hash, the same for the same text; for all kinds, or by kind (others: `replace`).",
    )
    shadow: bool = Field(False, description="Decide and record, but do not enforce.")

    @model_validator(mode="after")
    def _masks_what_it_redacts(self) -> GuardRule:
        if self.mask != "replace" and self.action is not Action.REDACT:
            raise ValueError(f"mask goes with the action redact, and this rule's is {self.action}")
        return self

    def mask_of(self, kind: str) -> Operator:
        return self.mask if isinstance(self.mask, str) else self.mask.get(kind, "replace")


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

    def decide(
        self,
        findings: Iterable[Finding],
        failures: Iterable[Failed],
        stage: Stage,
        digest: Callable[[Span], str] | None = None,
    ) -> Verdict:
        """Findings and failures of one stage → a verdict. Call it on a resolved policy. Pure.

        The strictest enforced rule that matches decides. A failure of a guard whose ``on_failure`` says ``block`` is
        a reason to block, with the kind ``failure:<code>``. What shadow rules would have done is listed apart.
        ``digest``: a span → the keyed hash of its text, for rules with ``mask: hash``; without it those replace.
        """
        findings = tuple(findings)
        enforced: list[Reason] = []
        shadowed: list[Reason] = []
        redactions: list[Redaction] = []
        for rule in self.document.rules:
            if stage not in rule.stages:
                continue
            reasons = self._reasons(rule, findings)
            if rule.shadow or self.document.shadow:
                shadowed.extend(reasons)
                continue
            enforced.extend(reasons)
            if rule.action is Action.REDACT:
                redactions.extend(_redaction(rule, span, digest) for reason in reasons for span in reason.spans)
        for failed in failures:
            settings = self.document.guards[failed.guard]
            action = settings.failure_action(stage)
            if action is Action.BLOCK:
                reason = Reason(failed.guard, f"failure:{failed.code}", "on_failure", 1.0, 0.0, action)
                (shadowed if self.document.shadow else enforced).append(reason)
        decision = max((reason.action for reason in enforced), key=lambda a: a.severity, default=Action.ALLOW)
        merged = merge_redactions(redactions) if decision is Action.REDACT else ()
        return Verdict(decision, tuple(enforced), tuple(shadowed), merged)

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


def _redaction(rule: GuardRule, span: Span, digest: Callable[[Span], str] | None) -> Redaction:
    word = replacement(
        rule.mask_of(span.kind), span.kind, span.end - span.start, None if digest is None else partial(digest, span)
    )
    return Redaction(span.location, span.start, span.end, word)


def configs_folder() -> Path:
    """Where the stock configuration lies: beside the packages in a checkout, inside ``streams`` in a wheel."""
    root = Path(__file__).resolve().parent.parent
    for folder in (root / "streams" / "configs", root / "configs"):
        if folder.is_dir():
            return folder
    raise PolicyError("configs", ["the folder with the stock configuration is missing; install the package again"])


def options_of(options_type: type[msgspec.Struct], options: Mapping[str, Any], path: str) -> msgspec.Struct:
    """The typed options of a guard. Raises `PolicyError` with the key path and the nearest right name.

    What a struct's ``__post_init__`` raises as a ``ValueError`` is told with the path of that struct. An override
    replaces option by option, so what is checked there should not depend on two of the outermost options.
    """
    fields = options_type.__struct_encode_fields__
    unknown = [key for key in options if key not in fields]
    if unknown:
        raise PolicyError("policy", [f"{path}.{key}: unknown key{nearest(key, fields)}" for key in unknown])
    try:
        return msgspec.convert(dict(options), options_type)
    except msgspec.ValidationError as error:
        raise PolicyError("policy", [_option_problem(error, options_type, path)]) from error


_MSGSPEC_PLACE = re.compile(r" - at `\$(?P<place>[^`]*)`$")
_MSGSPEC_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`$", re.DOTALL)


def _option_problem(error: msgspec.ValidationError, options_type: type[msgspec.Struct], path: str) -> str:
    """msgspec's message → ``key.path: what is wrong``."""
    message = str(error)
    found = _MSGSPEC_PLACE.search(message)
    keys = re.findall(r"\*|[^.\[\]]+", found["place"].replace("...", "*")) if found else []
    what = message[: found.start()] if found else message
    unknown = _MSGSPEC_UNKNOWN.fullmatch(what)
    if unknown is None:
        own = error.__cause__ is None  # otherwise it is the words of a struct's `__post_init__`
        return f"{'.'.join([path, *keys])}: {what[:1].lower() + what[1:] if own else what}"
    struct = _struct_at(options_type, keys)
    fields = struct.__struct_encode_fields__ if struct else ()
    return f"{'.'.join([path, *keys, unknown['key']])}: unknown key{nearest(unknown['key'], fields)}"


def _struct_at(annotation: Any, keys: Sequence[str]) -> type[msgspec.Struct] | None:
    """The struct that stands at a place within an annotation; indexes and keys of mappings go one level in."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        if not keys:
            return annotation
        return _struct_at(get_type_hints(annotation).get(keys[0]), keys[1:])
    rest = keys[1:] if get_origin(annotation) in (tuple, list, dict) else keys
    found = (_struct_at(argument, rest) for argument in get_args(annotation))
    return next((struct for struct in found if struct is not None), None)
