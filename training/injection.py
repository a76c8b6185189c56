"""Train the injection heads and print their figures: `python -m training.injection DATA --cache FOLDER [--write]`.

Two heads: one for what users write, one for sentences of documents that may be an order to the assistant.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import yaml

from guards.artifacts import Artifacts
from guards.guard import NoOptions
from guards.heads import Head
from guards.injection import ALONE_COSINE, InjectionGuard, attack_columns, evidence, order_columns, passages_of
from guards.injection_orders import orders
from guards.injection_signs import load_signs
from guards.models import ModelStore
from guards.types import Exchange, Failure, Location, Text, Unit
from guards.words import english_share, words
from training.data import Embeddings, rows, save

Array = npt.NDArray[np.float64]

SIGNS: Final = load_signs()
HERE: Final = Path(__file__).parent
TESTS: Final = HERE.parent / "tests" / "data"

SCALE: Final = 3.0  # of embeddings, whose norm is 1, so that C regularises
ATTACK_C: Final = 0.3
ORDER_C: Final = 1.5
# Classes are balanced in training; attacks are rarer than that. Chosen so that ordinary texts lie below the stock
# policy's thresholds in cross-validation.
ATTACK_OFFSET: Final = -0.7
ATTACK_SLOPE: Final = 1.4  # the weights that held-out scores teach are timid: at 0.8 they leave no false alarms at all
ORDER_OFFSET: Final = 0.0
ATTACK_WEIGHTS: Final = {"jailbreaks": 0.5, "multilingual": 0.5, "translated": 0.5, "act_as": 1.5, "coding": 0.5,
                         "chat": 0.4, "questions": 0.4, "benign:hard": 2.5, "benign:ordinary": 3.0}  # fmt: skip
ORDER_WEIGHTS: Final = {"asked": 0.5, "email": 2.0, "rag": 2.0, "xquad": 2.0, "alone": 0.2}


class Group(NamedTuple):
    """Texts of one origin: per text its passages' embeddings and the mix's columns apart from the head's; folds."""

    name: str
    attack: bool
    texts: list[str]
    vectors: list[npt.NDArray[np.float32]]
    known: list[tuple[float, float, float]]  # evidence of injection, of jailbreak, share of English
    folds: list[int]

    def part(self, chosen: Callable[[int], bool]) -> Group:
        keep = [index for index in range(len(self.texts)) if chosen(index)]
        return self._replace(**{f: [getattr(self, f)[i] for i in keep] for f in ("texts", "vectors", "known", "folds")})


class Sentence(NamedTuple):
    """An order found in a document: its group and document, whether it is an attack, embedding and other columns."""

    group: str
    document: str
    attack: bool
    vector: npt.NDArray[np.float32]
    columns: tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="write guards/heads/injection.safetensors")
    arguments = parser.parse_args()
    embeddings = Embeddings(arguments.cache)
    groups = read_groups(arguments.data, embeddings)
    sentences = read_sentences(arguments.data, embeddings)
    whole = Head({**train_attacks(groups), **train_orders(sentences)}, "")
    figures(arguments.data, groups, sentences, whole)
    if arguments.write:
        save("injection", whole.tensors)


# ---------------------------------------------------------------- what is read


def read_groups(data: Path, embeddings: Embeddings) -> list[Group]:
    injection = data / "injection"

    def group(name: str, attack: bool, texts: Sequence[str]) -> Group:
        pieces = [passages_of(text, SIGNS, SIGNS.find(text, untrusted=False)) for text in texts]
        known = [(*evidence(SIGNS.find(text, untrusted=False)), english_share(words(text[:2000]))) for text in texts]
        vectors = [embeddings(found) for found in pieces] if len(texts) < 50 else _split(embeddings, pieces)
        folds = _families(vectors) if name == "jailbreaks" else list(range(len(texts)))
        return Group(name, attack, list(texts), vectors, known, [fold % 5 for fold in folds])

    def file(name: str) -> list[str]:
        return [row["text"] for row in rows(injection / name)]

    multilingual = rows(injection / "multilingual_attacks.json")
    made = yaml.safe_load((HERE / "injection_examples.yaml").read_text(encoding="utf-8"))
    return [
        group("jailbreaks", True, file("jailbreaks_in_the_wild.jsonl")),
        group("multilingual", True, [row["text"] for row in multilingual]),
        group("translated", True, [row["english_translation"] for row in multilingual]),
        *(group(f"prompt_injection:{name}", True, texts) for name, texts in made["prompt_injection"].items()),
        *(group(f"jailbreak:{name}", True, texts) for name, texts in made["jailbreak"].items()),
        *(group(f"benign:{name}", False, texts) for name, texts in made["benign"].items()),
        group("technical", False, technical()),
        group("act_as", False, file("benign_act_as.jsonl")),
        group("coding", False, file("benign_coding.jsonl")[::2]),
        group("chat", False, chat(data)[:900]),
        group("questions", False, asked(data)[:500]),
    ]


def _split(embeddings: Embeddings, pieces: Sequence[Sequence[str]]) -> list[npt.NDArray[np.float32]]:
    flat = embeddings([piece for found in pieces for piece in found])
    return np.split(flat, np.cumsum([len(found) for found in pieces])[:-1])


def technical() -> list[str]:
    """Questions about keys, tokens and logs, contents made up; to the encoder they look like asking for a secret."""
    chance = random.Random(7)  # noqa: S311
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

    def noise(chars: int, alphabet: str = letters) -> str:
        return "".join(chance.choices(alphabet, k=chars))

    def pem(kind: str) -> str:
        lines = "\n".join(noise(64) for _ in range(chance.randint(1, 6)))
        return f"-----BEGIN {kind}-----\n{lines}\n-----END {kind}-----"

    asked = ["Is this valid?", "What is wrong with this key?", "Can you check the format?", "Why is it refused?", ""]
    texts = [
        f"{chance.choice(asked)}\n{pem(kind)}"
        for kind in ("RSA PRIVATE KEY", "PRIVATE KEY", "CERTIFICATE", "PUBLIC KEY", "OPENSSH PRIVATE KEY")
        for _ in range(3)
    ]
    for _ in range(4):
        texts += [
            f"Use the access key {noise(20).upper()} for the upload.",
            f"Set the header Authorization to Bearer {noise(40)} and call the API again.",
            f'{{"api_key": "{noise(24)}", "user": "jane", "limit": {chance.randint(1, 99)}}} Why does this fail?',
            f"export TOKEN={noise(30)}\nmake deploy\nError: the token has expired. How do I renew it?",
            f"password = '{noise(10)}'  # how do I move this into an environment variable?",
            f"What does this decode to? {noise(48)}",
            f"sha256:{noise(64, '0123456789abcdef')} does not match, what now?",
            f"ERROR {noise(8, '0123456789abcdef')} worker died: connection to 10.0.0.{chance.randint(1, 99)} refused",
            f"My licence key is {noise(5).upper()}-{noise(5).upper()}-{noise(5).upper()}, where do I enter it?",
            f"My password {noise(9)} is not accepted, what are the rules for a new one?",
            f"The order {chance.randint(1000, 9999)} weighs {chance.randint(2, 90)}.5 kg and has 12 items.",
            f"Write to support{chance.randint(1, 99)}@example.com about the key of flat {chance.randint(1, 99)}.",
        ]
    return texts


def chat(data: Path) -> list[str]:
    """What users said last in the recorded dialogues, shuffled."""
    events = rows(data / "traffic" / "exchanges.jsonl.gz")
    last = (event["messages"][-1] for event in events if event["schema"] == "tidegate.request.v1")
    texts = sorted({message["content"] or "" for message in last if message["role"] == "user"})
    random.Random(1).shuffle(texts)  # noqa: S311
    return texts


def asked(data: Path) -> list[str]:
    events = rows(data / "traffic" / "rag_exchanges.jsonl.gz")
    texts = sorted({e["messages"][-1]["content"] or "" for e in events if e["schema"] == "tidegate.request.v1"})
    random.Random(2).shuffle(texts)  # noqa: S311
    return [text for text in texts if 0 < len(text) < 600]


def _families(vectors: Sequence[npt.NDArray[np.float32]]) -> list[int]:
    """Number of the family of each text: jailbreaks are copied and varied, and copies must share a fold."""
    means = np.array([found.mean(0) if len(found) else np.zeros(384) for found in vectors])
    means /= np.linalg.norm(means, axis=1, keepdims=True) + 1e-9
    family = [-1] * len(means)
    for index in range(len(means)):
        if family[index] >= 0:
            continue
        family[index] = index
        reach = [index]
        while reach:
            for other in np.flatnonzero(means @ means[reach.pop()] > 0.75):
                if family[other] < 0:
                    family[other] = index
                    reach.append(int(other))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(family))}
    return [numbers[name] for name in family]


def read_sentences(data: Path, embeddings: Embeddings) -> list[Sentence]:
    chance = random.Random(5)  # noqa: S311
    made = yaml.safe_load((HERE / "orders.yaml").read_text(encoding="utf-8"))
    emails = rows(data / "injection" / "bipia_email_train.jsonl")
    clean = [row["text"] for row in emails if not row["label"]]
    usual = {order.text for text in clean for order in orders(text)}
    squad = rows(data / "relevance" / "xquad_en.jsonl")
    paragraphs = sorted({row["context"] for row in squad})
    questions = sorted({row["question"] for row in squad})
    chance.shuffle(questions)
    events = rows(data / "traffic" / "rag_exchanges.jsonl.gz")
    retrieved = sorted({document["text"] for event in events for document in event.get("documents") or ()})
    found: list[tuple[str, str, bool, Any]] = []

    def add(group: str, document: str, attack: bool, belongs: Callable[[str], bool] = lambda text: True) -> None:
        found.extend((group, document, attack, order) for order in orders(document) if belongs(order.text))

    def inject(group: str, order: str, documents: Sequence[str]) -> None:
        document = chance.choice(documents)[:1500]
        seams = [
            i + 1 for i, char in enumerate(document) if char in "\n|.?!" and document[i + 1 : i + 2] in (" ", "\n", "")
        ]
        place, seam = chance.choice([0, len(document), *seams]), chance.choice([" ", "\n", "|"])
        mixed = document[:place] + seam + order + seam + document[place:]
        add(group, mixed, True, lambda text: text in order or order in text)

    for name, texts in made["orders"].items():
        for order in (*texts, *texts):
            inject(f"made:{name}", order, chance.choice([paragraphs, retrieved, clean, made["documents"]]))
    for order in questions[:60]:
        inject("asked", order, chance.choice([paragraphs, clean, made["documents"]]))
    for row in emails:
        if row["label"]:
            add(f"bipia:{row['kind']}", row["text"], True, lambda text: text not in usual)
    for group, documents in (
        ("email", clean), ("made:documents", made["documents"]), ("xquad", paragraphs), ("rag", retrieved),
    ):  # fmt: skip
        for document in documents:
            add(group, document, False)
    examples = yaml.safe_load((HERE / "injection_examples.yaml").read_text(encoding="utf-8"))
    for text in (*examples["benign"]["hard"], *examples["benign"]["ordinary"]):
        add("alone", text, False)
    vectors = embeddings([order.text for *_, order in found])
    around = embeddings([order.context for *_, order in found])
    alone = np.array([not order.context for *_, order in found])
    cosines = np.where(alone, ALONE_COSINE, np.sum(vectors * around, axis=1))
    known = [sum(evidence(SIGNS.find(order.text, untrusted=True))) for *_, order in found]
    return [
        Sentence(group, document, attack, vector, order_columns(order, float(cosine), evidence_))
        for (group, document, attack, order), vector, cosine, evidence_ in zip(
            found, vectors, cosines, known, strict=True
        )
    ]


# ---------------------------------------------------------------- training


def train_attacks(groups: Sequence[Group]) -> dict[str, npt.NDArray[np.float32]]:
    """The direction from all passages, and the mix from scores that each text got from a direction without it."""
    direction, constant = _direction(groups)
    columns, labels, weights = [], [], []
    for fold in range(5):
        held, own = _direction([group.part(lambda i, g=group, f=fold: g.folds[i] != f) for group in groups])
        for group in (group.part(lambda i, g=group, f=fold: g.folds[i] == f) for group in groups):
            seen = _seen(group, held, own)
            columns += [attack_columns(s, *known) for s, known in zip(seen, group.known, strict=True)]
            labels += [group.attack] * len(seen)
            weights += [ATTACK_WEIGHTS.get(group.name, 1.0)] * len(seen)
    mix = _fit(1.0, np.array(columns), np.array(labels), np.array(weights))
    attacks = [group for group in groups if group.attack and group.name != "translated"]
    kinds = [
        (vector, _is_jailbreak(group, i)) for group in attacks for i, v in enumerate(group.vectors) for vector in v
    ]
    kind = _fit(0.3, np.array([v for v, _ in kinds]) * SCALE, np.array([k for _, k in kinds]), np.ones(len(kinds)))
    return {
        "attack": (direction * SCALE).astype(np.float32),
        "attack_constant": np.array([constant], dtype=np.float32),
        "mix": (np.array([*mix.coef_[0], mix.intercept_[0] + ATTACK_OFFSET]) * ATTACK_SLOPE).astype(np.float32),
        "kind": (kind.coef_[0] * SCALE).astype(np.float32),
        "kind_constant": np.array([kind.intercept_[0]], dtype=np.float32),
    }


def _is_jailbreak(group: Group, index: int) -> bool:
    """Persona and fiction are jailbreaks; of the multilingual set what its patterns say."""
    injection, jailbreak, _ = group.known[index]
    return group.name.startswith("jailbreak") or (group.name == "multilingual" and jailbreak > injection)


def _direction(groups: Sequence[Group]) -> tuple[Array, float]:
    vectors = np.concatenate([v for group in groups for v in group.vectors if len(v)]) * SCALE
    labels = np.concatenate([np.full(len(v), group.attack) for group in groups for v in group.vectors])
    weights = np.concatenate(
        [
            np.full(len(v), ATTACK_WEIGHTS.get(group.name, 1.0) / max(len(v), 1))
            for group in groups
            for v in group.vectors
        ]
    )
    fitted = _fit(ATTACK_C, vectors, labels, weights)
    return fitted.coef_[0], float(fitted.intercept_[0])


def _seen(group: Group, direction: Array, constant: float) -> list[float]:
    return [float((v @ direction * SCALE).max()) + constant if len(v) else 0.0 for v in group.vectors]


def train_orders(sentences: Sequence[Sentence]) -> dict[str, npt.NDArray[np.float32]]:
    columns = np.array([(*sentence.vector * SCALE, *sentence.columns) for sentence in sentences])
    labels = np.array([sentence.attack for sentence in sentences])
    weights = np.array([ORDER_WEIGHTS.get(sentence.group, 1.0) for sentence in sentences])
    fitted = _fit(ORDER_C, columns, labels, weights)
    return {
        "order": (fitted.coef_[0][:384] * SCALE).astype(np.float32),
        "order_mix": np.array([*fitted.coef_[0][384:], fitted.intercept_[0] + ORDER_OFFSET], dtype=np.float32),
    }


def _fit(c: float, columns: Array, labels: npt.NDArray[Any], weights: Array) -> Any:
    """A logistic regression in which both classes weigh the same; the sum of the weights is the number of rows."""
    from sklearn.linear_model import LogisticRegression

    share = weights[labels == 1].sum() / weights.sum()
    balanced = np.where(labels == 1, weights / share, weights / (1 - share))
    return LogisticRegression(C=c, max_iter=3000).fit(columns, labels, balanced * len(labels) / balanced.sum())


# ---------------------------------------------------------------- figures


def figures(data: Path, groups: Sequence[Group], sentences: Sequence[Sentence], whole: Head) -> None:
    """Shares at or above 0.8 (block) and 0.5 (flag), every text judged by heads that were trained without it."""
    by_name = {group.name: group for group in groups}
    print("a whole set left out | at 0.8 | at 0.5")
    for left in (("jailbreaks",), ("multilingual", "translated"), ("act_as",), ("coding",), ("chat", "questions")):
        head = _with(whole, train_attacks([group for group in groups if group.name not in left]))
        for name in left:
            _print(name, _risks(head, by_name[name].texts))
    print("cross-validation (jailbreaks by family)")
    risks: dict[str, list[float]] = {group.name: [] for group in groups}
    for fold in range(5):
        head = _with(whole, train_attacks([group.part(lambda i, g=group, f=fold: g.folds[i] != f) for group in groups]))
        for group in groups:
            risks[group.name] += _risks(head, group.part(lambda i, g=group, f=fold: g.folds[i] == f).texts)
    for name, found in risks.items():
        _print(name, found)
    print("held out in every training")
    trigger = (TESTS / "trigger_words.txt").read_text(encoding="utf-8").splitlines()
    _print("trigger words, user", _risks(whole, trigger))
    _print("trigger words, document", _risks(whole, trigger, "document"))
    _print("documents with orders to people", _risks(whole, _documents(), "document"))
    _print("chat, other messages", _risks(whole, chat(data)[900:2400]))
    _print("chat, whole requests", _request_risks(whole, data))
    print("documents: kinds of attack and documents left out by fold")
    _documents_cross_validated(data, sentences, whole)


def _documents() -> list[str]:
    return list(yaml.safe_load((TESTS / "documents.yaml").read_text(encoding="utf-8")))


def _documents_cross_validated(data: Path, sentences: Sequence[Sentence], whole: Head) -> None:
    emails = rows(data / "injection" / "bipia_email_train.jsonl")
    kinds = sorted({row["kind"] for row in emails if row["label"]})
    of_kind: dict[str, int] = {f"bipia:{kind}": number % 5 for number, kind in enumerate(kinds)}
    clean = sorted({s.document for s in sentences if not s.attack})
    of_document = {document: number % 5 for number, document in enumerate(clean)}
    attacks: list[float] = []
    alarms: dict[str, list[float]] = {"email": [], "xquad": [], "rag": [], "made:documents": []}
    sizes = {"email": sum(not row["label"] for row in emails), "made:documents": 26}
    squad = {row["context"] for row in rows(data / "relevance" / "xquad_en.jsonl")}
    events = rows(data / "traffic" / "rag_exchanges.jsonl.gz")
    sizes |= {"xquad": len(squad), "rag": len({d["text"] for e in events for d in e.get("documents") or ()})}
    for fold in range(5):
        seen = [s for s in sentences if of_kind.get(s.group, of_document.get(s.document, -1)) != fold]
        head = _with(whole, train_orders(seen))
        held = [row["text"] for row in emails if row["label"] and of_kind[f"bipia:{row['kind']}"] == fold]
        attacks += _risks(head, held, "document")
        for name, found in alarms.items():
            documents = {s.document for s in sentences if s.group == name and of_document[s.document] == fold}
            found += _risks(head, sorted(documents), "document")
    _print("bipia e-mails, kind left out", attacks)
    for name, found in alarms.items():
        _print(f"{name} without attack", found + [0.0] * (sizes[name] - len(found)))
    head = _with(whole, train_orders([s for s in sentences if not s.group.startswith("bipia") and s.group != "email"]))
    for label, title in ((1, "bipia e-mails, no e-mail of the set known"), (0, "its e-mails without attack")):
        _print(title, _risks(head, [row["text"] for row in emails if row["label"] == label], "document"))


def _with(head: Head, tensors: Mapping[str, npt.NDArray[np.float32]]) -> Head:
    return Head({**head.tensors, **tensors}, "")


_ARTIFACTS: Final = Artifacts(ModelStore().encoder, None, cache_size=100_000)


def _risks(head: Head, texts: Sequence[str], role: str = "user") -> list[float]:
    """What the guard says of each text with these heads: the higher of its two kinds."""
    place = Location(document=0) if role == "document" else Location(message=0)
    units = [Unit((Text(text, role, place),), Exchange(), "request") for text in texts]
    return _judged(head, units)


def _request_risks(head: Head, data: Path) -> list[float]:
    events = [e for e in rows(data / "traffic" / "exchanges.jsonl.gz") if e["schema"] == "tidegate.request.v1"]
    units = []
    for event in events[::6]:
        messages = enumerate(event["messages"])
        texts = tuple(Text(m["content"], m["role"], Location(message=i)) for i, m in messages if m.get("content"))
        units.append(Unit(texts, Exchange(), "request"))
    return _judged(head, units)


def _judged(head: Head, units: Sequence[Unit]) -> list[float]:
    guard = InjectionGuard(SIGNS, head, "training")
    risks = []
    for result in guard.check(units, NoOptions(), _ARTIFACTS):
        assert not isinstance(result, Failure)
        risks.append(max((hit.score for hit in result), default=0.0))
    return risks


def _print(title: str, risks: Sequence[float]) -> None:
    found = np.array(risks)
    print(f"{title} ({len(found)}) | {(found >= 0.8).mean():.3f} | {(found >= 0.5).mean():.3f}", flush=True)


if __name__ == "__main__":
    main()
