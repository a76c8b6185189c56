"""Secrets: keys, tokens and passwords, through detect-secrets' plugins and patterns for what these do not know.

The plugins are called in-process on lines of text: no files, no settings, and above all no verification, which would
send what looks like a secret to somebody's server. A plugin runs only where a text holds the few characters without
which it cannot match.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import re2
from detect_secrets.filters import heuristic
from detect_secrets.plugins import high_entropy_strings, keyword
from detect_secrets.plugins.artifactory import ArtifactoryDetector
from detect_secrets.plugins.aws import AWSKeyDetector
from detect_secrets.plugins.azure_storage_key import AzureStorageKeyDetector
from detect_secrets.plugins.basic_auth import BasicAuthDetector
from detect_secrets.plugins.cloudant import CloudantDetector
from detect_secrets.plugins.discord import DiscordBotTokenDetector
from detect_secrets.plugins.github_token import GitHubTokenDetector
from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
from detect_secrets.plugins.ibm_cloud_iam import IbmCloudIamDetector
from detect_secrets.plugins.ibm_cos_hmac import IbmCosHmacDetector
from detect_secrets.plugins.jwt import JwtTokenDetector
from detect_secrets.plugins.mailchimp import MailchimpDetector
from detect_secrets.plugins.npm import NpmDetector
from detect_secrets.plugins.openai import OpenAIDetector
from detect_secrets.plugins.pypi_token import PypiTokenDetector
from detect_secrets.plugins.sendgrid import SendGridDetector
from detect_secrets.plugins.slack import SlackDetector
from detect_secrets.plugins.softlayer import SoftlayerDetector
from detect_secrets.plugins.square_oauth import SquareOAuthDetector
from detect_secrets.plugins.stripe import StripeDetector
from detect_secrets.plugins.telegram_token import TelegramBotTokenDetector
from detect_secrets.plugins.twilio import TwilioKeyDetector

from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.pii.found import Places
from guards.policy import options_of
from guards.types import Failure, FailureCode, Hit, Range, Stage, Unit

if TYPE_CHECKING:
    from guards.artifacts import Artifacts
    from guards.models import ModelStore

__all__ = ["KINDS", "SecretsGuard", "build"]


PATTERN_SCORE: Final = 0.95  # a format that only a key of this service has
WEAK_PATTERN_SCORE: Final = 0.7  # a format that other things have too
KEYWORD_SCORE: Final = 0.7  # something is called a password
ENTROPY_SCORE: Final = 0.4  # random characters in quotes: under every sensible threshold, for the record
BARE_ENTROPY_SCORE: Final = 0.3  # … without quotes

SEGMENT_CHARS: Final = 1_024
"""Lines are cut into pieces of this length: some of the plugins' patterns take time quadratic in a line."""

OVERLAP_CHARS: Final = 256  # pieces overlap by the longest secret that is still found whole

MIN_SECRET_CHARS: Final = 8  # shorter passwords are found, but a bare `pwd=x` is not one
MIN_ENTROPY_CHARS: Final = 20


class _Found(msgspec.Struct, frozen=True):
    kind: str
    start: int
    end: int
    score: float


class _Plugin(msgspec.Struct, frozen=True):
    """A detect-secrets plugin made of patterns.

    ``needs``: one of these must be in the text, else the plugin cannot match (lower case: in the text's lower case).
    ``value``: whether a pattern's last group is the secret and the rest is its surroundings (an assignment, a link).
    """

    kind: str
    plugin: Callable[[], Any]
    needs: tuple[str, ...]
    value: bool = False
    lower: bool = False
    score: float = PATTERN_SCORE


_PLUGINS: Final = (
    _Plugin("artifactory", ArtifactoryDetector, ("AKC", "AP"), score=WEAK_PATTERN_SCORE),
    _Plugin("aws_key", AWSKeyDetector, ("a3t", "abia", "acca", "akia", "asia", "aws"), value=True, lower=True),
    _Plugin("azure_storage_key", AzureStorageKeyDetector, ("AccountKey=",)),
    _Plugin("basic_auth", BasicAuthDetector, ("://",), value=True),
    _Plugin("cloudant", CloudantDetector, ("cl", "clou"), value=True, lower=True),
    _Plugin("discord_token", DiscordBotTokenDetector, (".",), score=WEAK_PATTERN_SCORE),
    _Plugin("github_token", GitHubTokenDetector, ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    _Plugin("gitlab_token", GitLabTokenDetector, ("gl", "GR1348941")),
    _Plugin("ibm_cloud_key", IbmCloudIamDetector, ("key", "pwd", "pass", "token"), value=True, lower=True),
    _Plugin("ibm_cos_hmac", IbmCosHmacDetector, ("secret",), value=True, lower=True),
    _Plugin("mailchimp_key", MailchimpDetector, ("-us",)),
    _Plugin("npm_token", NpmDetector, (":_authToken=",), value=True),
    _Plugin("openai_token", OpenAIDetector, ("T3BlbkFJ",)),
    _Plugin("pypi_token", PypiTokenDetector, ("pypi-",)),
    _Plugin("sendgrid_key", SendGridDetector, ("SG.",)),
    _Plugin("slack_token", SlackDetector, ("xox", "hooks.slack.com"), lower=True),
    _Plugin("softlayer", SoftlayerDetector, ("softlayer", "sl"), value=True, lower=True),
    _Plugin("square_oauth", SquareOAuthDetector, ("sq0csp-",)),
    _Plugin("stripe_key", StripeDetector, ("k_live_",)),
    _Plugin("telegram_token", TelegramBotTokenDetector, (":",), score=WEAK_PATTERN_SCORE),
    _Plugin("twilio_key", TwilioKeyDetector, ("AC", "SK"), score=WEAK_PATTERN_SCORE),
)

# What the plugins lack: the keys of LLM services, newer tokens, Google's. RE2: linear time on any text.
_PATTERNS: Final[Mapping[str, str]] = {
    "openai_token": r"\bsk-(?:proj-|svcacct-|admin-|None-)?[A-Za-z0-9_-]{20,200}",
    "anthropic_key": r"\bsk-ant-[a-z0-9]+-[A-Za-z0-9_-]{20,200}",
    "openrouter_key": r"\bsk-or-v1-[0-9a-f]{48,64}",
    "huggingface_token": r"\b(?:hf_[A-Za-z0-9]{30,64}|api_org_[A-Za-z0-9]{30,64})",
    "google_api_key": r"\bAIza[0-9A-Za-z_-]{35}",
    "google_oauth": r"\b(?:ya29\.[0-9A-Za-z_-]{20,500}|GOCSPX-[0-9A-Za-z_-]{28})",
    "github_token": r"\b(?:github_pat_[0-9A-Za-z_]{50,200}|gh[pousr]_[0-9A-Za-z]{36,255})",
    "slack_token": r"\bxox[a-z]-[0-9A-Za-z-]{10,250}|\bxapp-\d-[0-9A-Z]+-\d+-[0-9a-f]{32,128}",
    "groq_key": r"\bgsk_[0-9A-Za-z]{40,64}",
    "replicate_token": r"\br8_[0-9A-Za-z]{37}",
    "xai_key": r"\bxai-[0-9A-Za-z]{60,100}",
    "perplexity_key": r"\bpplx-[0-9A-Za-z]{40,64}",
    "langsmith_key": r"\blsv2_(?:pt|sk)_[0-9a-f]{32}_[0-9a-f]{10}",
    "stripe_key": r"\b(?:sk|rk)_(?:live|test)_[0-9A-Za-z]{16,247}|\bwhsec_[0-9A-Za-z+/]{32,64}",
    "digitalocean_token": r"\bdo[opr]_v1_[0-9a-f]{64}",
    "npm_token": r"\bnpm_[0-9A-Za-z]{36}",
    "databricks_token": r"\bdapi[0-9a-f]{32}",
    "age_key": r"\bAGE-SECRET-KEY-1[0-9A-Z]{58}",
    "jwt": r"\beyJ[0-9A-Za-z_=-]{8,}\.[0-9A-Za-z_=-]{4,}(?:\.[0-9A-Za-z_=-]*)?",
    # Up to the end of the text where the end of the block was cut off.
    "private_key": r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"(?s:.*?)(?:-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|\z)"
    r"|---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----(?s:.*?)(?:---- END SSH2 ENCRYPTED PRIVATE KEY ----|\z)"
    r"|PuTTY-User-Key-File-[23]:(?s:.*?)(?:Private-MAC: ?[0-9a-f]+|\z)",
}

# One word of this must be in a text for one of the patterns above to match.
_PATTERN_GATE: Final = (
    r"sk-|hf_|api_org_|AIza|ya29\.|GOCSPX|github_pat_|gh[pousr]_|xox[a-z]-|xapp-|gsk_|r8_|xai-|pplx-|lsv2_|[sr]k_|whsec_"
    r"|_v1_|npm_|dapi|AGE-|eyJ|PRIVATE KEY|PuTTY"
)

# And one run of this, or one of these words, for anything at all.
_ANY_GATE: Final = (
    r"[A-Za-z0-9+/_=-]{16}|://|(?i:key|pass|pwd|secret|contrase|token)|PRIVATE KEY|PuTTY|eyJ|AKC"
    r"|\bAP[A-F0-9][A-Za-z0-9]{8}"
)

# `password: hunter2!` and `my password is hunter2!`, which the keyword plugin passes over: it wants quotes.
_BARE: Final = re.compile(
    r"(?i:\b\w{0,32}(?:api[_-]?key|auth[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|passw(?:or)?d|passphrase|pwd"
    r"|db[_-]?pass|secret|access[_-]?token|auth[_-]?token|bearer|contrase[nñ]a|passwort|mot de passe)\w{0,16})"
    r"[\"'\])]{0,2}(?:\s{0,3}(?:=>|:=|==?|:)\s{0,3}|\s(?i:is|was|es|ist|est)\s{1,2}:?\s?|(?<=earer)\s)"
    r"[\"'`]?(?P<value>[^\s\"'`<>{}()\[\],;]{6,200})"
)
# The keyword plugin's words, in names of a sane length: its own patterns take cubic time on endless ones.
_KEYWORD: Final = re.compile(rf"(?<!\w)\w{{0,48}}?(?:{'|'.join(keyword.DENYLIST)})\w{{0,48}}(?!\w)", re.IGNORECASE)
_KEYWORD_BEFORE_CHARS: Final = 120  # `"value" == my_password`: the value may come first
_KEYWORD_AFTER_CHARS: Final = 300

# `os.environ["API_KEY"]`, `headers['token']`: what stands in the quotes is a name.
_REFERENCE: Final = re.compile(r"[\[(]\s?['\"`]?$")
_PLACEHOLDER: Final = re.compile(
    r"(?i)example|placeholder|your[_-]|^your|xxxx|changeme|redacted|\*{3}|\.{3}|dummy|^test$|^none$"
)

_BARE_TOKEN: Final = re.compile(r"(?<![\w/.#@+=-])[A-Za-z0-9+/_=-]{20,512}(?![\w/.@])")

KINDS: Final = tuple(
    sorted(
        {plugin.kind for plugin in _PLUGINS} | set(_PATTERNS) | {"keyword", "high_entropy_base64", "high_entropy_hex"}
    )
)
"""All kinds of findings: a bounded set."""


class SecretsGuard:
    """Finds credentials in every text, whoever wrote it: users, tools, the model, system prompts and documents.

    Scores: 0.95 for a service's own format, 0.7 for a weaker one and for what is called a password, 0.4 and less for
    characters that only look random.
    """

    name = "secrets"
    stages: frozenset[Stage] = frozenset(("request", "response"))
    unit: Literal["text", "exchange"] = "text"
    options_type: type[msgspec.Struct] = NoOptions

    def __init__(self) -> None:
        self.version = f"1+detect-secrets-{importlib.metadata.version('detect-secrets')}"
        self._plugins = [(spec, tuple(spec.plugin().denylist)) for spec in _PLUGINS]
        self._patterns = [(kind, re2.compile(pattern.encode())) for kind, pattern in _PATTERNS.items()]
        self._pattern_gate = re2.compile(_PATTERN_GATE.encode())
        self._any_gate = re2.compile(_ANY_GATE.encode())
        self._keyword = keyword.KeywordDetector()
        self._base64 = high_entropy_strings.Base64HighEntropyString()
        self._hex = high_entropy_strings.HexHighEntropyString()
        self._entropy = (("high_entropy_base64", self._base64), ("high_entropy_hex", self._hex))

    def applies(self, unit: Unit, options: NoOptions) -> bool:
        return True

    def needs(self, unit: Unit, options: NoOptions) -> Needs:
        return Needs()

    def check(self, units: Sequence[Unit], options: NoOptions, artifacts: Artifacts) -> Sequence[Result]:
        """One result per unit: the secrets by place, never overlapping, or ``INPUT_TOO_LARGE``."""
        return [self._check(unit.texts[0].text) for unit in units]

    def _check(self, text: str) -> Result:
        if len(text) > MAX_CHARS:
            return Failure(FailureCode.INPUT_TOO_LARGE)
        # One byte per code point, so that RE2's offsets are the text's; all formats are ASCII.
        data = text.encode("ascii", "replace")
        if self._any_gate.search(data) is None:
            return ()
        found = _settle(self._find(text, data))
        return [Hit(item.kind, item.score, (Range(item.start, item.end),)) for item in found]

    def _find(self, text: str, data: bytes) -> Iterator[_Found]:
        if self._pattern_gate.search(data) is not None:
            yield from self._own_patterns(text, data)
        lower = text.lower()
        plugins = [
            (spec, patterns)
            for spec, patterns in self._plugins
            if any(word in (lower if spec.lower else text) for word in spec.needs)
        ]
        keywords = _KEYWORD.search(text) is not None
        quotes = '"' in text or "'" in text
        for start, segment in _segments(text):
            for spec, patterns in plugins:
                yield from _plugin(spec, patterns, segment, start)
            if quotes:
                yield from self._quoted_entropy(segment, start)
            for match in _BARE_TOKEN.finditer(segment):
                if self._looks_random(match.group()):
                    yield _Found("high_entropy_base64", start + match.start(), start + match.end(), BARE_ENTROPY_SCORE)
            if keywords:
                yield from self._keywords(segment, start)
            for match in _BARE.finditer(segment):
                value = match.group("value").rstrip(".?:")
                if _is_password(value):
                    at = start + match.start("value")
                    yield _Found("keyword", at, at + len(value), KEYWORD_SCORE)

    def _own_patterns(self, text: str, data: bytes) -> Iterator[_Found]:
        for kind, pattern in self._patterns:
            for match in pattern.finditer(data):
                start, end = match.span()
                if kind == "jwt" and not _is_jwt(text[start:end]):
                    continue
                if kind == "openai_token" and not _has_digit_and_letter(text[start:end]):
                    continue
                yield _Found(kind, start, end, PATTERN_SCORE)

    def _quoted_entropy(self, segment: str, offset: int) -> Iterator[_Found]:
        for kind, plugin in self._entropy:
            for match in plugin.regex.finditer(segment):
                value = match.group(2)
                if len(value) < MIN_ENTROPY_CHARS or plugin.calculate_shannon_entropy(value) <= plugin.entropy_limit:
                    continue
                if not _is_no_secret(value):
                    start = offset + match.start(2)
                    yield _Found(kind, start, start + len(value), ENTROPY_SCORE)

    def _looks_random(self, value: str) -> bool:
        """Letters of both cases and digits, as in base64; words, paths and identifiers have fewer turns."""
        if not (re.search(r"\d", value) and re.search(r"[a-z]", value) and re.search(r"[A-Z]", value)):
            return False
        return bool(self._base64.calculate_shannon_entropy(value) > 4.0) and not _is_no_secret(value)

    def _keywords(self, segment: str, offset: int) -> Iterator[_Found]:
        """The keyword plugin about each of its words: on a long line its patterns take quadratic time."""
        done = 0
        for match in _KEYWORD.finditer(segment):
            if match.start() < done:
                continue
            begin = max(0, match.start() - _KEYWORD_BEFORE_CHARS)
            done = match.end() + _KEYWORD_AFTER_CHARS // 2
            window = segment[begin : match.end() + _KEYWORD_AFTER_CHARS]
            if not any(quote in window for quote in "\"'`"):
                continue
            for value in self._keyword.analyze_string(window):
                value = value.strip()
                at = window.find(value)
                if at < 0 or " " in value or _is_no_secret(value) or _REFERENCE.search(window, 0, at):
                    continue
                score = ENTROPY_SCORE if value.isalpha() or len(value) < MIN_SECRET_CHARS else KEYWORD_SCORE
                yield _Found("keyword", offset + begin + at, offset + begin + at + len(value), score)


def _segments(text: str) -> Iterator[tuple[int, str]]:
    """Lines, long ones in overlapping pieces (cut at a space where there is one), each with its offset."""
    for line in re.finditer(r"[^\r\n]+", text):
        start, end = line.span()
        while end - start > SEGMENT_CHARS:
            cut = text.rfind(" ", start + SEGMENT_CHARS - OVERLAP_CHARS, start + SEGMENT_CHARS)
            if cut > 0:
                yield start, text[start:cut]
                start = max(cut - OVERLAP_CHARS, start + 1)
            else:
                yield start, text[start : start + SEGMENT_CHARS]
                start += SEGMENT_CHARS - OVERLAP_CHARS
        yield start, text[start:end]


def _plugin(spec: _Plugin, patterns: Sequence[re.Pattern[str]], segment: str, offset: int) -> Iterator[_Found]:
    for pattern in patterns:
        for match in pattern.finditer(segment):
            start, end = match.span()
            if spec.value and match.lastindex:
                start, end = max(
                    (match.span(group) for group in range(1, match.lastindex + 1)), key=lambda s: s[1] - s[0]
                )
            value = segment[start:end]
            lead = len(value) - len(value.lstrip(' \t:="'))
            value = value.strip(' \t:="')
            if spec.score < PATTERN_SCORE and not _has_digit_and_letter(value):
                continue
            if not value or heuristic.is_templated_secret(value):
                continue
            yield _Found(spec.kind, offset + start + lead, offset + start + lead + len(value), spec.score)


def _has_digit_and_letter(value: str) -> bool:
    return re.search(r"\d", value) is not None and re.search(r"[A-Za-z]", value) is not None


def _is_jwt(token: str) -> bool:
    """Whether header and payload decode: the plugin's own test, given what it matches."""
    return bool(JwtTokenDetector.is_formally_valid(".".join(token.split(".")[:2])))


def _is_no_secret(value: str) -> bool:
    """detect-secrets' own filters against false alarms, and placeholders."""
    return bool(
        heuristic.is_not_alphanumeric_string(value)
        or heuristic.is_sequential_string(value)
        or heuristic.is_templated_secret(value)
        or heuristic.is_prefixed_with_dollar_sign(value)
        or heuristic.is_potential_uuid(value)
        or _PLACEHOLDER.search(value)
    )


def _is_password(value: str) -> bool:
    """A bare word after `password:`: letters with digits or signs; no link, call, path, variable or attribute."""
    if not re.search(r"[A-Za-z]", value) or not re.search(r"[\d!@#$%^&*+~]", value):
        return False
    return not re.match(r"(?:https?|www)\b|[\w.]+\(|[/$%@]|\w+\.\w+\.?\w*$", value) and not _is_no_secret(value)


def _settle(found: Iterable[_Found]) -> list[_Found]:
    """Of findings that overlap the surest stays (of equals the longest); in order of their start."""
    kept: list[_Found] = []
    places = Places()
    for item in sorted(set(found), key=lambda f: (-f.score, f.start - f.end, f.start, f.kind)):
        if not places.overlap(item.start, item.end):
            places.add(item.start, item.end)
            kept.append(item)
    return sorted(kept, key=lambda f: f.start)


def build(options: Mapping[str, Any], models: ModelStore) -> SecretsGuard:
    """The guard; it has no options and no model. Raises `ConfigError` for an option."""
    options_of(NoOptions, options, "guards.secrets")
    return SecretsGuard()
