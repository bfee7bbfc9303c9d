"""How many rows of the pool a request can ever hold: counted before it is let in, never exceeded afterwards."""

from collections.abc import Sequence

from omnifarm.backbone.image_ops import ImageTransform, latent_grid, to_rgb, vit_patch_size
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.serving.checking import MAX_REPLY, question_about, removed_by
from omnifarm.serving.replay import (
    ReplayMode,
    ReplayStyle,
    answer_prompt,
    composer_prompt,
    question_prompt,
    unified_prompt,
)
from omnifarm.serving.requests import AskRequest, GenerateRequest, Request
from omnifarm.serving.resident import Resident
from omnifarm.serving.scripts import FRAME, MAX_THOUGHT, Scripts


class Footprint:
    """Counts rows for one backbone.

    Args:
        loaded: For sizes of pictures.
        scripts: For texts as they will be said.
        style: How replay talks.
    """

    def __init__(self, loaded: LoadedBackbone, *, scripts: Scripts, style: ReplayStyle) -> None:
        self._config, self._tokenizer = loaded.config, loaded.tokenizer
        self._scripts, self._style = scripts, style
        self._vae = ImageTransform(config=loaded.config.vae_transform)
        self._vit = ImageTransform(config=loaded.config.vit_transform)

    def rows(self, request: Request, residents: Sequence[Resident]) -> int:
        """Return the most rows the request can hold at any moment.

        Args:
            request: Checked.
            residents: Its concepts.
        """
        known = sum(len(self._scripts.introduce(one).ids) + FRAME for one in residents)
        if isinstance(request, AskRequest):
            think = self._think("understanding") if request.think else 0
            shown = sum(self.vit(image.size) for image in request.images)
            return known + think + shown + self.text(request.question) + request.max_tokens
        words = request.prompt if isinstance(request, GenerateRequest) else request.instruction
        replay = self._replay(words, residents, mode=request.replay)
        # What replay composes is at most the request and, for every concept, what was written about it.
        text = self.text(words) + (len(residents) * self._style.max_tokens if replay else 0)
        # What says nothing but how to think has rows of its own; a thought is written and read again.
        think = 2 * self._think("generation") + 2 * MAX_THOUGHT + FRAME if request.think else 0
        if isinstance(request, GenerateRequest):
            size, contexts = request.size, known + think + text
        else:
            sizes = [self._vae.size(to_rgb(image).size) for image in request.images]
            size = sizes[-1][::-1]
            shown = sum(self.vit(one) + self.latents(one[::-1]) for one in sizes)
            contexts = known + think + 2 * (shown + text)
            removed = removed_by(words)
            if removed is not None and request.attempts > 1:
                # Who drew in think mode has read the system prompts together with other words; asking reads them alone.
                contexts += known + self.vit(sizes[-1]) + self.text(question_about(removed)) + MAX_REPLY
        return replay + contexts + 3 * self.latents(size)

    def _replay(self, text: str, residents: Sequence[Resident], *, mode: ReplayMode) -> int:
        if mode is ReplayMode.OFF or not residents:
            return 0
        name, style = residents[0].identifier, self._style
        prompts = (
            unified_prompt(text, concept=name, style=style),
            question_prompt(text, style=style),
            answer_prompt(text, style=style),
            composer_prompt(text, text, style=style),
        )
        longest = max(self.text(prompt) for prompt in prompts)
        # One concept at a time: its system prompt, its prompt (longer by what was written before), what it writes.
        introduction = max(len(self._scripts.introduce(one).ids) + FRAME for one in residents)
        return introduction + longest + (len(residents) + 3) * style.max_tokens

    def text(self, text: str) -> int:
        """Return the rows of a text."""
        return len(self._tokenizer.encode_user(text)) + FRAME

    def _think(self, output: str) -> int:
        return len(self._scripts.think_prompt(output).ids) + FRAME

    def latents(self, size: tuple[int, int]) -> int:
        """Return the rows of a picture of `size` (height, width) as the denoiser sees it."""
        rows, columns = latent_grid(size, config=self._config)
        return rows * columns + FRAME

    def vit(self, width_height: tuple[int, int]) -> int:
        """Return the rows of a picture as understanding sees it."""
        width, height = self._vit.size(self._vae.size(width_height))
        patch = vit_patch_size(self._config)
        return (width // patch) * (height // patch) + FRAME
