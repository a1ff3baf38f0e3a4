"""A session of Triton's own HTTP client, in its two forms, with a running server.

    tritonclient_session.py HOST:PORT PICTURE FACES

PICTURE is a file in which the server finds so many FACES. Of the models, `smiles` is unloaded and loaded again: whatever
pixels it is shown, it answers the same. The first check that fails ends the session with what was expected.
"""

import argparse
import asyncio
import itertools
import pathlib

import numpy as np
import tritonclient.http
import tritonclient.http.aio
from tritonclient.http import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

ATTRIBUTES, PIPELINE, SMILES = "face-attributes", "face-pipeline", "smiles"
COMPRESSION = (None, "gzip", "deflate")


class Awaitable:
    """The synchronous client with methods that can be awaited, so that both speak the same session."""

    def __init__(self, client):
        self.client = client

    def __getattr__(self, name):
        method = getattr(self.client, name)

        async def call(*arguments, **options):
            return method(*arguments, **options)

        return call


def equal(found, expected, what):
    assert found == expected, f"{what}: {found!r} instead of {expected!r}"


def close(found, expected, what):
    assert found.dtype == expected.dtype and found.shape == expected.shape, f"{what}: {found.dtype} {found.shape}"
    assert np.allclose(found, expected, atol=1e-5), f"{what}: {found} instead of {expected}"


def tensor(name, array, binary=True):
    datatype = {"float32": "FP32", "float64": "FP64", "object": "BYTES"}[array.dtype.name]
    return InferInput(name, list(array.shape), datatype).set_data_from_numpy(array, binary_data=binary)


def pixels(rows, side=64, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (rows, 3, side, side)).astype(np.float32)


def files(*pictures):
    return np.array(pictures, dtype=np.object_)


async def refused(awaitable, status, says):
    try:
        await awaitable
    except InferenceServerException as error:
        equal(error.status(), status, f"status of '{error.message()}'")
        assert says in error.message(), f"'{says}' is not in '{error.message()}'"
    else:
        raise AssertionError(f"nobody refused what should be refused with '{says}'")


async def metadata(client):
    assert await client.is_server_live() and await client.is_server_ready()
    server = await client.get_server_metadata()
    equal(server["name"], "facewise", "name of the server")
    assert {"binary_tensor_data", "classification", "statistics"} <= set(server["extensions"]), server
    for model in (ATTRIBUTES, PIPELINE):
        assert await client.is_model_ready(model) and await client.is_model_ready(model, "1")
    assert not await client.is_model_ready("nobody") and not await client.is_model_ready(ATTRIBUTES, "9")
    model = await client.get_model_metadata(ATTRIBUTES, "1")
    equal(model["inputs"], [{"name": "pixels", "datatype": "FP32", "shape": [-1, 3, 64, 64]}], "inputs")
    equal([output["name"] for output in model["outputs"]], ["age", "gender", "smile", "emotion"], "outputs")
    config = await client.get_model_config(ATTRIBUTES)
    assert config["name"] == ATTRIBUTES and config["max_batch_size"] > 1 and "dynamic_batching" in config, config


async def tensors(client):
    rows = pixels(3)
    first = await client.infer(ATTRIBUTES, [tensor("pixels", rows)], request_id="one")
    answer = first.get_response()
    equal([answer["id"], answer["model_name"], answer["model_version"]], ["one", ATTRIBUTES, "1"], "the answer's names")
    ages = first.as_numpy("age")
    equal(ages.shape, (3, 101), "shape of the ages")
    close(ages.sum(axis=1), np.ones(3, np.float32), "sums of the ages")

    ways = itertools.product((True, False), (True, False), COMPRESSION, COMPRESSION)
    for binary_input, binary_output, packed, answer_packed in ways:
        result = await client.infer(
            ATTRIBUTES,
            [tensor("pixels", rows, binary_input)],
            model_version="1",
            outputs=[InferRequestedOutput(name, binary_data=binary_output) for name in ("gender", "age")],
            request_compression_algorithm=packed,
            response_compression_algorithm=answer_packed,
        )
        equal([output["name"] for output in result.get_response()["outputs"]], ["gender", "age"], "order of the outputs")
        for name in ("gender", "age"):
            way = f"{name} with binary {binary_input}, {binary_output}, packed {packed}, {answer_packed}"
            close(result.as_numpy(name), first.as_numpy(name), way)

    for binary in (True, False):
        wish = InferRequestedOutput("emotion", binary_data=binary, class_count=2)
        result = (await client.infer(ATTRIBUTES, [tensor("pixels", rows)], outputs=[wish])).as_numpy("emotion")
        equal(result.shape, (3, 2), "two classes of three faces")
        word = result[0][0]
        value, index, label = (word.decode() if isinstance(word, bytes) else word).split(":")
        emotions = first.as_numpy("emotion")[0]
        equal(int(index), int(emotions.argmax()), "the class of the first face")
        assert abs(float(value) - emotions.max()) < 1e-5 and label.isalpha(), word

    many = [client.infer(ATTRIBUTES, [tensor("pixels", pixels(1, seed=seed))]) for seed in range(20)]
    together = [result.as_numpy("age") for result in await asyncio.gather(*many)]
    rows = np.concatenate([pixels(1, seed=seed) for seed in range(20)])
    result = await client.infer(ATTRIBUTES, [tensor("pixels", rows)])
    close(np.concatenate(together), result.as_numpy("age"), "twenty rows, each alone and all together")


async def pictures(client, picture, faces):
    result = await client.infer(PIPELINE, [tensor("image", files(picture, picture))])
    equal(result.as_numpy("image_index").tolist(), [0] * faces + [1] * faces, "the pictures of the faces")
    boxes, ages = result.as_numpy("box"), result.as_numpy("age")
    equal((boxes.shape, ages.shape), ((2 * faces, 4), (2 * faces,)), "shapes")
    close(boxes[:faces], boxes[faces:], "the boxes of the same faces")
    assert ((0 <= ages) & (ages <= 100)).all() and (boxes[:, 2:] > 0).all(), (ages, boxes)
    equal(result.as_numpy("landmarks").shape, (2 * faces, 4, 2), "four keypoints")
    labels = {label.decode() for label in result.as_numpy("gender")}
    assert labels <= {"female", "male"}, labels

    column = files(picture).reshape(1, 1)
    whole = await client.infer(PIPELINE, [tensor("image", column)], parameters={"detect": False})
    equal(whole.as_numpy("confidence").tolist(), [1.0], "one face, for nobody looked")
    assert np.isnan(whole.as_numpy("landmarks")).all(), "nobody looked for keypoints"
    wish = [InferRequestedOutput("landmarks", binary_data=False)]
    whole = await client.infer(PIPELINE, [tensor("image", column)], outputs=wish, parameters={"detect": "false"})
    assert np.isnan(whole.as_numpy("landmarks")).all(), "null is no number either"
    fewer = await client.infer(PIPELINE, [tensor("image", files(picture))], parameters={"max_faces": 1})
    equal(fewer.as_numpy("age").shape, (1,), "one face at most")
    none = await client.infer(PIPELINE, [tensor("image", files())])
    equal(none.as_numpy("box").shape, (0, 4), "no picture has no faces")


async def errors(client, picture):
    infer = client.infer
    await refused(infer("nobody", [tensor("pixels", pixels(1))]), "404", "there is no model 'nobody'")
    await refused(infer(ATTRIBUTES, [tensor("pixels", pixels(1))], model_version="9"), "404", "version '9'")
    await refused(infer(ATTRIBUTES, [tensor("pixels", pixels(1, 32))]), "400", "not FP32 [1, 3, 32, 32]")
    await refused(infer(ATTRIBUTES, [tensor("pixels", pixels(1).astype(np.float64))]), "400", "not FP64")
    await refused(infer(ATTRIBUTES, [tensor("image", pixels(1))]), "400", "reads one input, 'pixels'")
    wish = [InferRequestedOutput("beauty")]
    await refused(infer(ATTRIBUTES, [tensor("pixels", pixels(1))], outputs=wish), "400", "no output 'beauty'")
    broken = files(picture, b"no picture")
    await refused(infer(PIPELINE, [tensor("image", broken)]), "422", "element 1 of 'image'")
    await refused(infer(PIPELINE, [tensor("image", files(picture))], timeout=1), "429", "try again later")
    shared = InferInput("pixels", [1, 3, 64, 64], "FP32").set_shared_memory("region", 49152)
    await refused(infer(ATTRIBUTES, [shared]), "400", "shared memory is not supported")
    await refused(client.get_model_metadata("nobody"), "404", "there is no model 'nobody'")
    await refused(client.get_system_shared_memory_status(), "404", "nothing under this path")


async def repository(client):
    async def state():
        index = await client.get_model_repository_index()
        return {model["name"]: model["state"] for model in index}

    ready = dict.fromkeys([ATTRIBUTES, "face-detector", PIPELINE, SMILES], "READY")
    equal(await state(), ready, "the index")
    await client.unload_model(SMILES)
    assert not await client.is_model_ready(SMILES)
    equal(await state(), ready | {SMILES: "UNAVAILABLE"}, "the index without one")
    await refused(client.infer(SMILES, [tensor("pixels", pixels(1, 8))]), "404", "no model 'smiles'")
    await client.load_model(SMILES)
    assert await client.is_model_ready(SMILES)
    result = await client.infer(SMILES, [tensor("pixels", pixels(1, 8))])
    close(result.as_numpy("smile"), np.array([[0.75, 0.25]], np.float32), "the model that was loaded again")
    await refused(client.load_model("nobody"), "404", "no model 'nobody'")
    await refused(client.load_model(SMILES, config="{}"), "400", "'config' is not supported")
    await refused(client.unload_model(ATTRIBUTES), "400", "load another with `default=true` first")


async def statistics(client):
    async def counted():
        stats = await client.get_inference_statistics(ATTRIBUTES, "1")
        (stats,) = stats["model_stats"]
        times = stats["inference_stats"]
        return stats["inference_count"], times["success"]["count"], times["compute_infer"]["ns"]

    rows, requests, ns = await counted()
    for _ in range(3):
        await client.infer(ATTRIBUTES, [tensor("pixels", pixels(5))])
    more_rows, more_requests, more_ns = await counted()
    equal((more_rows - rows, more_requests - requests), (15, 3), "rows and requests")
    assert more_ns > ns
    everything = await client.get_inference_statistics()
    names = [model["name"] for model in everything["model_stats"]]
    equal(names, [ATTRIBUTES, "face-detector", SMILES, PIPELINE], "the models that are counted")


async def session(client, picture, faces):
    await metadata(client)
    await tensors(client)
    await pictures(client, picture, faces)
    await errors(client, picture)
    await repository(client)
    await statistics(client)


def later(url):
    """The synchronous client's way to have several requests on the way."""
    with tritonclient.http.InferenceServerClient(url, concurrency=4) as client:
        asked = [client.async_infer(ATTRIBUTES, [tensor("pixels", pixels(2, seed=seed))]) for seed in range(8)]
        results = [request.get_result().as_numpy("smile") for request in asked]
        expected = [client.infer(ATTRIBUTES, [tensor("pixels", pixels(2, seed=seed))]) for seed in range(8)]
        for result, other in zip(results, expected):
            close(result, other.as_numpy("smile"), "asynchronously and not")


async def asynchronous(url, picture, faces):
    async with tritonclient.http.aio.InferenceServerClient(url) as client:
        await session(client, picture, faces)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("picture", type=pathlib.Path)
    parser.add_argument("faces", type=int)
    options = parser.parse_args()
    picture = options.picture.read_bytes()

    with tritonclient.http.InferenceServerClient(options.url) as client:
        asyncio.run(session(Awaitable(client), picture, options.faces))
    later(options.url)
    asyncio.run(asynchronous(options.url, picture, options.faces))
    print("the session of tritonclient passed: synchronous, with requests on the way, and asyncio")


if __name__ == "__main__":
    main()
