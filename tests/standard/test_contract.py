"""The contract of every guard, asked of the guards that run on transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.standard

pytest.importorskip("torch", reason="torch is not installed: pip install 'tidegate[standard]'")

from guards.artifacts import Artifacts  # noqa: E402
from guards.guard import Guard, build  # noqa: E402
from guards.models import ModelStore  # noqa: E402
from tests.contract.test_guards import *  # noqa: E402, F403
from tests.standard import checkpoints  # noqa: E402

POSITIONS = 256  # with the 32 of the other tests, 100 KB would be thousands of windows
BACKENDS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "toxicity": ("bert", ["fine", "toxic"], {"backend": "hf-classifier", "labels": {"toxic": "toxicity"}}),
    "injection": ("bert", ["SAFE", "INJECTION"], {"backend": "hf-classifier", "labels": {"INJECTION": "jailbreak"}}),
    "hallucination": ("bert", ["contradiction", "entailment", "neutral"], {"backend": "nli"}),
    "relevance": ("bert", ["LABEL_0"], {"backend": "cross-encoder"}),
}


@pytest.fixture(scope="module", params=BACKENDS)
def guard(request: pytest.FixtureRequest, bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Guard:
    name: str = request.param
    architecture, labels, options = BACKENDS[name]
    folder = tmp_path_factory.mktemp(name)
    checkpoints.classifier(architecture, folder, labels, max_position_embeddings=POSITIONS)
    profile = {name: {**options, "model": {"source": f"folder:{folder}"}}}
    store = ModelStore(bundled, guards=profile)
    store.pull()
    return build([name], profile, store)[name]


@pytest.fixture
def options(guard: Guard) -> Any:
    return guard.options_type()


@pytest.fixture
def artifacts() -> Artifacts:
    return Artifacts(None, None)  # these guards need none
