"""What a concept looks like, in the frozen backbone's own words: it is shown the photographs, and knows the class alone.

A concept learns from its photographs what it looks like, but is rarely asked about it without a picture, so it hardly
learns to tell. Answers of the backbone close that gap without anybody writing a description.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from omnifarm.backbone.inference import empty_context, generate_texts, prefill
from omnifarm.backbone.segments import TextSegment
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.concept.prepared import PreparedImages
from omnifarm.concept.spec import ConceptImage, ConceptSpec, normalise_text

Looks = tuple[tuple[str, str], ...]
"""Questions about a concept's looks that need no picture, and answers."""

MOST_PHOTOS = 12
"""Photographs whose answers are counted; more hardly change what most of them say."""
_MOST_TOKENS = 64


def seen_looks(
    spec: ConceptSpec,
    questions: Sequence[str],
    *,
    backbone: LoadedBackbone,
    images: PreparedImages,
    between: Callable[[], None] = lambda: None,
) -> Looks:
    """Return questions about a concept's looks, which need no picture, with the backbone's most frequent answers.

    Asked of the first `MOST_PHOTOS` photographs; of equally frequent answers the first counts.

    Args:
        spec: The concept.
        questions: `{c}` stands for the concept (see `Templates.looks`).
        backbone: Held whole by this process.
        images: Prepares its photographs.
        between: Called before each photograph; what it raises goes through.

    Raises:
        ConceptError: A photograph is gone or was changed since the concept was read.
    """
    if not questions:
        return ()
    answers: list[list[str]] = []
    for image in spec.images[:MOST_PHOTOS]:
        between()
        answers.append(said_of(spec, image, questions, backbone=backbone, images=images))
    looks = []
    for question, said in zip(questions, zip(*answers, strict=True), strict=True):
        if given := [text for text in said if text]:
            looks.append((question.format(c=spec.identifier), Counter(given).most_common(1)[0][0]))
    return tuple(looks)


def said_of(
    spec: ConceptSpec,
    image: ConceptImage,
    questions: Sequence[str],
    *,
    backbone: LoadedBackbone,
    images: PreparedImages,
) -> list[str]:
    """Return the untrained backbone's answers to questions about one photograph, which it reads once.

    Asked about "the dog", it answers about a dog: there the concept's name is put.

    Args:
        spec: The concept.
        image: One of its photographs.
        questions: `{c}` stands for the concept.
        backbone: Held whole by this process.
        images: Prepares the photograph.
    """
    if not questions:
        return []
    model, tokenizer = backbone.model, backbone.tokenizer
    photo = images.get(spec, image).vit()
    asked = [
        TextSegment(ids=tuple(tokenizer.encode_user(question.format(c=f"the {spec.class_noun}"))))
        for question in questions
    ]
    # A few passes of many shapes: a backbone compiled for training would be compiled for each, up to the compiler's
    # limit, after which training would not be compiled either.
    is_compiled = model.language_model.model.compiled
    with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
        seen = prefill(model, [empty_context(model)], [[photo]]).contexts
        contexts = prefill(model, seen * len(asked), [[one] for one in asked]).contexts
        answers = generate_texts(model, contexts, max_tokens=_MOST_TOKENS)
    return [_named(tokenizer.decode_generated(ids).strip(), spec) for ids in answers]


def _named(text: str, spec: ConceptSpec) -> str:
    """Put the concept's name where the first "a dog" or "the dog" stands."""
    text = re.sub(
        rf"\b(a|an|the|this) {re.escape(spec.class_noun)}\b", spec.identifier, text, count=1, flags=re.IGNORECASE
    )
    return normalise_text(text, name=spec.name)
