"""Other models as systems of the benchmark: with the concept in their prompt, behind an endpoint or in a folder."""

import threading
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from omnifarm.bench.judges.chat import ChatEndpoint
from omnifarm.bench.rows import Row
from omnifarm.bench.system import Reply
from omnifarm.bench.tasks import BenchConcept
from omnifarm.cli.bench_systems import MAX_TOKENS, describe
from omnifarm.errors import ServingError, WeightsError

_TALK_SIZE = 768

Part = str | Image.Image
"""A piece of a prompt."""


class EndpointSystem:
    """Another model behind an OpenAI-compatible endpoint: it answers in words, with the concept in its prompt.

    Args:
        chat: The model.
        row: `prompt` is read: `tp` shows the description, `ip` a photograph.
    """

    def __init__(self, chat: ChatEndpoint, *, row: Row) -> None:
        self._chat, self._row = chat, row

    def fit(self, concept: BenchConcept) -> None:
        """Read what goes into the prompt."""
        self._known = _introduction(concept, self._row)

    def answer(self, question: str, picture: Image.Image | None) -> Reply:
        """Answer a question."""
        parts = [*self._known, *([] if picture is None else [_smaller(picture)]), question]
        reply = self._chat.ask(parts, max_tokens=MAX_TOKENS)
        if reply.failure:
            raise ServingError(f"{self._chat.id}: {reply.failure}")
        return Reply(text=reply.text)

    def generate(self, prompt: str, *, seed: int) -> Reply:
        """Not done: chat endpoints answer in words."""
        raise ServingError(f"{self._chat.id} draws nothing")

    def edit(self, picture: Image.Image, instruction: str, *, seed: int) -> Reply:
        """Not done: chat endpoints answer in words."""
        raise ServingError(f"{self._chat.id} edits nothing")


class LocalModelSystem:
    """Another model in a folder, through transformers; it draws where its class does (Janus).

    One request at a time: callers in other threads wait.

    Args:
        folder: Weights and processor.
        row: `prompt` is read.
        device: Where it runs.

    Raises:
        WeightsError: The folder holds nothing that transformers can load.
    """

    def __init__(self, folder: str, *, row: Row, device: str = "cpu") -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            load_processor: Any = AutoProcessor.from_pretrained
            self._processor: Any = load_processor(folder, local_files_only=True)
            model: Any = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True, dtype="auto")
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"{folder} holds no model that transformers reads pictures with ({error}); give the folder of a "
                "Chameleon, Janus or similar checkpoint"
            ) from error
        self._model = model.to(device).eval()
        self._row, self._lock = row, threading.Lock()
        self._is_janus = model.config.model_type == "janus"

    def fit(self, concept: BenchConcept) -> None:
        """Read what goes into the prompt."""
        self._known = _introduction(concept, self._row)

    def answer(self, question: str, picture: Image.Image | None) -> Reply:
        """Answer a question, greedily."""
        parts = [*self._known, *([] if picture is None else [_smaller(picture)]), question]
        settings = {"generation_mode": "text"} if self._is_janus else {}
        with self._lock, torch.inference_mode():
            inputs = self._inputs(parts, **settings)
            ids = self._model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False, **settings)
            new = ids[:, inputs["input_ids"].shape[1] :]
            (text,) = self._processor.batch_decode(new, skip_special_tokens=True)
        return Reply(text=text.strip())

    def generate(self, prompt: str, *, seed: int) -> Reply:
        """Draw a picture; a model that draws reads words only, so a photograph in its introduction is left out.

        Raises:
            ServingError: The model's class draws nothing.
        """
        if not self._is_janus:
            raise ServingError(f"{self._row.title} draws nothing")
        words = [part for part in (*self._known, prompt) if isinstance(part, str)]
        with self._lock, torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(seed % 2**32)
            inputs = self._inputs(words, generation_mode="image")
            tokens = self._model.generate(**inputs, generation_mode="image", do_sample=True)
            (pixels_HWC,) = self._model.decode_image_tokens(tokens).float().clamp(-1, 1)
        return Reply(picture=Image.fromarray(((pixels_HWC + 1) * 127.5).round().to(torch.uint8).cpu().numpy()))

    def edit(self, picture: Image.Image, instruction: str, *, seed: int) -> Reply:
        """Not done: neither class edits."""
        raise ServingError(f"{self._row.title} edits nothing")

    def _inputs(self, parts: Sequence[Part], **settings: Any) -> Any:
        """Return a prompt's tensors, in the model's own form of a conversation where it has one."""
        pictures = [part for part in parts if not isinstance(part, str)]
        if self._processor.chat_template:
            content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
            talk = [{"role": "user", "content": content}]
            text = self._processor.apply_chat_template(talk, add_generation_prompt=True)
        else:
            text = " ".join(part if isinstance(part, str) else self._processor.image_token for part in parts)
        inputs = self._processor(text=text, images=pictures or None, return_tensors="pt", **settings)
        return inputs.to(self._model.device, self._model.dtype)


def _introduction(concept: BenchConcept, row: Row) -> list[Part]:
    if row.prompt == "ip":
        return [f"This is {concept.identifier}:", _smaller(concept.spec.open_image(concept.spec.images[0]))]
    return [describe(concept)]


def _smaller(picture: Image.Image) -> Image.Image:
    if max(picture.size) <= _TALK_SIZE:
        return picture
    shrunk = picture.copy()
    shrunk.thumbnail((_TALK_SIZE, _TALK_SIZE))
    return shrunk
