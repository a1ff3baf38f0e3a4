"""Writes where the keypoints of a set's faces are, as `place` rows of corrections, by a network that looks closer than the one that
labelled them: the face mesh of MediaPipe (468 points, Apache-2.0), shown each face upright, enlarged and mirrored, six times over.

    pip install mediapipe==0.10.21 ai-edge-litert==2.3.0 opencv-contrib-python==4.11.0.86
    python evaluation/corrections/keypoints.py DATA/celeba_wild --split train > evaluation/corrections/celeba_wild-train.csv

Faces that the mesh does not take for one, or about which its answers to the six views differ, keep their labels.
"""

from __future__ import annotations

import argparse
import csv
import sys
import zipfile
from pathlib import Path

import cv2
import mediapipe
import numpy as np
from ai_edge_litert.interpreter import Interpreter

SIDE = 192
"""The mesh sees squares of so many pixels."""

EYES, NOSE, MOUTH = ((33, 133), (362, 263)), 1, (13, 14)
"""Points of the mesh: the corners of the right and the left eye, the tip of the nose, the inner lips."""

VIEWS = [(mirrored, zoom, shift) for mirrored in (False, True) for zoom, shift in ((1.0, 0.0), (0.9, 0.02), (1.12, -0.02))]
"""What is varied: mirrored or not, size and place of the square."""

ROOM = 1.5
"""The square is so many times as large as the face, as MediaPipe has it."""

LEAST_SCORE, LARGEST_SPREAD = 0.5, 0.08
"""A mean score that says it is a face, and the deviation between views, in distances between the eyes, up to which they agree."""

KEYPOINTS = [f"{point}_{axis}" for point in ("reye", "leye", "nose", "mouth") for axis in "xy"]
BOX = ["box_x", "box_y", "box_w", "box_h"]


class Mesh:
    """MediaPipe's network of 468 points on a face."""

    def __init__(self) -> None:
        file = Path(mediapipe.__file__).parent / "modules/face_landmark/face_landmark.tflite"
        self.interpreter = Interpreter(str(file), num_threads=1)
        self.interpreter.allocate_tensors()
        self.input = self.interpreter.get_input_details()[0]["index"]
        self.points, self.score = (output["index"] for output in self.interpreter.get_output_details())

    def look(self, picture: np.ndarray, centre: np.ndarray, side: float, angle: float, mirrored: bool) -> tuple[np.ndarray, float]:
        """The points in the picture's pixels, and the probability that the square holds a face."""
        scale = SIDE / side
        cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
        turn = np.array([[cosine, sine], [-sine, cosine]])
        into = np.column_stack([turn, SIDE / 2 - turn @ centre])
        how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        view = cv2.warpAffine(picture, into, (SIDE, SIDE), flags=how, borderMode=cv2.BORDER_REPLICATE)
        view = view[:, ::-1] if mirrored else view
        self.interpreter.set_tensor(self.input, view[None].astype(np.float32) / 255)
        self.interpreter.invoke()
        points = self.interpreter.get_tensor(self.points).reshape(-1, 3)[:, :2].astype(np.float64)
        if mirrored:
            points[:, 0] = SIDE - 1 - points[:, 0]
        back = cv2.invertAffineTransform(into)
        logit = float(self.interpreter.get_tensor(self.score).ravel()[0])
        return points @ back[:, :2].T + back[:, 2], 1 / (1 + np.exp(-logit))

    def place(self, picture: np.ndarray, rough: np.ndarray, side: float) -> tuple[np.ndarray, float, float]:
        """Eyes, nose and mouth, with their spread in distances between the eyes and the score; begins where they are said to be, and
        looks again where it found them."""
        centre, angle = rough.mean(0), direction(rough)
        for _ in range(2):
            looks = [self.look(picture, centre + shift * side, side * zoom, angle, mirrored) for mirrored, zoom, shift in VIEWS]
            found = np.array([keypoints(points, mirrored) for (points, _), (mirrored, _, _) in zip(looks, VIEWS)])
            mean = found.mean(0)
            angle = direction(mean)
            cosine, sine = np.cos(angle), np.sin(angle)
            upright = np.array([[cosine, sine], [-sine, cosine]])
            face = np.mean([points for points, _ in looks], 0) @ upright.T
            low, high = face.min(0), face.max(0)
            centre, side = upright.T @ ((low + high) / 2), ROOM * max(high - low)
        spread = found.std(0).mean() / np.hypot(*(mean[1] - mean[0]))
        return mean, spread, float(np.mean([score for _, score in looks]))


def keypoints(points: np.ndarray, mirrored: bool) -> np.ndarray:
    """Right eye, left eye, nose and mouth, of a mesh; in a mirror a right eye looks like a left one."""
    right, left = (points[list(corners)].mean(0) for corners in EYES)
    if mirrored:
        right, left = left, right
    return np.stack([right, left, points[NOSE], points[list(MOUTH)].mean(0)])


def direction(points: np.ndarray) -> float:
    """The angle of the line from the right eye to the left one."""
    across = points[1] - points[0]
    return float(np.arctan2(across[1], across[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", type=Path, help="folder with manifest.csv and images.zip")
    parser.add_argument("--split", required=True, help="the rows whose column `split` says so")
    arguments = parser.parse_args()
    mesh = Mesh()
    rows = csv.DictReader((arguments.set / "manifest.csv").open())
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["path", "action", *BOX, *KEYPOINTS])
    with zipfile.ZipFile(arguments.set / "images.zip") as pictures:
        for row in rows:
            if row["split"] != arguments.split or not all(row[key] for key in BOX + KEYPOINTS):
                continue
            stored = np.frombuffer(pictures.read(row["path"]), np.uint8)
            picture = cv2.cvtColor(cv2.imdecode(stored, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            rough = np.array([float(row[key]) for key in KEYPOINTS]).reshape(4, 2)
            points, spread, score = mesh.place(picture, rough, ROOM * float(row["box_w"]))
            if score > LEAST_SCORE and spread < LARGEST_SPREAD:
                # OpenCV counts from the middle of the first pixel, the set from its edge.
                placed = (f"{number + 0.5:.1f}" for number in points.ravel())
                writer.writerow([row["path"], "place", *(row[key] for key in BOX), *placed])


if __name__ == "__main__":
    main()
