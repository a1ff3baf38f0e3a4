"""Writes the pictures that servers are measured with: `crops`, 64 pictures of one face at 200 × 200 pixels, and
`photographs`, 24 pictures of about 1 megapixel with one to three faces. All are made from the mean faces of
`examples/`, so they show nobody, and from a fixed seed, so that every run measures the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

SEED = 5
QUALITY = 90
CROPS, CROP = 64, 200
PHOTOGRAPHS, WIDTH, HEIGHT = 24, 1155, 866
# Grain in levels: it makes the files as large as those of a camera at the same quality.
CROP_GRAIN, GRAIN = 3.5, 3.0


def load(folder: Path) -> list[np.ndarray]:
    faces = [cv2.imread(str(path)) for path in sorted(folder.glob("*.jpg"))]
    if not faces or any(face is None for face in faces):
        raise SystemExit(f"facewise: there are no faces to be read in '{folder}'.")
    return faces


def grainy(picture: np.ndarray, grain: float, random: np.random.Generator) -> np.ndarray:
    """With the noise of a sensor: mostly brightness, in grains of a few pixels."""
    noise = cv2.GaussianBlur(random.standard_normal(picture.shape[:2]).astype(np.float32), (0, 0), 0.8)
    noise *= grain / noise.std()
    return np.clip(picture.astype(np.float32) + noise[..., None], 0, 255).astype(np.uint8)


def turned(face: np.ndarray, side: int, zoom: float, degrees: float) -> np.ndarray:
    """The face at `side` pixels, magnified and rotated about its middle."""
    middle = (face.shape[1] / 2, face.shape[0] / 2)
    matrix = cv2.getRotationMatrix2D(middle, degrees, zoom * side / face.shape[0])
    matrix[:, 2] += side / 2 - np.array(middle)
    return cv2.warpAffine(face, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def lit(face: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The same face in another light."""
    return np.clip(face.astype(np.float32) * random.uniform(0.8, 1.15), 0, 255).astype(np.uint8)


def crop(face: np.ndarray, random: np.random.Generator) -> np.ndarray:
    face = face[:, ::-1] if random.random() < 0.5 else face
    face = turned(lit(face, random), CROP, random.uniform(1.0, 1.35), random.uniform(-12, 12))
    return grainy(face, CROP_GRAIN, random)


def background(random: np.random.Generator) -> np.ndarray:
    """Soft patches of colour, like a wall or a landscape out of focus."""
    patches = random.uniform(50, 200, (5, 7, 1)) + random.uniform(-30, 30, (5, 7, 3))
    return cv2.resize(patches.astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def photograph(faces: list[np.ndarray], random: np.random.Generator) -> np.ndarray:
    """The faces side by side, each somewhere in its own part of the width."""
    picture = background(random)
    column = WIDTH // len(faces)
    for index, face in enumerate(faces):
        side = int(random.uniform(0.45, 0.8) * min(column, HEIGHT))
        x = index * column + int(random.uniform(0, column - side))
        y = int(random.uniform(0, HEIGHT - side))
        face = turned(lit(face, random), side, 1.0, random.uniform(-10, 10)).astype(np.float32)
        mask = np.zeros((side, side), np.float32)
        cv2.ellipse(mask, (side // 2, side // 2), (int(0.34 * side), int(0.41 * side)), 0, 0, 360, 1.0, -1)
        mask = cv2.GaussianBlur(mask, (0, 0), 0.02 * side)[..., None]
        part = picture[y : y + side, x : x + side]
        part[:] = part * (1 - mask) + face * mask
    return grainy(picture, GRAIN, random)


def write(folder: Path, pictures: list[np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sizes = []
    for index, picture in enumerate(pictures):
        path = folder / f"{index:02}.jpg"
        cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        sizes.append(path.stat().st_size)
    height, width = pictures[0].shape[:2]
    print(f"{folder}: {len(sizes)} JPEGs of {width} × {height}, {min(sizes) / 1e3:.0f}–{max(sizes) / 1e3:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=Path, default=Path("examples/faces"), help="the mean faces")
    parser.add_argument("--out", type=Path, required=True, help="the folder that gets `crops` and `photographs`")
    arguments = parser.parse_args()
    faces, random = load(arguments.faces), np.random.default_rng(SEED)
    write(arguments.out / "crops", [crop(faces[index % len(faces)], random) for index in range(CROPS)])
    groups = [random.permutation(len(faces))[: 1 + index % 3] for index in range(PHOTOGRAPHS)]
    write(arguments.out / "photographs", [photograph([faces[i] for i in group], random) for group in groups])


if __name__ == "__main__":
    main()
