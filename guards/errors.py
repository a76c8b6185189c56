"""The exceptions of the detection core. A guard never raises for one bad text: it returns a `Failure`."""

from __future__ import annotations

__all__ = ["ConfigError", "GuardsError", "ModelBuildError", "ModelMissingError", "PolicyError"]


class GuardsError(Exception):
    """The root; its text is meant for the user and names the fix."""


class ConfigError(GuardsError):
    """A configuration that cannot be used: an unknown guard, a bad option."""


class PolicyError(ConfigError):
    """A policy file that cannot be used. ``problems`` holds one line per fault, each with its key path."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source = source
        self.problems = problems
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))


class ModelMissingError(GuardsError):
    """A model that the profile names is not in the store; the text names the command that fetches it."""


class ModelBuildError(GuardsError):
    """A model was fetched, but what was built from it is not the model; nothing of it is used."""
