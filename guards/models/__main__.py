"""``python -m guards.models pull|list|verify``: the store without the `tidegate` command."""

from __future__ import annotations

import argparse
import sys

from guards.errors import GuardsError
from guards.models import ModelState, ModelStore


def _show(step: str, fraction: float) -> None:
    print(f"\r{step:<10}{fraction:4.0%}", end="", file=sys.stderr, flush=True)


def main() -> int:
    """Exit code 0: all models ready; 1: not, with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m guards.models", description="The model store.")
    parser.add_argument("command", choices=["pull", "list", "verify"])
    command = parser.parse_args().command
    store = ModelStore()
    if command == "pull":
        try:
            store.pull(_show if sys.stderr.isatty() else None)
        except GuardsError as error:
            print(error, file=sys.stderr)
            return 1
        if sys.stderr.isatty():
            print(file=sys.stderr)
    models = store.verify() if command == "verify" else store.list()
    for model in models:
        print(f"{model.state:<9}{model.kind:<9}{model.name:<24}{model.bytes / 1e6:7.1f} MB  {model.path}")
    return 0 if all(model.state is ModelState.READY for model in models) else 1


if __name__ == "__main__":
    sys.exit(main())
