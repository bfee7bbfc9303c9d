"""Builds the miniature's tokenizer: byte-level BPE as Qwen2 has it, trained on the world's own sentences.

Any text encodes, because every byte is a token; the world's words are one or two tokens each. Names `<n0>`..`<n31>`
and `<sks>` are ordinary added tokens; the five markers of the backbone are special ones.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omnifarm.miniature.edits import removal, sample_edit
from omnifarm.miniature.facts import closed_replay, fact_sentences, fact_turns, replays, sample_facts
from omnifarm.miniature.identity import sample_identity
from omnifarm.miniature.scene import sample_scene
from omnifarm.miniature.text import (
    appearance_turns,
    caption,
    describe,
    looks_turn,
    mention,
    recognition_turn,
    scene_turns,
)

NUM_NAMES = 32
NAMES = tuple(f"<n{i}>" for i in range(NUM_NAMES))
IDENTIFIER = "<sks>"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
VOCAB_SIZE = 1024

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def world_texts(*, seed: int = 0, num_scenes: int = 4000) -> Iterator[str]:
    """Yield sentences of every kind the world knows, with the names left in."""
    rng = random.Random(seed)
    for _ in range(num_scenes):
        who = [sample_identity(rng) for _ in range(rng.choice((1, 1, 2)))]
        scene = sample_scene(rng, who)
        names = rng.sample([*NAMES, IDENTIFIER], len(who))
        facts = sample_facts(rng)
        yield caption(scene, names)
        yield caption(scene, [mention(placed.identity) for placed in scene.subjects])
        for index, (placed, name) in enumerate(zip(scene.subjects, names, strict=True)):
            yield describe(placed.identity, name)
            turns = [*appearance_turns(placed.identity, name), *scene_turns(scene, index, name)]
            turns.append(looks_turn(placed.identity, name))
            turns += [*fact_turns(facts, name, wording=rng.randrange(3)), recognition_turn(name, present=True, rng=rng)]
            turns.append(recognition_turn(name, present=False))
            for turn in turns:
                yield turn.question
                yield turn.answer
            yield from fact_sentences(facts, name)
            for example in (*replays(facts, name, wording=rng.randrange(2)), closed_replay(caption(scene, names))):
                yield example.exemplar
            yield sample_edit(rng, scene, index, name).instruction
            yield removal(scene, index, name).instruction


def build_tokenizer(folder: Path, *, seed: int = 0, num_scenes: int = 4000) -> int:
    """Train the tokenizer and write it in the layout of the released backbone.

    Args:
        folder: Where `vocab.json`, `merges.txt`, `tokenizer.json` and `tokenizer_config.json` go; made if absent.
        seed: Which sentences it is trained on.
        num_scenes: How many scenes they are about.

    Returns:
        Number of tokens, at most `VOCAB_SIZE`.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    added = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    named = [AddedToken(token, special=False, normalized=False) for token in (IDENTIFIER, *NAMES)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(added) - len(named),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    bare = (text.replace(IDENTIFIER, "\n") for text in world_texts(seed=seed, num_scenes=num_scenes))
    tokenizer.train_from_iterator((_without_names(text) for text in bare), trainer)
    tokenizer.add_tokens([*added, *named])
    return _write(folder, tokenizer, [*added, *named])


def _without_names(text: str) -> str:
    for name in NAMES:
        text = text.replace(name, "\n")
    return text


def _write(folder: Path, tokenizer: Any, added: list[Any]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    decoder = {
        str(tokenizer.token_to_id(token.content)): {
            "content": token.content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token.special,
        }
        for token in added
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL_TOKENS[0],
        "errors": "replace",
        "model_max_length": 4096,
        "pad_token": SPECIAL_TOKENS[0],
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return int(tokenizer.get_vocab_size())
