"""What tokens cost: configs/prices.yaml → integer nano-USD, so that sums are exact. Unknown is unpriced, never free."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from guards.errors import PolicyError
from guards.strict import load_yaml, problems_of
from streams.events import Usage

__all__ = ["Prices", "load_prices", "parse_prices"]

_SNAPSHOT: Final = re.compile(r"[-@](\d{4}-\d{2}-\d{2}|\d{8}|\d{6}|\d{3,4}|latest)(-v\d+(:\d+)?)?")
"""What may follow a listed name: a date, a build number, ``latest``. Not ``-mini``: that is another price."""

Usd = Annotated[Decimal, Field(ge=0, le=100_000)]


class Price(BaseModel):
    """USD per million tokens, from a day (UTC) on. Cached input tokens cost as input where nothing is said."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: date = Field(alias="from")
    input: Usd
    output: Usd
    cached_input: Usd | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    aliases: dict[str, str] = Field(default_factory=dict)
    providers: dict[str, dict[str, list[Price]]]

    @model_validator(mode="after")
    def _sound(self) -> _File:
        for alias, provider in self.aliases.items():
            if provider not in self.providers:
                raise ValueError(f"aliases.{alias}: no provider {provider!r}")
        for provider, models in self.providers.items():
            for model, prices in models.items():
                days = [price.since for price in prices]
                if not prices or days != sorted(set(days)):
                    raise ValueError(f"providers.{provider}.{model}: at least one price, by ascending, distinct 'from'")
        return self


class Prices:
    """Prices by provider and model. Immutable."""

    def __init__(self, file: _File) -> None:
        self._aliases = {alias.casefold(): provider for alias, provider in file.aliases.items()}
        self._models = {
            provider.casefold(): {
                model.casefold(): [
                    (_midnight_ms(price.since), _pico(price.input), _pico(price.output), _pico(_cached(price)))
                    for price in prices
                ]
                for model, prices in models.items()
            }
            for provider, models in file.providers.items()
        }

    def cost_nano_usd(self, provider: str, model: str, usage: Usage, time_ms: int) -> int | None:
        """What the tokens cost at that time, rounded half up to a nano-USD; ``None`` where no price is known.

        ``input_tokens`` includes the cached ones and ``output_tokens`` the reasoning, as in OpenTelemetry GenAI.
        """
        price = self._find(provider.casefold(), model.casefold(), time_ms)
        if price is None:
            return None
        input_pico, output_pico, cached_pico = price
        cached = min(usage.cached_input_tokens, usage.input_tokens)
        pico = (usage.input_tokens - cached) * input_pico + cached * cached_pico + usage.output_tokens * output_pico
        return (pico + 500) // 1000

    def _find(self, provider: str, model: str, time_ms: int) -> tuple[int, int, int] | None:
        models = self._models.get(self._aliases.get(provider, provider).casefold())
        if models is None:
            return None
        prices = models.get(model)
        if prices is None:
            bases = [name for name in models if model.startswith(name) and _SNAPSHOT.fullmatch(model, len(name))]
            if not bases:
                return None
            prices = models[max(bases, key=len)]
        valid = [price for price in prices if price[0] <= time_ms]
        return valid[-1][1:] if valid else None


def parse_prices(text: str, source: str) -> Prices:
    """YAML → prices. Raises `PolicyError`, one line per fault."""
    try:
        return Prices(_File.model_validate(load_yaml(text, source)))
    except ValidationError as error:
        raise PolicyError(source, problems_of(error, _File)) from error


def load_prices(path: Path) -> Prices:
    return parse_prices(path.read_text(encoding="utf-8"), str(path))


def _cached(price: Price) -> Decimal:
    return price.input if price.cached_input is None else price.cached_input


def _pico(usd_per_million: Decimal) -> int:
    """USD per million tokens → pico-USD per token: 1 USD / 10^6 = 10^6 pico-USD."""
    return int(usd_per_million * 1_000_000)


def _midnight_ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
