"""FastAPI with a micro-batcher, as a team writes it that knows what batching is worth.

`LOOPS` threads, each with networks of its own, take whatever waits, at most `BATCH` pictures, and never wait for more.
OpenCV and ONNX Runtime let go of the interpreter's lock, so the threads use as many cores. `DECODE=worker` decodes
in these threads, `DECODE=handler` in the event loop.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from faces import UnreadableError, service
from fastapi import FastAPI, Request, Response

BATCH, LOOPS = int(os.environ.get("BATCH", "16")), int(os.environ.get("LOOPS", "1"))
IN_HANDLER = os.environ.get("DECODE", "worker") == "handler"

services = [service() for _ in range(LOOPS)]
waiting: queue.SimpleQueue[tuple[Any, asyncio.Future[bytes]] | None] = queue.SimpleQueue()


def deliver(batch: list[tuple[asyncio.Future[bytes], bytes | Exception]]) -> None:
    for future, answer in batch:
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def take() -> list[tuple[Any, asyncio.Future[bytes]]]:
    """What waits; an empty list is the end."""
    first = waiting.get()
    batch = [first] if first else []
    while batch and len(batch) < BATCH:
        try:
            item = waiting.get_nowait()
        except queue.Empty:
            break
        if item is None:
            waiting.put(None)
            break
        batch.append(item)
    return batch


def work(faces: Any, loop: asyncio.AbstractEventLoop) -> None:
    while batch := take():
        done: list[tuple[asyncio.Future[bytes], bytes | Exception]] = []
        prepared, futures = [], []
        for item, future in batch:
            try:
                prepared.append(item if IN_HANDLER else faces.prepare(item))
                futures.append(future)
            except UnreadableError as error:
                done.append((future, error))
        try:
            answers = faces.answer(prepared) if prepared else []
            done += zip(futures, map(orjson.dumps, answers), strict=True)
        except Exception as error:
            # Whatever it is, those who wait must hear of it.
            done += [(future, error) for future in futures]
        loop.call_soon_threadsafe(deliver, done)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    threads = [threading.Thread(target=work, args=(faces, loop), daemon=True) for faces in services]
    for thread in threads:
        thread.start()
    yield
    for _ in threads:
        waiting.put(None)


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
async def predict(request: Request) -> Response:
    body = await request.body()
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    try:
        waiting.put((services[0].prepare(body) if IN_HANDLER else body, future))
        return Response(await future, media_type="application/json")
    except UnreadableError as error:
        return Response(orjson.dumps({"error": str(error)}), 422, media_type="application/json")
