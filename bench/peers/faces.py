"""What every peer does with a picture, by the same ONNX files and manifests as facewise, in OpenCV, NumPy and ONNX
Runtime.

A service prepares a body (decoding and shrinking) and answers many prepared ones at once, so that a server can batch:

* `Crops`: centred square → normalise → network → answer, as `detect=false` does.
* `Photographs`: square around the picture → detector → boxes and keypoints → aligned crops → network → answer, as
  `detect=true` does. Both networks run once for the whole batch, and everything between them works on all its faces.

Settings come from the environment, where servers that start further processes leave them: `MODEL` and `DETECTOR`
(folders with `model.onnx` and `manifest.json`; without `DETECTOR` pictures are crops), `INTRA` (threads in a run),
`SPIN` (1: idle threads of a run spin).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnxruntime

PADDING = 128
STRIDES = (8, 16, 32)
MIN_CONFIDENCE, MAX_IOU = 0.5, 0.4
MAX_BATCH = 32
AGES = np.arange(101, dtype=np.float32)
Answer = dict[str, Any]

# The servers run as many pictures side by side as there are cores.
cv2.setNumThreads(1)


class UnreadableError(ValueError):
    """The body is no picture."""


def decode(body: bytes) -> np.ndarray:
    """The bytes of a picture to R, G, B."""
    picture = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR_RGB) if body else None
    if picture is None:
        raise UnreadableError("the body is no picture")
    return picture


class Network:
    """An ONNX file with its manifest."""

    def __init__(self, folder: str) -> None:
        path = Path(folder)
        self.manifest = json.loads((path / "manifest.json").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("INTRA", "1"))
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", os.environ.get("SPIN", "0"))
        self.session = onnxruntime.InferenceSession(
            str(path / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        described = self.manifest["input"]
        self.input, self.size = described["name"], described["size"]
        mean, sd = np.float32(described["mean"]), np.float32(described["sd"])
        # (v / 255 − mean) / sd as one multiplication and one addition for each plane.
        self.factor, self.offset = (1 / (255 * sd)).reshape(3, 1, 1), (-mean / sd).reshape(3, 1, 1)

    def tensor(self, square: np.ndarray) -> np.ndarray:
        """A square of the network's size to normalised planes."""
        planes = np.multiply(square.transpose(2, 0, 1), self.factor, dtype=np.float32, order="C")
        planes += self.offset
        return planes

    def run(self, outputs: list[str], tensors: np.ndarray) -> list[np.ndarray]:
        return self.session.run(outputs, {self.input: tensors})


class Attributes(Network):
    """The network that describes faces."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.heads = self.manifest["heads"]
        self.outputs = [head["output"] for head in self.manifest["heads"]]
        template = self.manifest["input"]["template"]
        self.template = np.float32([template["right_eye"], template["left_eye"], template["mouth"]]) * self.size
        self.describe([np.zeros((3, self.size, self.size), np.float32)])

    def describe(self, tensors: list[np.ndarray]) -> list[Answer]:
        """One answer for each face."""
        answers: list[Answer] = [{} for _ in tensors]
        for start in range(0, len(tensors), MAX_BATCH):
            batch = answers[start : start + MAX_BATCH]
            rows = self.run(self.outputs, np.stack(tensors[start : start + MAX_BATCH]))
            for head, row in zip(self.heads, rows, strict=True):
                if head["task"] == "age":
                    for answer, years in zip(batch, (row @ AGES).tolist(), strict=True):
                        answer["age"] = {"years": round(years, 1)}
                    continue
                task, labels, best = head["task"], head["labels"], row.argmax(1).tolist()
                for answer, index, probabilities in zip(batch, best, row.tolist(), strict=True):
                    answer[task] = {"label": labels[index], "probability": probabilities[index]}
        return answers


class Crops:
    """Pictures of one face each, which is where the centred square is."""

    def __init__(self) -> None:
        self.network = Attributes(os.environ["MODEL"])

    def prepare(self, body: bytes) -> np.ndarray:
        picture = decode(body)
        height, width = picture.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = picture[top : top + side, left : left + side]
        size = (self.network.size, self.network.size)
        return self.network.tensor(cv2.resize(square, size, interpolation=cv2.INTER_LINEAR))

    def answer(self, prepared: list[np.ndarray]) -> list[Answer]:
        return [{"faces": [face]} for face in self.network.describe(prepared)]


class Photograph(NamedTuple):
    """A decoded photograph, and the square around it as the detector reads it."""

    picture: np.ndarray
    tensor: np.ndarray


class Detector(Network):
    """The network that finds faces."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.outputs = [f"stride_{stride}" for stride in STRIDES]
        self.find(np.zeros((1, 3, self.size, self.size), np.float32))

    def square(self, picture: np.ndarray) -> np.ndarray:
        """The smallest centred square around a picture, what is outside being gray."""
        height, width = picture.shape[:2]
        scale = self.size / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
        left, top = (self.size - size[0]) // 2, (self.size - size[1]) // 2
        square = np.full((self.size, self.size, 3), PADDING, np.uint8)
        square[top : top + size[1], left : left + size[0]] = small
        return square

    def find(self, tensors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For all pictures together: which of them each face is in, and its score, box (left, top, width, height) and
        four keypoints, in pixels of the square; most confident first."""
        least = np.log(MIN_CONFIDENCE / (1 - MIN_CONFIDENCE))
        owners, faces = [], []
        for stride, level in zip(STRIDES, self.run(self.outputs, tensors), strict=True):
            owner, row, column = np.nonzero(level[:, 0] >= least)
            values = level[owner, :, row, column]
            centres = (np.stack([column, row], 1) + np.float32(0.5)) * stride
            edges = np.exp(np.clip(values[:, 1:5], -8, 8)) * stride
            points = (values[:, 5:].reshape(-1, 4, 2) * stride + centres[:, None]).reshape(-1, 8)
            box = [centres - edges[:, :2], edges[:, :2] + edges[:, 2:]]
            owners.append(owner)
            faces.append(np.concatenate([1 / (1 + np.exp(-values[:, :1])), *box, points], 1))
        owner, face = np.concatenate(owners), np.concatenate(faces)
        if not len(owner):
            return owner, face
        kept = cv2.dnn.NMSBoxesBatched(face[:, 1:5], face[:, 0], owner, MIN_CONFIDENCE, MAX_IOU)
        kept = np.asarray(kept).ravel()
        kept = kept[np.argsort(-face[kept, 0])]
        return owner[kept], face[kept]


class Photographs:
    """Pictures with any number of faces."""

    def __init__(self) -> None:
        self.detector, self.network = Detector(os.environ["DETECTOR"]), Attributes(os.environ["MODEL"])
        corners = self.network.template
        self.centre = corners.mean(0)
        self.spokes = corners - self.centre
        self.spread = float((self.spokes**2).sum())

    def prepare(self, body: bytes) -> Photograph:
        picture = decode(body)
        return Photograph(picture, self.detector.tensor(self.detector.square(picture)))

    def answer(self, prepared: list[Photograph]) -> list[Answer]:
        owner, faces = self.detector.find(np.stack([photograph.tensor for photograph in prepared]))
        shapes = np.float32([photograph.picture.shape[1::-1] for photograph in prepared])
        answers = [{"image": {"width": int(width), "height": int(height)}, "faces": []} for width, height in shapes]
        if not len(owner):
            return answers
        # From the detector's square to the picture.
        sides = shapes.max(1)
        scale, shift = (sides / self.detector.size)[owner], ((shapes - sides[:, None]) / 2)[owner]
        corners = faces[:, 1:3] * scale[:, None] + shift
        extents = faces[:, 3:5] * scale[:, None]
        points = faces[:, 5:].reshape(-1, 4, 2) * scale[:, None, None] + shift[:, None]
        # The nose is not part of the template.
        matrices = self.similarities(points[:, [0, 1, 3]])
        size, flags = (self.network.size, self.network.size), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        tensors, boxes = [], np.concatenate([corners, extents], 1).round(1).tolist()
        for index, matrix in zip(owner, matrices, strict=True):
            picture = prepared[index].picture
            crop = cv2.warpAffine(picture, matrix, size, flags=flags, borderValue=(PADDING, PADDING, PADDING))
            tensors.append(self.network.tensor(crop))
        found = zip(owner.tolist(), faces[:, 0].tolist(), boxes, self.network.describe(tensors), strict=True)
        for index, confidence, (x, y, width, height), face in found:
            box = {"x": x, "y": y, "width": width, "height": height}
            answers[index]["faces"].append({"box": box, "confidence": confidence, **face})
        return answers

    def similarities(self, points: np.ndarray) -> np.ndarray:
        """For each face the similarity transform from the network's square to the picture, by least squares (Umeyama
        1991, in two dimensions, without reflection)."""
        centres = points.mean(1)
        spokes = points - centres[:, None]
        x, y = self.spokes.T
        a = (spokes[..., 0] @ x + spokes[..., 1] @ y) / self.spread
        b = (spokes[..., 1] @ x - spokes[..., 0] @ y) / self.spread
        turns = np.stack([np.stack([a, -b], -1), np.stack([b, a], -1)], -2)
        return np.concatenate([turns, (centres - turns @ self.centre)[..., None]], -1)


def service() -> Crops | Photographs:
    """What the environment asks for."""
    return Photographs() if os.environ.get("DETECTOR") else Crops()
