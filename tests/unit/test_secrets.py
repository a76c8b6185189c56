"""The secrets guard: exact places of made-up credentials, and none where there are none."""

from __future__ import annotations

import base64
import random
import socket
import string
import time

import pytest

from guards.artifacts import Artifacts
from guards.errors import ConfigError
from guards.guard import NoOptions
from guards.models import ModelStore
from guards.secrets import KINDS, SecretsGuard, build
from guards.types import Exchange, Failure, Text, Unit

_random = random.Random(20_240_503)


def made(length: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    """Random characters: no credential of anybody."""
    return "".join(_random.choice(alphabet) for _ in range(length))


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


HEX = "0123456789abcdef"
JWT = ".".join([encoded(b'{"alg":"HS256","typ":"JWT"}'), encoded(b'{"sub":"1234567890"}'), made(43)])
KEY_BLOCK = "\n".join(
    ["-----BEGIN RSA PRIVATE KEY-----", *(made(64) for _ in range(6)), "-----END RSA PRIVATE KEY-----"]
)


@pytest.fixture(scope="module")
def guard() -> SecretsGuard:
    return build({}, ModelStore())


def found(guard: SecretsGuard, text: str, least: float = 0.5) -> list[tuple[str, str]]:
    unit = Unit((Text(text, "user"),), Exchange(), "request")
    (result,) = guard.check([unit], NoOptions(), Artifacts(None, None))
    assert not isinstance(result, Failure)
    assert all(hit.kind in KINDS for hit in result)
    return [(hit.kind, text[hit.ranges[0].start : hit.ranges[0].end]) for hit in result if hit.score >= least]


@pytest.mark.parametrize(
    ("kind", "secret"),
    [
        ("aws_key", "AKIA" + made(16, string.ascii_uppercase + "234567")),
        ("github_token", "ghp_" + made(36)),
        ("github_token", "github_pat_" + made(82)),
        ("gitlab_token", "glpat-" + made(20)),
        ("openai_token", "sk-" + made(48)),
        ("openai_token", "sk-proj-" + made(60)),
        ("anthropic_key", "sk-ant-api03-" + made(93)),
        ("huggingface_token", "hf_" + made(34)),
        ("google_api_key", "AIza" + made(35)),
        ("slack_token", f"xoxb-{made(12, string.digits)}-{made(13, string.digits)}-{made(24)}"),
        ("slack_token", f"https://hooks.slack.com/services/T{made(8)}/B{made(8)}/{made(24)}"),
        ("stripe_key", "sk_live_" + made(24)),
        ("sendgrid_key", f"SG.{made(22)}.{made(43)}"),
        ("npm_token", "npm_" + made(36)),
        ("jwt", JWT),
        ("private_key", KEY_BLOCK),
    ],
)
def test_formats_are_found_at_their_exact_place(guard: SecretsGuard, kind: str, secret: str) -> None:
    for text in (secret, f"why does {secret} not work?", f"😀 ключ: {secret}\nsecond line \ud800"):
        assert found(guard, text) == [(kind, secret)]


@pytest.mark.parametrize(
    ("text", "kind", "secret"),
    [
        ('password = "hunter2hunter"', "keyword", "hunter2hunter"),
        ("password: Tr0ub4dor&3", "keyword", "Tr0ub4dor&3"),
        ("my password is Tr0ub4dor&3, please help", "keyword", "Tr0ub4dor&3"),
        ("DB_PASSWORD=Zx81kk!92\nDEBUG=1", "keyword", "Zx81kk!92"),
        ("postgres://bob:s3cr3tpw@db.example/x", "basic_auth", "s3cr3tpw"),
        ("aws_secret_access_key = '" + "wJalrXUtnFEMI/K7MDENG+bPxRfiCYzz12345678" + "'", "aws_key", None),
        ("Authorization: Bearer " + "hmKotJcw8bybHVUc6OdmbKcDxq7KiefmAGI02arD", "keyword", None),
    ],
)
def test_values_without_a_format(guard: SecretsGuard, text: str, kind: str, secret: str | None) -> None:
    ((found_kind, value),) = found(guard, text)
    assert found_kind == kind
    assert value == (secret or value)
    assert value in text.split("=", 1)[-1] or value in text


def test_a_cut_off_key_block_is_a_secret_to_its_end(guard: SecretsGuard) -> None:
    cut = KEY_BLOCK[:200]
    assert found(guard, "look: " + cut) == [("private_key", cut)]


def test_random_characters_are_only_noted(guard: SecretsGuard) -> None:
    text = f"token '{made(40)}' and '{made(40, HEX)}'"
    assert found(guard, text) == []
    assert {kind for kind, _ in found(guard, text, least=0.3)} == {"high_entropy_base64", "high_entropy_hex"}


@pytest.mark.parametrize(
    "text",
    [
        "The password is not important. Passwords need 8 characters, a secret to nobody.",
        "api_key = os.environ['API_KEY_PROD']",
        'key = os.getenv("OPENAI_API_KEY")',
        "password = <your-password-123>",
        "secret: {{ vault_secret_42 }}",
        "OPENAI_API_KEY=your-key-here123",
        "id 123e4567-e89b-12d3-a456-426614174000",
        "see https://example.com/path/some-long-article-about-api-keys-and-tokens-2024",
        "def test_password_reset_token_is_invalidated_after_use(self): ...",
        "the risk-assessment-of-the-whole-project was sk-ipped",
        "",
    ],
)
def test_what_is_no_secret(guard: SecretsGuard, text: str) -> None:
    assert found(guard, text) == []


def test_several_secrets_in_one_line(guard: SecretsGuard) -> None:
    first, second = "ghp_" + made(36), "hf_" + made(34)
    assert found(guard, f"{first} {second}, {first}") == [
        ("github_token", first),
        ("huggingface_token", second),
        ("github_token", first),
    ]


@pytest.mark.parametrize("before_chars", [0, 700, 1_000, 1_020, 5_000])
def test_a_secret_anywhere_in_a_long_line(guard: SecretsGuard, before_chars: int) -> None:
    secret = "glpat-" + made(20)
    for filler in ("word ", "x,"):
        text = (filler * before_chars)[:before_chars] + " " + secret + " " + filler * 600
        assert found(guard, text) == [("gitlab_token", secret)]


def test_every_role_at_every_stage(guard: SecretsGuard) -> None:
    for role in ("user", "assistant", "system", "tool", "document"):
        assert guard.applies(Unit((Text("a", role),), Exchange(), "request"), NoOptions())
        assert guard.applies(Unit((Text("a", role),), Exchange(), "response"), NoOptions())


def test_nothing_is_verified_over_the_network(guard: SecretsGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a plugin wants to verify a secret")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    key = "AKIA" + made(16, string.ascii_uppercase + "234567")
    assert found(guard, f"{key} aws_secret = '{made(40)}' xoxb-1-2-{made(24)}")


def test_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"guards\.secrets"):
        build({"verify": True}, ModelStore())


@pytest.mark.parametrize("piece", ["password", "password ", "eyJ", "://a:b", '"a', "secret'", "api_key => '", 'pwd: "'])
def test_a_hostile_text_takes_bounded_time(guard: SecretsGuard, piece: str) -> None:
    text = (piece * 65_536)[:65_536]
    began = time.perf_counter()
    found(guard, text)
    assert time.perf_counter() - began < 5.0  # half a second at worst; the plugins' own patterns take minutes
