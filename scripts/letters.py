"""Write guards/letters.bin: how surprising a letter is after the two before it, by groups of languages.

    pip install wordfreq==3.1.1 && python scripts/letters.py

The word lists of wordfreq (frequencies of words in 40 languages, CC BY-SA 4.0) are a tool of this script only; the
guard needs neither them nor the package. Same lists, same bytes: nothing here is random.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from pathlib import Path

from wordfreq import iter_wordlist, word_frequency

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from guards.gibberish import GROUPS, STEPS_PER_BIT, SYMBOLS, TABLE, letters_of

WORDS = 30_000  # of each language, the most frequent
ADDED = 2.0  # to each count, so that what was never seen has a finite surprise


def costs(languages: tuple[str, ...]) -> bytes:
    """One byte per triple of symbols: bits of surprise at the third, in steps."""
    counts: defaultdict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for language in languages:
        for number, word in enumerate(iter_wordlist(language)):
            if number >= WORDS:
                break
            if not word.isalpha():
                continue
            letters = letters_of(word)
            # A word of the text counts by its frequency; the root keeps "the" from drowning everything else.
            weight = math.sqrt(word_frequency(word, language) * 1e6)
            padded = f"  {letters} "
            for first, second, third in zip(padded, padded[1:], padded[2:], strict=False):
                after = counts[first, second]
                after[third] = after.get(third, 0.0) + weight
    table = bytearray()
    for first in SYMBOLS:
        for second in SYMBOLS:
            after = counts[first, second]
            total = sum(after.values()) + ADDED * len(SYMBOLS)
            for third in SYMBOLS:
                bits = -math.log2((after.get(third, 0.0) + ADDED) / total)
                table.append(min(255, round(bits * STEPS_PER_BIT)))
    return bytes(table)


if __name__ == "__main__":
    TABLE.write_bytes(b"".join(costs(languages) for languages in GROUPS))
    print(f"{TABLE}: {TABLE.stat().st_size} bytes, {len(GROUPS)} groups of languages")
