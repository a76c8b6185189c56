"""Prices: by provider, model and day; unknown is unpriced, never free; sums of integers are exact."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from guards.errors import PolicyError
from guards.policy import configs_folder
from streams.events import Usage, to_ms
from streams.monitor.prices import load_prices, parse_prices

STOCK = load_prices(configs_folder() / "prices.yaml")
NOW_MS = to_ms(datetime(2026, 1, 1, tzinfo=UTC))
MILLION = Usage(input_tokens=1_000_000, output_tokens=1_000_000)


@pytest.mark.parametrize(
    ("provider", "model", "usd"),
    [
        ("openai", "gpt-4o", 12.5),
        ("openai", "GPT-4o-2024-11-20", 12.5),
        ("openai", "gpt-4o-2024-05-13", 20.0),  # a snapshot that is listed itself
        ("openai", "gpt-4o-mini", 0.75),
        ("openai", "gpt-4o-mini-2024-07-18", 0.75),
        ("openai", "gpt-4-0613", 90.0),
        ("azure.ai.openai", "gpt-4o", 12.5),
        ("anthropic", "claude-3-5-haiku-20241022", 4.8),
        ("anthropic", "claude-sonnet-4-5-20250929", 18.0),
        ("gcp.gemini", "gemini-2.0-flash-001", 0.5),
    ],
)
def test_known_models(provider: str, model: str, usd: float) -> None:
    assert STOCK.cost_nano_usd(provider, model, MILLION, NOW_MS) == round(usd * 1e9)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-4o-audio-preview"),
        ("openai", "gpt-4o-micro"),
        ("openai", ""),
        ("", "gpt-4o"),
        ("acme", "gpt-4o"),
    ],
)
def test_unknown_models_have_no_price(provider: str, model: str) -> None:
    assert STOCK.cost_nano_usd(provider, model, MILLION, NOW_MS) is None


def test_the_price_of_the_day_counts() -> None:
    for day, usd in (((2024, 10, 1), 20.0), ((2024, 10, 2), 12.5)):
        assert STOCK.cost_nano_usd("openai", "gpt-4o", MILLION, to_ms(datetime(*day, tzinfo=UTC))) == usd * 1e9
    assert STOCK.cost_nano_usd("openai", "gpt-4o", MILLION, to_ms(datetime(2023, 1, 1, tzinfo=UTC))) is None


def test_cached_tokens_are_part_of_the_input() -> None:
    usage = Usage(input_tokens=1_000_000, output_tokens=0, cached_input_tokens=400_000)
    assert STOCK.cost_nano_usd("openai", "gpt-4o", usage, NOW_MS) == round((0.6 * 2.5 + 0.4 * 1.25) * 1e9)


def test_fractions_of_a_nano_usd_are_rounded() -> None:
    usage = Usage(input_tokens=1, output_tokens=0, cached_input_tokens=1)
    assert STOCK.cost_nano_usd("gemini", "gemini-1.5-flash", usage, NOW_MS) == 19  # 18.75


def test_faults_are_told_with_their_path() -> None:
    text = "providers: {openai: {gpt-9: [{from: 2026-01-01, input: 1, outputs: 2}]}}"
    with pytest.raises(PolicyError, match=r"outputs: unknown key; did you mean 'output'\?"):
        parse_prices(text, "prices.yaml")
    with pytest.raises(PolicyError, match="ascending"):
        parse_prices("providers: {openai: {gpt-9: []}}", "prices.yaml")
