"""Fetches the native libraries of the workspace from pinned Python wheels: `fetch.py onnxruntime` for the server,
`fetch.py onnxruntime-cuda cuda` for the server on an NVIDIA GPU, `fetch.py libtorch` for training.

pip does the download (so proxies, mirrors and certificates set up for it hold) and compares the SHA-256; the wheels are
never installed, only unpacked. A library is assembled in a folder beside its destination and renamed into place, so an
interrupted fetch leaves nothing half done. Where the library is already there, nothing happens.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

ONNXRUNTIME = "1.31.1"
# What the wheel of ONNX Runtime for GPUs is built for.
CUDA = "13.0"
TORCH = "2.11.0"


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel, and what is taken out of it. A key of `members` that ends in `/` stands for a whole folder."""

    requirement: str
    platform: str
    sha256: str
    megabytes: int
    members: dict[str, str]


@dataclass(frozen=True)
class Library:
    """What lies at `destination` (relative to the repository) once `wheels` are unpacked and `texts` are written.

    Nothing is fetched where the system's loader finds all of `instead`."""

    title: str
    target: str
    destination: str
    wheels: tuple[Wheel, ...]
    texts: dict[str, str] = field(default_factory=dict)
    instead: tuple[str, ...] = ()


def onnxruntime_wheel(wheel_platform: str, sha256: str, megabytes: int) -> Wheel:
    return Wheel(
        f"onnxruntime=={ONNXRUNTIME}",
        wheel_platform,
        sha256,
        megabytes,
        {
            f"onnxruntime/capi/libonnxruntime.so.{ONNXRUNTIME}": "libonnxruntime.so",
            "onnxruntime/LICENSE": "LICENSE",
            "onnxruntime/ThirdPartyNotices.txt": "ThirdPartyNotices.txt",
        },
    )


ONNXRUNTIME_WHEELS = {
    "x86_64": onnxruntime_wheel(
        "manylinux_2_28_x86_64", "5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f", 24
    ),
    "aarch64": onnxruntime_wheel(
        "manylinux_2_28_aarch64", "da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3", 21
    ),
}

# The CUDA provider of ONNX Runtime is a library of its own beside the main one; TensorRT's needs NVIDIA's TensorRT 10 as well.
ONNXRUNTIME_CUDA_WHEELS = {
    "x86_64": Wheel(
        f"onnxruntime-gpu=={ONNXRUNTIME}",
        "manylinux_2_28_x86_64",
        "e26c475fe361b2015f45b4b824bd13f0bb20204e59b62814e6f0acd5f3d491a6",
        256,
        {
            f"onnxruntime/capi/libonnxruntime.so.{ONNXRUNTIME}": "libonnxruntime.so",
            "onnxruntime/capi/libonnxruntime_providers_shared.so": "libonnxruntime_providers_shared.so",
            "onnxruntime/capi/libonnxruntime_providers_cuda.so": "libonnxruntime_providers_cuda.so",
            "onnxruntime/capi/libonnxruntime_providers_tensorrt.so": "libonnxruntime_providers_tensorrt.so",
            "onnxruntime/LICENSE": "LICENSE",
            "onnxruntime/ThirdPartyNotices.txt": "ThirdPartyNotices.txt",
        },
    ),
}


def cuda_wheel(name: str, version: str, wheel_platform: str, sha256: str, megabytes: int, members: dict[str, str]) -> Wheel:
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    members = {**members, f"{info}/licenses/": f"licenses/{name}/"}
    return Wheel(f"{name}=={version}", wheel_platform, sha256, megabytes, members)


# The versions of CUDA 13.0.2, which any driver for CUDA 13 runs. What ONNX Runtime loads only for Fourier transforms
# (cuFFT, 200 MB) is left out; NVRTC compiles some of cuDNN's convolutions.
CUDA_WHEELS = {
    "x86_64": (
        cuda_wheel(
            "nvidia-cuda-runtime",
            "13.0.96",
            "manylinux2014_x86_64",
            "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
            2,
            {"nvidia/cu13/lib/libcudart.so.13": "lib/libcudart.so.13"},
        ),
        cuda_wheel(
            "nvidia-cublas",
            "13.1.0.3",
            "manylinux_2_27_x86_64",
            "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171",
            423,
            {f"nvidia/cu13/lib/{file}": f"lib/{file}" for file in ("libcublas.so.13", "libcublasLt.so.13")},
        ),
        cuda_wheel(
            "nvidia-curand",
            "10.4.0.35",
            "manylinux_2_27_x86_64",
            "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
            60,
            {"nvidia/cu13/lib/libcurand.so.10": "lib/libcurand.so.10"},
        ),
        cuda_wheel(
            "nvidia-cuda-nvrtc",
            "13.0.88",
            "manylinux2010_x86_64",
            "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
            90,
            {
                f"nvidia/cu13/lib/{file}": f"lib/{file}"
                for file in ("libnvrtc.so.13", f"libnvrtc-builtins.so.{CUDA}")
            },
        ),
        cuda_wheel(
            "nvidia-cudnn-cu13",
            "9.19.0.56",
            "manylinux_2_27_x86_64",
            "d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf",
            366,
            {"nvidia/cudnn/lib/": "lib/"},
        ),
    )
}

# What the provider is linked to, or loads when the first convolution runs.
CUDA_LIBRARIES = (
    "libcudart.so.13",
    "libcublasLt.so.13",
    "libcublas.so.13",
    "libcurand.so.10",
    "libnvrtc.so.13",
    "libcudnn.so.9",
)

LIBTORCH_WHEELS = {
    "x86_64": (
        Wheel(
            f"torch=={TORCH}",
            "manylinux_2_28_x86_64",
            "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
            531,
            {
                "torch/include/": "include/",
                "torch/lib/libc10.so": "lib/libc10.so",
                "torch/lib/libtorch_cpu.so": "lib/libtorch_cpu.so",
                "torch/lib/libgomp.so.1": "lib/libgomp.so.1",
                f"torch-{TORCH}.dist-info/licenses/": "licenses/torch/",
            },
        ),
        # torch's CPU library of this wheel is linked to the two, even where there is no GPU.
        Wheel(
            "nvidia-cuda-runtime==13.0.96",
            "manylinux2014_x86_64",
            "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
            2,
            {
                "nvidia/cu13/lib/libcudart.so.13": "lib/libcudart.so.13",
                "nvidia_cuda_runtime-13.0.96.dist-info/licenses/": "licenses/nvidia-cuda-runtime/",
            },
        ),
        Wheel(
            "nvidia-cuda-cupti==13.0.85",
            "manylinux_2_25_x86_64",
            "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
            11,
            {
                "nvidia/cu13/lib/libcupti.so.13": "lib/libcupti.so.13",
                "nvidia_cuda_cupti-13.0.85.dist-info/licenses/": "licenses/nvidia-cuda-cupti/",
            },
        ),
    )
}


class Failure(Exception):
    """A sentence for the person at the terminal: what is wrong, and what mends it."""


def library(name: str) -> Library:
    """The library called `name` as this machine needs it."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    here = f"{platform.system()} on {machine}"
    # The wheels are built for glibc; musl (Alpine) and other systems cannot load what is in them.
    linux = platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
    if name == "onnxruntime":
        if not linux or machine not in ONNXRUNTIME_WHEELS:
            raise Failure(
                f"ONNX Runtime is fetched for glibc Linux on {' and '.join(ONNXRUNTIME_WHEELS)}, and this is {here}. "
                f"Install ONNX Runtime {ONNXRUNTIME} yourself and set ORT_DYLIB_PATH to its library."
            )
        return Library(
            title=f"ONNX Runtime {ONNXRUNTIME}",
            target="make onnxruntime",
            destination=f".onnxruntime/{ONNXRUNTIME}",
            wheels=(ONNXRUNTIME_WHEELS[machine],),
        )
    if name in ("onnxruntime-cuda", "cuda"):
        if not linux or machine not in CUDA_WHEELS:
            raise Failure(
                f"ONNX Runtime for GPUs is fetched for glibc Linux on {' and '.join(CUDA_WHEELS)}, and this is {here}. "
                "Serving on the CPU does not need it (make serve); for a GPU, set ORT_DYLIB_PATH to the library of an ONNX "
                f"Runtime {ONNXRUNTIME} of your own and serve with --provider cuda."
            )
        if name == "cuda":
            return Library(
                title=f"CUDA {CUDA} with cuDNN",
                target="make onnxruntime-cuda",
                destination=f".onnxruntime/cuda-{CUDA}",
                wheels=CUDA_WHEELS[machine],
                instead=CUDA_LIBRARIES,
            )
        return Library(
            title=f"ONNX Runtime {ONNXRUNTIME} for CUDA {CUDA}",
            target="make onnxruntime-cuda",
            destination=f".onnxruntime/{ONNXRUNTIME}-cuda",
            wheels=(ONNXRUNTIME_CUDA_WHEELS[machine],),
        )
    if not linux or machine not in LIBTORCH_WHEELS:
        raise Failure(
            f"libtorch is fetched for glibc Linux on {' and '.join(LIBTORCH_WHEELS)}, and this is {here}. Serving does "
            f"not need it (make serve); to train, set LIBTORCH to the folder of a libtorch {TORCH} of your own."
        )
    return Library(
        title=f"libtorch {TORCH}",
        target="make libtorch",
        destination=".libtorch",
        wheels=LIBTORCH_WHEELS[machine],
        texts={
            # tch compares this text with the version that it was written for.
            "build-version": f"{TORCH}+cpu\n",
            # tch links to `libtorch.so`; this linker script sends it on, and the real, empty library is not needed.
            "lib/libtorch.so": "INPUT(libtorch_cpu.so)\n",
        },
    )


def download(wheel: Wheel, folder: Path, again: str) -> Path:
    """Has pip download `wheel` into `folder` and compare its hash. The wheel does not depend on the Python that runs."""
    folder.mkdir(parents=True)
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--require-hashes"]
    command += ["--implementation", "cp", "--python-version", "3.11", "--abi", "cp311", "--platform", wheel.platform]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    if not sys.stderr.isatty():
        command.append("--quiet")
    # pip keeps a copy in the temporary folder, which on many machines is too small for half a gigabyte.
    environment = {**os.environ, "TMPDIR": str(folder)}
    pip = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    if pip.returncode != 0:
        raise Failure(explain(wheel, pip.stderr, again))
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise Failure(f"pip left {len(wheels)} wheels for {wheel.requirement} where there should be one; {again}.")
    return wheels[0]


def explain(wheel: Wheel, said: str, again: str) -> str:
    """A sentence for what pip printed when it failed to download `wheel`."""
    folded = said.lower()
    if "do not match the hashes" in folded:
        return (
            f"The SHA-256 of the downloaded {wheel.requirement} is not the pinned one ({wheel.sha256}), so it was "
            f"thrown away. The download or a package mirror is at fault: {again}, and if it happens again, use another mirror "
            "(pip's --index-url, PIP_INDEX_URL)."
        )
    if "no space left" in folded:
        return f"The disk is full: {wheel.requirement} needs {wheel.megabytes} MB twice. Make room and {again}."
    network = ("connection broken", "max retries exceeded", "connectionerror", "name resolution", "timed out", "proxy")
    if any(sign in folded for sign in network):
        return (
            f"pip could not reach its package index for {wheel.requirement}. Check the network, or the proxy and the "
            f"mirror pip is set up with (pip config list), and {again}."
        )
    if "no matching distribution" in folded:
        return (
            f"pip's package index has no {wheel.requirement} for {wheel.platform}. Point pip at one that has it "
            f"(pip's --index-url, PIP_INDEX_URL), and {again}."
        )
    last = "\n".join("  " + line for line in said.strip().splitlines()[-5:])
    return f"pip could not download {wheel.requirement}; mend what it says and {again}:\n{last}"


def unpack(wheel: Wheel, archive: Path, folder: Path) -> None:
    """Writes the wanted members of `archive` under `folder`."""
    with zipfile.ZipFile(archive) as source:
        names = [name for name in source.namelist() if not name.endswith("/")]
        for member, to in wheel.members.items():
            chosen = [name for name in names if name == member or (member.endswith("/") and name.startswith(member))]
            if not chosen:
                raise Failure(f"{archive.name} has no {member}: the table in {Path(__file__).name} is wrong.")
            for name in chosen:
                path = folder / (to + name[len(member) :])
                path.parent.mkdir(parents=True, exist_ok=True)
                with source.open(name) as data, path.open("wb") as file:
                    shutil.copyfileobj(data, file, 1 << 20)


def is_ready(wanted: Library, destination: Path) -> bool:
    """Whether `destination` holds all that `wanted` consists of, in this version."""
    members = [destination / to for wheel in wanted.wheels for to in wheel.members.values()]
    texts = [(destination / name, text) for name, text in wanted.texts.items()]
    return all(path.exists() for path in members) and all(p.is_file() and p.read_text() == text for p, text in texts)


def is_on_the_system(libraries: tuple[str, ...]) -> bool:
    """Whether the system's loader finds every one of `libraries`, of which there is at least one."""
    try:
        for name in libraries:
            ctypes.CDLL(name)
    except OSError:
        return False
    return bool(libraries)


def build(wanted: Library, part: Path) -> None:
    """Fetches every wheel of `wanted` and assembles the library in the folder `part`, which does not exist yet."""
    again = f"run `{wanted.target}` again"
    content = part / "content"
    content.mkdir(parents=True)
    for number, wheel in enumerate(wanted.wheels):
        print(f"Fetching {wheel.requirement} with pip ({wheel.megabytes} MB, once) …", file=sys.stderr, flush=True)
        folder = part / f"wheel-{number}"
        unpack(wheel, download(wheel, folder, again), content)
        shutil.rmtree(folder)
    for name, text in wanted.texts.items():
        path = content / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def fetch(wanted: Library, root: Path) -> None:
    """Sees to it that `wanted` lies at its destination under `root`."""
    destination = root / wanted.destination
    if is_ready(wanted, destination) or is_on_the_system(wanted.instead):
        return
    if importlib.util.find_spec("pip") is None:
        raise Failure(
            f"{wanted.title} is fetched with pip, and {sys.executable} has no pip. Install it (on Debian and Ubuntu: "
            "sudo apt install python3-pip) or name a Python that has it (make PYTHON=…), and run "
            f"`{wanted.target}` again."
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(destination.name + ".part")
    with destination.with_name(destination.name + ".lock").open("w") as lock:
        # A second make in the same tree waits here and then finds the work done.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_ready(wanted, destination):
            return
        shutil.rmtree(part, ignore_errors=True)
        try:
            build(wanted, part)
            if destination.exists():
                destination.rename(part / "previous")
            (part / "content").rename(destination)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    print(f"{wanted.title} is in {wanted.destination}/", file=sys.stderr)


def stop(message: str) -> NoReturn:
    print(f"facewise: {message}", file=sys.stderr)
    sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch native libraries of the workspace, once.")
    parser.add_argument("libraries", nargs="+", choices=["onnxruntime", "onnxruntime-cuda", "cuda", "libtorch"])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="the repository")
    arguments = parser.parse_args()
    # So that what is half done is removed on `kill` too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for name in arguments.libraries:
        wanted = library(name)
        try:
            fetch(wanted, arguments.root)
        except OSError as error:
            mend = f"Mend that and run `{wanted.target}` again."
            raise Failure(f"{wanted.title} could not be unpacked: {error}. {mend}") from error


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        stop(str(failure))
    except KeyboardInterrupt:
        stop("interrupted; nothing was kept of the fetch.")
