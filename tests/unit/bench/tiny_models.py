"""Chameleon and Janus at toy size with random weights, written as folders that transformers reads."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_VQ = {
    "embed_dim": 8, "num_embeddings": 32, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1,
    "latent_channels": 8,
}  # fmt: skip


def write_chameleon(folder: Path) -> Path:
    from transformers import (
        ChameleonConfig,
        ChameleonForConditionalGeneration,
        ChameleonImageProcessor,
        ChameleonProcessor,
    )

    words = _tokenizer(image_token="<image>", boi_token="<boi>", eoi_token="<eoi>", sep_token="<sep>")
    size = len(words)
    pictures = {f"IMGIMG{''.join(chr(65 + int(digit)) for digit in str(i))}Z": size + i for i in range(32)}
    torch.manual_seed(0)
    config = ChameleonConfig(
        **_SMALL,
        **_ends(words),
        vocab_size=size + 40,
        intermediate_size=32,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        vq_config={**_VQ, "resolution": 32, "attn_resolutions": []},
        vocabulary_map={"<image>": words.convert_tokens_to_ids("<image>"), **pictures},
    )
    ChameleonForConditionalGeneration(config).save_pretrained(folder)
    eyes = ChameleonImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    ChameleonProcessor(eyes, words, image_seq_length=256).save_pretrained(folder)
    return folder


def write_janus(folder: Path) -> Path:
    from transformers import JanusConfig, JanusForConditionalGeneration, JanusImageProcessor, JanusProcessor

    words = _tokenizer(image_token="<image_placeholder>", boi_token="<begin_of_image>", eoi_token="<end_of_image>")
    text = {**_SMALL, **_ends(words), "model_type": "llama", "vocab_size": len(words), "intermediate_size": 32}
    torch.manual_seed(0)
    config = JanusConfig(
        text_config={**text, "num_key_value_heads": 2, "max_position_embeddings": 512},
        vision_config={
            **_SMALL, "image_size": 32, "patch_size": 8, "projection_dim": 32, "mlp_ratio": 1.0, "num_image_tokens": 16,
        },
        vq_config={**_VQ, "image_token_embed_dim": 32, "projection_dim": 32, "num_patches": 4},
        image_token_id=words.convert_tokens_to_ids("<image_placeholder>"),
    )  # fmt: skip
    model = JanusForConditionalGeneration(config)
    model.generation_config.update(**_ends(words))
    model.generation_config.generation_kwargs = {"boi_token_id": words.convert_tokens_to_ids("<begin_of_image>")}
    model.generation_config._from_model_config = False
    model.save_pretrained(folder)
    eyes = JanusImageProcessor(size={"height": 32, "width": 32}, min_size=14)
    JanusProcessor(eyes, words, num_image_tokens=16).save_pretrained(folder)
    return folder


def _tokenizer(**special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    letters = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=letters, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", extra_special_tokens=special
    )


def _ends(words: Any) -> dict[str, int]:
    return {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
