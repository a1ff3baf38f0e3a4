"""LitServe: `WORKERS` processes with networks, `API` processes that talk HTTP, batches of `BATCH` pictures for which a
worker waits `BATCH_TIMEOUT` seconds at most; `FAST=1` sends between them through ZeroMQ."""

# No postponed annotations: LitServe reads them as they are.
import argparse
import os
from typing import Annotated, Any

import litserve
import orjson
from faces import UnreadableError, service
from fastapi import Body, HTTPException, Response

BATCH = int(os.environ.get("BATCH", "8"))


class Faces(litserve.LitAPI):
    """A worker."""

    def setup(self, device: str) -> None:
        self.faces = service()

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]) -> Any:
        try:
            return self.faces.prepare(request)
        except UnreadableError as error:
            raise HTTPException(422, str(error)) from error

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, prepared: Any) -> Any:
        # Without batches LitServe hands over a picture, not a list of one.
        return self.faces.answer(prepared if BATCH > 1 else [prepared])

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> Response:
        # As bytes: LitServe would have FastAPI serialise a dictionary, which is slower.
        return Response(orjson.dumps(output if BATCH > 1 else output[0]), media_type="application/json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    api = Faces(max_batch_size=BATCH, batch_timeout=float(os.environ.get("BATCH_TIMEOUT", "0")), api_path="/predict")
    workers, fast = int(os.environ.get("WORKERS", "1")), os.environ.get("FAST", "0") == "1"
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, fast_queue=fast)
    server.run(
        host="127.0.0.1",
        port=arguments.port,
        num_api_servers=int(os.environ.get("API", "1")),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
