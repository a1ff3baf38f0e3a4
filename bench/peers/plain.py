"""FastAPI as most people write it: a picture is decoded and answered on its own.

`MODE=direct` works in the event loop, `MODE=threadpool` in FastAPI's threads, `POOL` of them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
import orjson
from faces import UnreadableError, service
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

faces = service()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = int(os.environ.get("POOL", "40"))
    yield


app = FastAPI(lifespan=lifespan)


def predict(body: bytes) -> Response:
    try:
        [answer] = faces.answer([faces.prepare(body)])
    except UnreadableError as error:
        return Response(orjson.dumps({"error": str(error)}), 422, media_type="application/json")
    return Response(orjson.dumps(answer), media_type="application/json")


if os.environ.get("MODE", "direct") == "direct":

    @app.post("/predict")
    async def direct(request: Request) -> Response:
        return predict(await request.body())
else:

    @app.post("/predict")
    async def pooled(request: Request) -> Response:
        return await run_in_threadpool(predict, await request.body())
