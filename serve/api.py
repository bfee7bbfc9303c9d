"""The FastAPI application: endpoints, errors and the outermost layer, put together over given services.

Needs no Ray: tests run it in their own process, a replica of `serve.app` runs it behind Ray Serve.
"""

from fastapi import FastAPI

from serve import errors
from serve.edge import Edge
from serve.routes import chat, concepts, files, images, operations, studio, tuning
from serve.services import Services

DESCRIPTION = """Ask, draw and edit with learned concepts, and have new ones learned, in OpenAI's shapes.

Choose a concept by `model: "bagel:<maeve>"`, by `concepts: ["maeve"]`, or by writing `<maeve>` in the text."""


def build_api(services: Services) -> FastAPI:
    """Return the application."""
    api = FastAPI(title="OmniFarm", version="1", description=DESCRIPTION)
    api.state.services = services
    for routes in (chat, images, files, tuning, concepts, operations, studio):
        api.include_router(routes.router)
    errors.install(api)
    api.add_middleware(
        Edge, metrics=services.metrics, replica=services.replica, is_behind_proxy=services.is_behind_proxy
    )
    return api
