"""What the screens before models did is there to be scraped."""

from __future__ import annotations

from prometheus_client import generate_latest

from guards import Engine, Exchange, Message, Policy
from guards.models import ModelStore
from streams import metrics

POLICY = """
name: names
guards: {pii: {}}
rules: [{name: redact, guard: pii, action: redact}]
"""


def test_texts_that_a_screen_cleared_are_counted(store: ModelStore) -> None:
    engine = Engine(Policy.parse(POLICY), models=store)
    metrics.SCREENS.add(engine)
    for text in ("so it goes", "Please call John Smith in the morning."):
        engine.check(Exchange(messages=[Message("user", text)]), "request")
    lines = generate_latest().decode().splitlines()
    values = {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if line.startswith("tidegate_screen")}
    asked = values['tidegate_screen_texts_total{guard="pii",outcome="asked"}']
    assert asked >= 1
    assert set(values) == {
        f'tidegate_screen_texts_total{{guard="pii",outcome="{outcome}"}}'
        for outcome in ("asked", "cleared", "sampled", "missed")
    }
