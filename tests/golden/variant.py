"""Builds a second golden folder: other sizes everywhere, specials missing from the tokenizer, other pictures.

Its expected values are recorded from our own code, so it proves nothing about the official numbers. What it proves is
that the verifier and all it replays take every size from the folder: nothing of the first set is written into code.
"""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnifarm.backbone.config import BackboneConfig
from omnifarm.backbone.conformance import verify
from omnifarm.backbone.conformance.comparison import Group
from omnifarm.backbone.conformance.golden import Golden
from omnifarm.backbone.latents import LatentCodec
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.tokenizer import BackboneTokenizer
from omnifarm.backbone.weights import load_backbone
from tests.unit.backbone.test_tokenizer import variant as tokenizer_variant

LLM = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "rope_theta": 20000.0, "vocab_size": 410,
}  # fmt: skip
VIT = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 3,
    "image_size": 84, "patch_size": 7, "num_channels": 3,
}  # fmt: skip
EXTRA = {
    "autoencoder": {
        "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2, 1], "downsample": 4, "num_res_blocks": 2,
        "z_channels": 6, "scale_factor": 0.6, "shift_factor": -0.3,
    },
    "bagel": {
        "latent_patch_size": 2, "max_latent_size": 19, "vit_max_num_patch_per_side": 12, "timestep_shift": 2.5,
        "connector_act": "gelu_pytorch_tanh", "interpolate_pos": False,
    },
    "vae_transform": {"max_image_size": 72, "min_image_size": 24, "image_stride": 8},
    "vit_transform": {"max_image_size": 84, "min_image_size": 28, "image_stride": 7},
    "transform_max_pixels": 3000,
}  # fmt: skip
SIZES = {"img0": (90, 31), "img1": (40, 64), "img2": (33, 33), "img3": (25, 180)}


def build_variant(folder: Path, *, source: Path) -> Path:
    """Write the variant of the golden set `source` into `folder` and return it."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    _write_checkpoint(checkpoint)
    _write_images(folder / "images")
    index = json.loads((source / "index.json").read_text())
    golden = Golden(folder=folder, index=index, backbone=load_backbone(checkpoint))
    _renew_ids(index, golden.tokenizer)
    for name, entry in index["groups"].items():
        recorder = Recorder(name, entry=entry, folder=source)
        recorder.values = _given(golden, name, entry, source=source)
        with torch.no_grad():
            verify.REPLAYS[name](golden, recorder)
        recorder.write(folder)
    (folder / "index.json").write_text(json.dumps(index))
    return folder


class Recorder(Group):
    """A group that writes down what a replay computes instead of comparing it."""

    values: dict[str, Tensor]

    def __init__(self, name: str, *, entry: dict[str, Any], folder: Path) -> None:
        super().__init__(name, entry=entry, folder=folder)
        self.entry = entry

    def given(self, name: str) -> Tensor:
        return self.values[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.values[name].shape) if name in self.values else super().shape(name)

    def compare(self, name: str, found: Tensor) -> None:
        if self.expects(name):
            dtype = getattr(torch, self.entry["tensors"][name]["dtype"])
            self.values[name] = found.detach().to(dtype).clone().contiguous()

    def exact(self, name: str, found: Tensor, *, why: str) -> None:
        pass

    def fact(self, name: str, found: Any) -> None:
        plain = found.tolist() if isinstance(found, Tensor) else found
        self.entry["params"][name] = json.loads(json.dumps(plain))

    def same(self, name: str, found: Any, *, expected: Any) -> None:
        if name.endswith("_margin"):
            self.entry["params"][name] = found
        elif self.name == "h2_packing":
            case, field = name.split(".")
            entry = next(entry for entry in self.entry["params"]["cases"] if entry["name"] == case)
            entry[field] = json.loads(json.dumps(found.tolist() if isinstance(found, Tensor) else found))

    def near(self, name: str, found: Any, *, expected: Any) -> None:
        self.same(name, found, expected=expected)

    def write(self, folder: Path) -> None:
        for name, described in (self.entry.get("tensors") or {}).items():
            described["shape"] = list(self.values[name].shape)
            if not described["tolerance"].get("exact") and "max_level_diff" not in described["tolerance"]:
                described["tolerance"] = {"atol": 1e-5, "rtol": 1e-4}
        if self.entry.get("file"):
            wanted = {name: self.values[name] for name in self.entry["tensors"]}
            save_file(wanted, folder / self.entry["file"])


def _write_checkpoint(folder: Path) -> None:
    (folder / "llm_config.json").write_text(json.dumps({**LLM, "hidden_act": "silu"}))
    (folder / "vit_config.json").write_text(json.dumps(VIT))
    (folder / "golden_extra_config.json").write_text(json.dumps(EXTRA))
    tokenizer_variant(folder, keep=["<|endoftext|>"])
    config = BackboneConfig.from_folder(folder)
    draws = torch.Generator().manual_seed(11)
    model = Backbone(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(center, 0.2, generator=draws)
    save_file(dict(model.state_dict()), folder / "ema.safetensors")
    codec = LatentCodec(config.autoencoder)
    with torch.no_grad():
        for parameter in codec.module.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draws))
    codec.save(folder / "ae.safetensors")


def _write_images(folder: Path) -> None:
    folder.mkdir()
    draws = np.random.default_rng(5)
    for name, (width, height) in SIZES.items():
        coarse = Image.fromarray(draws.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{name}.png")


def _renew_ids(index: dict[str, Any], tokenizer: BackboneTokenizer) -> None:
    """Put this vocabulary's ids wherever the recorded parameters hold ids that are inputs."""
    for case in index["groups"]["static"]["params"]["tokenizer_cases"]:
        case["ids"] = tokenizer.encode(case["text"])
        case["decoded"] = tokenizer.decode(case["ids"])
    for case in index["groups"]["h2_packing"]["params"]["cases"]:
        case["packed_timesteps"] = [0.5] * 4000
        for entry in case["plan"]:
            if entry["special_token_loss"]:
                entry["special_token_label"] = tokenizer.special_ids.im_start
    index["groups"]["h_train"]["params"]["timestep_logits"] = [0.7, -1.3]
    for name in ("f_t2i", "f2_t2i_think", "f3_t2i_window"):
        index["groups"][name]["params"]["hw"] = [40, 72]
    index["groups"]["e_velocity"]["params"]["t2i_hw"] = [40, 72]
    for name, width_height in SIZES.items():
        index["images"][f"images/{name}.png"] = {"size_wh": list(width_height)}


def _given(golden: Golden, name: str, entry: dict[str, Any], *, source: Path) -> dict[str, Tensor]:
    """Return the input tensors of a group in this variant's sizes."""
    draws = torch.Generator().manual_seed(len(name))
    config = golden.config

    def rows(*names: str) -> Tensor:
        grids = [golden.grid(golden.latent_transform.pixels(golden.image(image))) for image in names]
        return torch.randn(sum(h * w for h, w in grids), config.latent_dim, generator=draws)

    def sized(size: list[int]) -> Tensor:
        count = (size[0] // config.latent_downsample) * (size[1] // config.latent_downsample)
        return torch.randn(count, config.latent_dim, generator=draws)

    given: dict[str, Tensor] = {}
    if name in ("static", "e2_cfg_unit"):
        recorded = load_file(source / entry["file"])
        given = {key: recorded[key] for key in ("time_in", "patchify_in", "v", "v_T", "v_I") if key in recorded}
    elif name == "a_vit":
        given = {"image_u8": torch.from_numpy(np.array(golden.image("img0")))}
    elif name == "b_vae":
        latent = golden.codec.encode(golden.latent_transform.pixels(golden.image("img0")))
        given = {"eps": torch.randn(latent.shape, generator=draws)[None]}
    elif name == "e_velocity":
        entry["params"]["hw"] = list(golden.latent_transform.resize(golden.image("img0")).size)[::-1]
        given = {"x_t": rows("img0"), "t2i_x_t": sized(entry["params"]["t2i_hw"])}
    elif name in ("f_t2i", "f2_t2i_think", "f3_t2i_window"):
        given = {"init_noise": sized(entry["params"]["hw"])}
    elif name in ("g_edit", "g4_edit_window", "g3_interleave"):
        given = {"init_noise": rows("img0")}
    elif name in ("h_train", "i_soft"):
        given = {"noise": rows("img2", "img0", "img3")}
        if name == "i_soft":
            width = config.hidden_size
            given |= {"soft_vectors": torch.randn(5, width, generator=draws), "infer_t2i_init_noise": rows("img2")}
    elif name == "h3_chain":
        given = {"noise": rows("img0", "img3", "img3", "img2")}
    return copy.deepcopy(given)
