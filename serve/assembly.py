"""From settings to a working engine."""

import torch

from omnifarm.backbone.weights import load_backbone
from omnifarm.concept.repository import ConceptRepository
from omnifarm.serving.engine import Engine
from omnifarm.serving.requests import Limits
from omnifarm.store.open import open_store
from serve.settings import ServeSettings


def build_engine(settings: ServeSettings) -> Engine:
    """Load the backbone and open the store.

    Raises:
        OmniFarmError: The backbone or the store cannot be used; the replica does not start.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    loaded = load_backbone(settings.backbone, dtype=getattr(torch, settings.dtype), device=settings.device)
    return Engine(
        loaded,
        ConceptRepository(open_store(settings.store)),
        limits=Limits(max_text_chars=settings.max_text_chars),
    )
