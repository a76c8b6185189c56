"""Tidegate's detection core: pure, synchronous, batch-first; usable as a library on its own.

>>> from guards import Engine, Exchange, Message, Policy
>>> engine = Engine(Policy.default())
>>> engine.check(Exchange(messages=[Message("user", "My card is 4111 1111 1111 1111")]), "request").decision
<Action.REDACT: 'redact'>
"""

from guards.engine import Engine
from guards.errors import ConfigError, GuardsError, ModelMissingError, PolicyError
from guards.policy import Policy
from guards.types import Action, Decision, Document, Exchange, Failure, Finding, Message, Stage

__all__ = [
    "Action",
    "ConfigError",
    "Decision",
    "Document",
    "Engine",
    "Exchange",
    "Failure",
    "Finding",
    "GuardsError",
    "Message",
    "ModelMissingError",
    "Policy",
    "PolicyError",
    "Stage",
]
