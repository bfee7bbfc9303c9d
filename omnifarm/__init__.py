"""OmniFarm: teach a frozen unified multimodal model your own things.

The names below are the whole surface for notebooks and other programs; each is imported when it is first used, so that
`import omnifarm` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnifarm.backbone.flow import SamplingOptions
    from omnifarm.backbone.weights import LoadedBackbone, load_backbone
    from omnifarm.concept.spec import ConceptSpec
    from omnifarm.errors import OmniFarmError
    from omnifarm.notebook import draw_concepts, learn, load, open_engine, read_concepts, save
    from omnifarm.serving.engine import Engine
    from omnifarm.serving.requests import Answer, Picture

__all__ = [
    "Answer",
    "ConceptSpec",
    "Engine",
    "LoadedBackbone",
    "OmniFarmError",
    "Picture",
    "SamplingOptions",
    "draw_concepts",
    "learn",
    "load",
    "load_backbone",
    "open_engine",
    "read_concepts",
    "save",
]

_HOMES = {
    "Answer": "omnifarm.serving.requests",
    "ConceptSpec": "omnifarm.concept.spec",
    "Engine": "omnifarm.serving.engine",
    "LoadedBackbone": "omnifarm.backbone.weights",
    "OmniFarmError": "omnifarm.errors",
    "Picture": "omnifarm.serving.requests",
    "SamplingOptions": "omnifarm.backbone.flow",
    "load_backbone": "omnifarm.backbone.weights",
}


def __getattr__(name: str) -> Any:
    """Import a name of the surface with its first use."""
    if name not in __all__:
        raise AttributeError(f"module 'omnifarm' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES.get(name, "omnifarm.notebook")), name)


def __dir__() -> list[str]:
    return list(__all__)
