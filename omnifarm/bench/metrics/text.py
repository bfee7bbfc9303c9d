"""Answers in words: BLEU over characters and words, and who said yes or no.

`compat` repeats the arithmetic of the public scripts, quirks included; `strict` repairs what is plainly a mistake.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

Protocol = Literal["strict", "compat"]
"""`strict` is the default; `compat` is for putting a number beside published ones."""

BLEU_WEIGHTS = (0.7, 0.3)
"""Weights of 1-grams and 2-grams in the public scripts."""

_EPSILON = 0.1
_YES_OR_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def bleu(reference: str, candidate: str) -> float:
    """Return BLEU over characters, 0..1, as UniCTokens, MC-LLaVA and Sync-R1 compute it.

    NLTK's `sentence_bleu` with one reference, weights (0.7, 0.3) and smoothing method 1: case and punctuation count.
    Unrelated short answers share punctuation and score above 0 ("Yes." against "No." is 0.135).
    """
    return _bleu(list(reference), list(candidate))


def word_bleu(reference: str, candidate: str) -> float:
    """Return the same over lower-cased words without punctuation, 0..1: without the floor of shared characters."""
    return _bleu(_words(reference), _words(candidate))


def is_hit(reference: str, answer: str, *, protocol: Protocol = "strict") -> bool:
    """Return whether a recognition answer agrees with its reference.

    strict: the first standalone yes or no of the answer decides; an answer with neither is a miss. compat: reference
    "No." is hit by the letters "no" anywhere ("not", "know", "now" count), any other reference by "yes" anywhere.
    """
    if protocol == "compat":
        return ("no" if _is_no(reference) else "yes") in answer.lower()
    return said(answer) == (not _is_no(reference))


def said(answer: str) -> bool | None:
    """Return True for yes, False for no, by the first standalone word of the two; None when there is neither."""
    found = _YES_OR_NO.search(answer)
    return None if found is None else found[1].lower() == "yes"


def balanced_recall(references: Sequence[str], answers: Sequence[str], *, protocol: Protocol = "strict") -> float:
    """Return (recall over positives + recall over negatives) / 2, 0..1; NaN where either is missing."""
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for reference, answer in zip(references, answers, strict=True):
        hits[_is_no(reference)].append(is_hit(reference, answer, protocol=protocol))
    if not hits[True] or not hits[False]:
        return math.nan
    return sum(sum(side) / len(side) for side in hits.values()) / 2


def _is_no(reference: str) -> bool:
    return said(reference) is False


def _bleu(reference: Sequence[str], candidate: Sequence[str]) -> float:
    logs = 0.0
    for n, weight in enumerate(BLEU_WEIGHTS, start=1):
        wanted, given = _ngrams(reference, n), _ngrams(candidate, n)
        matches = sum(min(count, wanted[gram]) for gram, count in given.items())
        if n == 1 and not matches:
            return 0.0
        logs += weight * math.log((matches or _EPSILON) / max(1, sum(given.values())))
    brevity = 1.0 if len(candidate) > len(reference) else math.exp(1 - len(reference) / len(candidate))
    return brevity * math.exp(logs)


def _ngrams(symbols: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(symbols[i : i + n]) for i in range(len(symbols) - n + 1))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
