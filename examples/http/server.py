"""A bundle behind HTTP, by Starlette and uvicorn: POST an image to /predict, get JSON.

    pip install '.[serve]'
    NIWAKI_BUNDLE=runs/digits/bundle uvicorn --app-dir examples/http server:app
    curl --data-binary @digit.png http://127.0.0.1:8000/predict

NIWAKI_TRUSTED_KEY names a public key whose owner has to have signed the bundle; NIWAKI_LARGEST is the largest image in
bytes. Needs no torch.
"""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import deploy
from deploy.errors import DeployError


@asynccontextmanager
async def bundle_of(app: Starlette) -> AsyncIterator[None]:
    """Load the bundle before the first request, once; a bundle that cannot be used stops the server."""
    key = os.environ.get("NIWAKI_TRUSTED_KEY")
    with deploy.load(os.environ["NIWAKI_BUNDLE"], trusted_key=key) as bundle:
        if bundle.manifest.inputs:
            raise DeployError(
                f"{bundle.name} reads {', '.join(bundle.manifest.inputs)}, and a request holds one image."
            )
        app.state.bundle = bundle
        yield


async def predict(request: Request) -> JSONResponse:
    """What the bundle finds in the image that is the request's body: 400 for no image, 413 for one too large."""
    bundle = request.app.state.bundle
    body = await _body(request, int(os.environ.get("NIWAKI_LARGEST", "10000000")))
    try:
        # Decoding and running hold no lock that other requests need, so they go to a thread.
        found = await run_in_threadpool(lambda: bundle.predict([_opened(body)])[0])
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, DeployError) as error:
        raise HTTPException(400, f"The body is no image that can be read ({type(error).__name__}).") from error
    except Image.DecompressionBombError as error:
        raise HTTPException(413, "The image has too many pixels.") from error
    return JSONResponse({key: _plain(value) for key, value in found.items() if key != "file"})


async def about(request: Request) -> JSONResponse:
    """That the server is ready, and by what it runs."""
    bundle = request.app.state.bundle
    return JSONResponse({"classes": bundle.classes, "runtime": bundle.runtime, "why": bundle.why})


async def failed(request: Request, error: Exception) -> JSONResponse:
    """An error as JSON."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


async def _body(request: Request, largest: int) -> bytes:
    """The request's body, given up as soon as it is too large, whatever its header claims."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > largest:
            raise HTTPException(413, f"The body has more than {largest} bytes.")
        parts.append(part)
    return b"".join(parts)


def _opened(body: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(body))
    image.load()
    return image


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


app = Starlette(
    routes=[Route("/predict", predict, methods=["POST"]), Route("/", about)],
    lifespan=bundle_of,
    exception_handlers={HTTPException: failed},
)
