"""The parts as one buys them, in their real architectures with random weights: no hub is needed and they cost the same.

Needs the standard extra (torch, transformers, detoxify, sentence-transformers).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import detoxify as detoxify_package
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

from guards.models import ModelStore

__all__ = ["cross_encoder", "detoxify", "sentence_transformer"]

MINILM: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
"""all-MiniLM-L6-v2 and ms-marco-MiniLM-L-6-v2."""


def _tokenizer() -> BertTokenizerFast:
    """BERT's uncased WordPiece vocabulary, as the encoder in the model store has it."""
    folder = next(ModelStore().root.glob("**/tokenizer.json"))
    return BertTokenizerFast(tokenizer_file=str(folder))


def detoxify() -> Any:
    """Detoxify's `original`: bert-base-uncased with six labels, through its own class and `predict`."""
    torch.manual_seed(0)
    labels = ["toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack"]
    model = detoxify_package.Detoxify.__new__(detoxify_package.Detoxify)
    model.model = BertForSequenceClassification(BertConfig(num_labels=len(labels))).eval()
    model.tokenizer = _tokenizer()
    model.class_names = labels
    model.device = "cpu"
    return model


def sentence_transformer() -> SentenceTransformer:
    """all-MiniLM-L6-v2."""
    with tempfile.TemporaryDirectory() as folder:
        BertModel(BertConfig(**MINILM)).save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
        transformer = Transformer(folder, max_seq_length=256)
    return SentenceTransformer(modules=[transformer, Pooling(384)], device="cpu")


def cross_encoder() -> CrossEncoder:
    """ms-marco-MiniLM-L-6-v2."""
    with tempfile.TemporaryDirectory() as folder:
        BertForSequenceClassification(BertConfig(**MINILM, num_labels=1)).save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
        return CrossEncoder(str(Path(folder)), max_length=512, device="cpu")
