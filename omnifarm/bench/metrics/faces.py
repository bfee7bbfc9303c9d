"""Whose face it is: ArcFace as the paper has it, and dlib's network as a stand-in with columns of its own.

Both take the largest face of a picture. A picture without a face is not skipped in silence: the detection rate and
the mean with such pictures as 0 stand beside the mean over detected faces, which rewards who draws no face.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from omnifarm.bench.metrics.encoders import NotRun
from omnifarm.bench.metrics.similarity import mean_similarity, normalised
from omnifarm.concept.images import pixel_digest

ARCFACE_PACK = "antelopev2"
"""InsightFace model pack of the public script (for non-commercial use)."""

_DLIB_LANDMARKS = "shape_predictor_5_face_landmarks.dat"
_DLIB_FACES = "dlib_face_recognition_resnet_model_v1.dat"


class FaceEncoder(Protocol):
    """Pictures to the embedding of their largest face."""

    def embed(self, picture: Image.Image) -> NDArray[np.float32] | None:
        """Return (D,), or None where no face is found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FaceScore:
    """How alike the faces of one concept's drawings and photographs are."""

    similarity: float | None
    """Mean cosine over pairs of detected faces; None without any."""
    detected: float
    """Share of the drawings in which a face is found."""
    with_zeros: float | None
    """The same mean with drawings without a face as 0; None when no photograph shows a face."""
    distance: float | None
    """Mean Euclidean distance over the pairs, before normalisation (the scale on which dlib's network is trained)."""
    num_drawings: int
    """Drawings looked at."""
    num_faces: int
    """Drawings with a face."""


def score_faces(encoder: FaceEncoder, drawings: Sequence[Image.Image], photographs: Sequence[Image.Image]) -> FaceScore:
    """Compare the faces of drawings with those of photographs, N_gen x N_ref pairs."""
    found = [face for picture in drawings if (face := encoder.embed(picture)) is not None]
    known = [face for picture in photographs if (face := encoder.embed(picture)) is not None]
    detected = len(found) / len(drawings) if drawings else 0.0
    if not found or not known:
        zeros = 0.0 if known and drawings else None
        return FaceScore(
            similarity=None, detected=detected, with_zeros=zeros, distance=None, num_drawings=len(drawings), num_faces=len(found)
        )  # fmt: skip
    similarity = mean_similarity(normalised(np.stack(found)), normalised(np.stack(known)))
    gaps = np.linalg.norm(np.stack(found)[:, None] - np.stack(known)[None], axis=-1)
    return FaceScore(
        similarity=similarity,
        detected=detected,
        with_zeros=similarity * detected,
        distance=float(gaps.mean()),
        num_drawings=len(drawings),
        num_faces=len(found),
    )


class _Remembering:
    """Looks at each picture once: photographs are compared with the drawings of every row."""

    def __init__(self) -> None:
        self._known: dict[str, NDArray[np.float32] | None] = {}

    def embed(self, picture: Image.Image) -> NDArray[np.float32] | None:
        """Return the largest face's embedding (D,), or None where no face is found."""
        digest = pixel_digest(picture)
        if digest not in self._known:
            self._known[digest] = self._embed(picture)
        return self._known[digest]

    def _embed(self, picture: Image.Image) -> NDArray[np.float32] | None:
        raise NotImplementedError


class ArcFaceEncoder(_Remembering):
    """InsightFace's detector and ArcFace network; pictures are resized as the public script does, BGR.

    Args:
        app: A prepared `insightface.app.FaceAnalysis`.
    """

    def __init__(self, app: Any) -> None:
        super().__init__()
        self._app = app

    def _embed(self, picture: Image.Image) -> NDArray[np.float32] | None:
        faces = self._app.get(np.asarray(_resized(picture))[:, :, ::-1])
        if not faces:
            return None
        largest = max(faces, key=lambda face: (face.bbox[2] - face.bbox[0]) * (face.bbox[3] - face.bbox[1]))
        return np.asarray(largest.normed_embedding, np.float32)


class DlibEncoder(_Remembering):
    """dlib's frontal detector and its face network (128 numbers), weights from `face_recognition_models`."""

    def __init__(self, folder: Path) -> None:
        import dlib

        super().__init__()

        self._detect = dlib.get_frontal_face_detector()
        self._landmarks = dlib.shape_predictor(str(folder / _DLIB_LANDMARKS))
        self._network = dlib.face_recognition_model_v1(str(folder / _DLIB_FACES))

    def _embed(self, picture: Image.Image) -> NDArray[np.float32] | None:
        pixels = np.ascontiguousarray(np.asarray(picture.convert("RGB")))
        boxes = self._detect(pixels, 1)
        if not boxes:
            return None
        largest = max(boxes, key=lambda box: box.area())
        return np.asarray(self._network.compute_face_descriptor(pixels, self._landmarks(pixels, largest)), np.float32)


def open_arcface(root: str | None) -> ArcFaceEncoder | NotRun:
    """Open ArcFace from a folder that holds `models/antelopev2/*.onnx`; nothing is downloaded."""
    if root is None:
        return NotRun(reason=f"give --arcface FOLDER with models/{ARCFACE_PACK} (non-commercial weights, not shipped)")
    if find_spec("insightface") is None:
        return NotRun(reason="pip install insightface onnxruntime")
    if not list((Path(root) / "models" / ARCFACE_PACK).glob("*.onnx")):
        return NotRun(reason=f"no models/{ARCFACE_PACK}/*.onnx under {root}; unpack the {ARCFACE_PACK} pack there")
    from insightface.app import FaceAnalysis

    app = FaceAnalysis(name=ARCFACE_PACK, root=root)
    app.prepare(ctx_id=-1, det_size=(640, 640))
    return ArcFaceEncoder(app)


def open_dlib() -> DlibEncoder | NotRun:
    """Open the stand-in for faces, if its packages are installed."""
    # Importing face_recognition_models fails under new setuptools; only its files are wanted.
    spec = find_spec("face_recognition_models")
    if find_spec("dlib") is None or spec is None or spec.origin is None:
        return NotRun(reason="pip install dlib-bin face-recognition-models")
    return DlibEncoder(Path(spec.origin).parent / "models")


def _resized(picture: Image.Image) -> Image.Image:
    """Bring the shorter side to 1024 with the longer at most 1280, both multiples of 64 (bilinear)."""
    width, height = picture.size
    scale = min(1024 / min(width, height), 1280 / max(width, height))
    size = tuple(max(64, round(side * scale / 64) * 64) for side in (width, height))
    return picture.convert("RGB").resize((size[0], size[1]), Image.Resampling.BILINEAR)
