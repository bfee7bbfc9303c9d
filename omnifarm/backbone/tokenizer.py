"""Text to ids and back, with the four special tokens that frame segments.

A thin layer over transformers' Qwen2 tokenizer. It knows which strings are special and how to keep users from
writing them; it knows no template and no role words, because the backbone has none.
"""

import itertools
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from omnifarm.backbone.config import SpecialIds
from omnifarm.errors import WeightsError

IM_START = "<|im_start|>"
"""Opens a text segment."""
IM_END = "<|im_end|>"
"""Closes a text segment."""
VISION_START = "<|vision_start|>"
"""Opens an image."""
VISION_END = "<|vision_end|>"
"""Closes an image."""

_FRAME = (IM_START, IM_END, VISION_START, VISION_END)


class BackboneTokenizer:
    """The tokenizer of one backbone folder. Build it with `from_folder`.

    Args:
        tokenizer: A transformers Qwen2 tokenizer; frame tokens it does not declare are appended to it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        declared = set(tokenizer.all_special_tokens)
        length_before = len(tokenizer)
        # A string that already has an id keeps it, so the return value is no count of new ids.
        self.num_added: int = tokenizer.add_tokens([token for token in _FRAME if token not in declared])
        self.num_appended: int = len(tokenizer) - length_before
        ids = [int(tokenizer.convert_tokens_to_ids(token)) for token in _FRAME]
        self.special_ids = SpecialIds(im_start=ids[0], im_end=ids[1], vision_start=ids[2], vision_end=ids[3])
        self._reserved = tuple(sorted(declared | set(_FRAME)))

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Load `vocab.json`, `merges.txt` and the tokenizer's JSON files of a backbone folder.

        Raises:
            WeightsError: The files are missing or damaged.
        """
        from transformers import Qwen2Tokenizer

        folder = Path(folder)
        if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
            raise WeightsError(f"{folder}: expected tokenizer.json or vocab.json with merges.txt, found neither")
        try:  # the library raises whatever its JSON and Rust parts raise, all of it about these files
            tokenizer = Qwen2Tokenizer.from_pretrained(str(folder))
        except Exception as error:
            raise WeightsError(f"{folder}: the tokenizer files cannot be read: {error}") from error
        return cls(tokenizer)

    def __len__(self) -> int:
        """Return the number of ids, appended frame tokens included."""
        return len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Return the ids of trusted text; strings such as `<|im_end|>` become their special ids."""
        return [int(i) for i in self._tokenizer.encode(text, add_special_tokens=False)]

    def encode_user(self, text: str) -> list[int]:
        """Return the ids of untrusted text; special strings in it are spelled out and never become special ids.

        `decode` gives the text back (in NFC). Text without special strings gets the same ids as from `encode`.
        """
        text = unicodedata.normalize("NFC", text)
        # Cutting every special string after its first character leaves no piece that contains one.
        cuts = {0, len(text)}
        for token in self._reserved:
            start = text.find(token)
            while start >= 0:
                cuts.add(start + 1)
                start = text.find(token, start + 1)
        edges = sorted(cuts)
        return [i for begin, end in itertools.pairwise(edges) for i in self.encode(text[begin:end])]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens kept."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def decode_generated(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids: up to the first end token, after the first start token, not stripped."""
        text = self.decode(ids).split(IM_END)[0]
        parts = text.split(IM_START)
        return parts[1] if len(parts) > 1 else text
