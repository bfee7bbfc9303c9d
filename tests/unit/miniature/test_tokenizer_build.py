import re
from pathlib import Path

import pytest

from omnifarm.miniature.tokenizer_build import (
    IDENTIFIER,
    NAMES,
    SPECIAL_TOKENS,
    VOCAB_SIZE,
    build_tokenizer,
    world_texts,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    folder: Path = tmp_path_factory.mktemp("tokenizer")
    assert build_tokenizer(folder, num_scenes=400) <= VOCAB_SIZE
    assert {path.name for path in folder.iterdir()} == {
        "vocab.json",
        "merges.txt",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    return AutoTokenizer.from_pretrained(folder)


def test_names_are_single_ordinary_tokens_and_markers_special_ones(tokenizer):
    for name in (*NAMES, IDENTIFIER):
        assert len(tokenizer.encode(name)) == 1
        assert name not in tokenizer.all_special_tokens
    assert set(tokenizer.all_special_tokens) == set(SPECIAL_TOKENS)


def test_every_word_of_the_world_is_one_or_two_tokens(tokenizer):
    words = set()
    for text in world_texts(seed=77, num_scenes=60):
        words.update(re.findall(r" ?[A-Za-z]+", re.sub(r"<\w+>", "\n", text)))
    assert len(words) > 150
    assert {word for word in words if len(tokenizer.encode(word)) > 2} == set()


@pytest.mark.parametrize("text", ["Is <sks> in the photo?", "Zürich, 42 naïve ☃", "two\n\nlines\tand  spaces "])
def test_any_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
