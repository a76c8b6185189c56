"""Small checkpoints with random weights, in the formats of the real ones: tokenizer.json, config.json, weights."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = ["you", "are", "a", "nice", "stupid", "person", "the", "weather", "is", "good", "invoice", "paid"]
LETTERS = [*string.ascii_letters, *string.digits, *".,;:?!'()[]%-"]
WINDOW_TOKENS = 32
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
}


def tokenizer(architecture: str) -> tuple[Tokenizer, int]:
    """A tokenizer of the architecture's kind, and the number of its padding token."""
    if architecture in ("bert", "deberta-v2"):
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS, *(f"##{c}" for c in LETTERS)]
        numbers = {token: number for number, token in enumerate(dict.fromkeys(vocabulary))}
        made = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        return made, 0
    if architecture == "roberta":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet]
        made = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, [], unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
        return made, 1
    pieces = [f"▁{word}" for word in WORDS] + ["▁", *LETTERS]
    if architecture == "xlm-roberta":
        begin, end, special, pad = "<s>", "</s>", ["<s>", "<pad>", "</s>", "<unk>"], 1
    else:
        begin, end, special, pad = "[CLS]", "[SEP]", ["<pad>", "<unk>", "[CLS]", "[SEP]"], 0
    scores = [(piece, 0.0) for piece in special] + [(piece, -1.0 - i / 10) for i, piece in enumerate(pieces)]
    made = Tokenizer(models.Unigram(scores, unk_id=special.index("<unk>")))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    ids = [(begin, special.index(begin)), (end, special.index(end))]
    pair = f"{begin} $A {end} {end} $B {end}" if pad else f"{begin} $A {end} $B:1 {end}:1"
    made.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", pair=pair, special_tokens=ids)
    return made, pad


def config(architecture: str, folder: Path, outputs: int, **more: Any) -> Any:
    """Write tokenizer.json and config.json; returns the configuration."""
    made, pad = tokenizer(architecture)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    extra: dict[str, Any] = {"num_labels": outputs, "vocab_size": made.get_vocab_size(), "pad_token_id": pad, **more}
    positions = WINDOW_TOKENS + (pad + 1 if "roberta" in architecture else 0)
    classes = {
        "bert": transformers.BertConfig,
        "roberta": transformers.RobertaConfig,
        "xlm-roberta": transformers.XLMRobertaConfig,
        "albert": transformers.AlbertConfig,
        "deberta-v2": transformers.DebertaV2Config,
    }
    if "roberta" in architecture:
        extra |= {"type_vocab_size": 1}
    if architecture == "albert":
        extra |= {"embedding_size": 16, "hidden_act": "gelu_new"}
    if architecture == "deberta-v2":
        extra |= {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "type_vocab_size": 0,
            "position_biased_input": False,
        }
    made_config = classes[architecture](**{**SIZES, "max_position_embeddings": positions, **extra})
    made_config.save_pretrained(folder)
    return made_config


def shaken(model: Any) -> Any:
    """Initial weights are so small that all scores would be the same: larger ones, so that each word moves them."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + noise * 0.2 if "LayerNorm.weight" in name else noise * 0.35)
    return model.eval()


def classifier(architecture: str, folder: Path, labels: list[str], **more: Any) -> Any:
    """A classifier as the hub has it: config.json, tokenizer.json, model.safetensors. Returns the model."""
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    made = config(architecture, folder, len(labels), **names, **more)
    model = shaken(transformers.AutoModelForSequenceClassification.from_config(made))
    model.save_pretrained(folder, safe_serialization=True)
    return model


def detoxify(architecture: str, folder: Path, classes: list[str], outputs: int, checkpoint: str, **more: Any) -> Any:
    """A checkpoint as Detoxify reads it, and beside it the base model's configuration, which knows no labels."""
    made = config(architecture, folder, 2, **more)
    made.num_labels = outputs
    model = shaken(transformers.AutoModelForSequenceClassification.from_config(made))
    arguments = {
        "model_type": f"{architecture}-base",
        "model_name": type(model).__name__,
        "tokenizer_name": "AutoTokenizer",
        "num_classes": outputs,
    }
    content = {
        "config": {"arch": {"args": arguments}, "dataset": {"args": {"classes": classes}}},
        "state_dict": model.state_dict(),
    }
    torch.save(content, folder / checkpoint)
    return model


def sentence_encoder(folder: Path) -> Any:
    """A folder as sentence-transformers writes it: a BERT, mean pooling, normalised. Returns the model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    base = folder.with_name(folder.name + "-base")
    made = config("bert", base, 2)
    shaken(transformers.BertModel(made)).save_pretrained(base, safe_serialization=True)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(base / "tokenizer.json"),
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_max_length=WINDOW_TOKENS,
    )
    fast.save_pretrained(base)
    word = Transformer(str(base), max_seq_length=WINDOW_TOKENS)
    pooling = Pooling(SIZES["hidden_size"])
    model = SentenceTransformer(modules=[word, pooling, Normalize()], device="cpu")
    model.save(str(folder))
    return model
