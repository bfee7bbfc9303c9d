"""From an example to the sequence the backbone is trained on.

    understanding  [system] [picture, ViT] [question] [answer, loss]
    generation     [system] [caption] [picture, noised]
    editing        [system] [source, clean latents] [source, ViT] [instruction] [target, noised]

A drawing or edit may end in several noised copies of its target, which do not see each other.

Condition dropout mirrors guidance (BAGEL specification 6.2): a sample learned without its text is learned without
its system prompt too, because the text-free branch of guidance has neither. Everything random is drawn from
(seed, concept, step, index), never from a shared stream.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from omnifarm.backbone.segments import Segment, TextSegment
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.concept.examples import Example, ExampleSampler, text_questions
from omnifarm.concept.prepared import PreparedImage, PreparedImages
from omnifarm.concept.prompts import Tokenizer, system_prompt, target_text, user_text
from omnifarm.concept.recipe import Task, TrainingRecipe
from omnifarm.concept.self_description import Looks, seen_looks
from omnifarm.concept.soft_tokens import SoftTokenLayout
from omnifarm.concept.spec import ConceptSpec
from omnifarm.concept.templates import STYLES, Templates
from omnifarm.errors import ConfigError
from omnifarm.seeding import generator


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompter:
    """Turns one concept's texts into segments; its table begins at row 0."""

    tokenizer: Tokenizer
    """The backbone's."""
    layout: SoftTokenLayout
    """The concept's rows."""
    identifier: str
    """Such as `<maeve>`."""
    _known: dict[tuple[str, ...], TextSegment] = field(default_factory=dict, init=False, repr=False, compare=False)

    def system(self, *, dropped: bool = False) -> TextSegment:
        """Return the system prompt."""
        segment = self._once(("system",), lambda: system_prompt(self.layout, tokenizer=self.tokenizer))
        return replace(segment, dropped=True) if dropped else segment

    def user(self, text: str, *, dropped: bool = False) -> TextSegment:
        """Return a question, caption or instruction."""
        rows = {self.identifier: self.layout.sks_row}
        segment = self._once(("user", text), lambda: user_text(text, tokenizer=self.tokenizer, rows=rows))
        return replace(segment, dropped=True) if dropped else segment

    def target(self, text: str) -> TextSegment:
        """Return an answer to be learned."""
        return self._once(
            ("target", text), lambda: target_text(text, tokenizer=self.tokenizer, identifiers=[self.identifier])
        )

    def _once(self, key: tuple[str, ...], make: Callable[[], TextSegment]) -> TextSegment:
        # A concept has a few hundred texts and meets each of them many times.
        if (segment := self._known.get(key)) is None:
            segment = self._known[key] = make()
        return segment


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Draws:
    """Everything random about one sample."""

    is_text_dropped: bool = False
    """Learn without text and system prompt."""
    is_vae_dropped: bool = False
    """Learn without the source's latents."""
    is_vit_dropped: bool = False
    """Learn without the source's ViT features."""
    timestep_logits: tuple[float, ...] = ()
    """u of t = shift(sigmoid(u)) of every noised copy: standard normal, each from its own quantiles."""
    noises: tuple[Tensor, ...] = ()
    """(N, E) of every noised copy of the target."""
    target_posterior: Tensor | None = None
    """(N, E) posterior noise of the target; None takes the mean."""
    source_posterior: Tensor | None = None
    """(N', E) posterior noise of the source; None takes the mean."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ConceptSample:
    """One sequence of a step."""

    task: Task
    """What it teaches."""
    segments: Sequence[Segment]
    """The sequence; soft slots count rows of the concept's own table."""


def build_segments(
    example: Example,
    *,
    prompter: Prompter,
    image: PreparedImage | None,
    target: PreparedImage | None,
    draws: Draws,
) -> list[Segment]:
    """Return the sequence of one example.

    Args:
        example: Texts.
        prompter: The concept's way into ids.
        image: `example.image`, prepared; None if the example has none.
        target: `example.target`, prepared; None if the example has none.
        draws: The random part.

    Raises:
        ConfigError: A picture the task needs is missing: training on half a sample would go unnoticed.
    """
    if example.task == "understanding":
        picture = [] if image is None else [image.vit()]
        return [prompter.system(), *picture, prompter.user(example.prompt), prompter.target(example.answer)]
    if target is None or not draws.noises or (example.task == "editing" and image is None):
        raise ConfigError(f"a {example.task} sample needs its pictures and noise, found none for {example.prompt!r}")
    without_text = draws.is_text_dropped
    conditions: list[Segment] = []
    if image is not None and example.task == "editing":
        conditions = [
            image.clean(draws.source_posterior, dropped=draws.is_vae_dropped),
            image.vit(dropped=draws.is_vit_dropped),
        ]
    return [
        prompter.system(dropped=without_text),
        *conditions,
        prompter.user(example.prompt, dropped=without_text),
        *(
            target.target(timestep_logit=logit, noise=noise, posterior_noise=draws.target_posterior)
            for logit, noise in zip(draws.timestep_logits, draws.noises, strict=True)
        ),
    ]


def draw_randomness(
    example: Example,
    *,
    recipe: TrainingRecipe,
    image: PreparedImage | None,
    target: PreparedImage | None,
    source: torch.Generator,
) -> Draws:
    """Draw the random part of one sample; understanding samples have none."""
    if target is None:
        return Draws()
    chances = torch.rand(3, generator=source).tolist()
    is_edit = example.task == "editing"
    copies = recipe.noise_draws
    return Draws(
        is_text_dropped=chances[0] < recipe.text_dropout,
        is_vae_dropped=is_edit and chances[1] < recipe.vae_dropout,
        is_vit_dropped=is_edit and chances[2] < recipe.vit_dropout,
        timestep_logits=_timestep_logits(copies, source=source),
        noises=tuple(torch.randn(target.mean.shape, generator=source) for _ in range(copies)),
        target_posterior=torch.randn(target.mean.shape, generator=source),
        source_posterior=None if image is None else torch.randn(image.mean.shape, generator=source),
    )


def _timestep_logits(copies: int, *, source: torch.Generator) -> tuple[float, ...]:
    """Draw one logit per copy, copy k between the quantiles k/copies and (k+1)/copies: together they are normal."""
    if copies == 1:
        return (float(torch.randn((), generator=source)),)
    places = (torch.arange(copies) + torch.rand(copies, generator=source)) / copies
    return tuple(torch.special.ndtri(places.double().clamp(1e-6, 1 - 1e-6)).tolist())


class ConceptSamples:
    """The samples of one concept's training, step by step: same step, same samples, wherever it is asked.

    Args:
        spec: The concept.
        recipe: How it is learned.
        backbone: Tokenizer and style of sentences.
        images: Prepared pictures, shared with other concepts.
        layout: Rows of the concept's table; the recipe's by default.
        looks: What the backbone said of the photographs; None asks it if the recipe is `is_self_described`.
        between: Called now and then while it is asked; what it raises goes through.

    Raises:
        ConceptError: The recipe leaves nothing to learn.
        ConfigError: The backbone asks for sentences in an unknown style.
    """

    def __init__(
        self,
        spec: ConceptSpec,
        *,
        recipe: TrainingRecipe,
        backbone: LoadedBackbone,
        images: PreparedImages,
        layout: SoftTokenLayout | None = None,
        looks: Looks | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec = spec
        self.layout = layout or SoftTokenLayout.of_recipe(recipe)
        self._recipe = recipe
        self._images = images
        self._prompter = Prompter(tokenizer=backbone.tokenizer, layout=self.layout, identifier=spec.identifier)
        templates = templates_of(backbone)
        if looks is None:
            is_asked = recipe.is_self_described and recipe.share_understanding > 0
            unknown = unknown_looks(spec, templates=templates) if is_asked else []
            looks = seen_looks(spec, unknown, backbone=backbone, images=images, between=between)
        self.looks = looks
        self._sampler = ExampleSampler(spec, recipe=recipe, templates=templates, looks=looks)

    def draw(self, step: int) -> list[ConceptSample]:
        """Return the samples of optimizer step `step` (0-based).

        Raises:
            ConceptError: A picture is gone or was changed since the concept was read.
        """
        return [self._sample(example, step, index) for index, example in enumerate(self._sampler.draw(step))]

    def _sample(self, example: Example, step: int, index: int) -> ConceptSample:
        image, target = (
            None if one is None else self._images.get(self.spec, one) for one in (example.image, example.target)
        )
        source = generator(self._recipe.seed, self.spec.name, "sample", step, index)
        draws = draw_randomness(example, recipe=self._recipe, image=image, target=target, source=source)
        segments = build_segments(example, prompter=self._prompter, image=image, target=target, draws=draws)
        return ConceptSample(task=example.task, segments=segments)


def unknown_looks(spec: ConceptSpec, *, templates: Templates) -> list[str]:
    """Return the questions about a concept's looks that it does not answer itself; `{c}` stands for it."""
    known = {question for question, _ in text_questions(spec)}
    return [one for one in templates.looks(spec.class_noun) if one.format(c=spec.identifier) not in known]


def templates_of(backbone: LoadedBackbone) -> Templates:
    """Return the sentences a backbone knows (`defaults["templates"]`, "general" when it says nothing)."""
    style = backbone.config.defaults.get("templates", "general")
    if style not in STYLES:
        raise ConfigError(f"backbone defaults: templates must be one of {sorted(STYLES)}, found {style!r}")
    return STYLES[style]
