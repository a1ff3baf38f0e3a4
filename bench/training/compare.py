"""Training speed of `facewise-training` beside PyTorch's on the same network, batch and threads: `make bench-training`.

Each round runs both sides in processes of their own, one after the other, in turns first, so that a machine that slows
down slows both. Medians over the rounds go to RESULTS.md; the last line printed is the share of PyTorch's speed that
`facewise-training` reaches, in the precision where that share is smaller.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTORCH, FACEWISE, PACKED = "PyTorch", "facewise-training", "facewise-training, packed crops"
# Without one of these a CPU computes bf16 more slowly than fp32, and nobody would train with it.
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


def cpu() -> tuple[str, set[str]]:
    """The processor's name and its feature flags, as Linux tells them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(reversed([(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]))
    return fields.get("model name", platform.machine()), set(fields.get("flags", "").split())


def measure(command: list[str]) -> dict[str, object]:
    """Runs one side and returns the JSON object of the last line it prints."""
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode != 0:
        sys.exit(f"facewise: `{shlex.join(command)}` failed with status {run.returncode}.")
    return json.loads(run.stdout.strip().splitlines()[-1])


def rounds(arguments: argparse.Namespace, precision: str) -> tuple[dict[str, list[float]], str]:
    """Pictures per second of every side and round, and PyTorch's version."""
    options = ["--batch", str(arguments.batch), "--steps", str(arguments.steps)]
    options += ["--threads", str(arguments.threads), "--precision", precision]
    packed = ["--pack", str(arguments.pack)] if arguments.pack else []
    commands = {
        # Without NumPy, which nothing here needs, PyTorch warns.
        PYTORCH: [arguments.python, "-W", "ignore", str(HERE / "pytorch.py"), *options],
        FACEWISE: [*shlex.split(arguments.trainer), "bench", *options, *packed],
    }
    speeds: dict[str, list[float]] = {PYTORCH: [], FACEWISE: []} | ({PACKED: []} if arguments.pack else {})
    version = ""
    for number in range(arguments.rounds):
        for side in sorted(commands, reverse=number % 2 == 1):
            said = measure(commands[side])
            speeds[side].append(float(said["pictures_per_second"]))
            version = str(said.get("torch", version))
            if side == FACEWISE and arguments.pack:
                speeds[PACKED].append(float(said["packed_pictures_per_second"]))
        now = ", ".join(f"{side} {values[-1]:.0f}" for side, values in speeds.items())
        print(f"{precision}, round {number + 1} of {arguments.rounds}, pictures/s: {now}", flush=True)
    return speeds, version


def table(medians: dict[str, dict[str, float]], speeds: dict[str, dict[str, list[float]]]) -> str:
    """One row per precision and side: median, the rounds, and the median's share of PyTorch's."""
    lines = ["| precision | side | pictures/s, median | rounds | share of PyTorch |", "|---|---|---|---|---|"]
    for precision, sides in medians.items():
        for side, median in sides.items():
            each = " · ".join(f"{speed:.0f}" for speed in speeds[precision][side])
            lines.append(f"| {precision} | {side} | {median:.0f} | {each} | {median / sides[PYTORCH]:.2f} |")
    return "\n".join(lines)


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, help="a Python that has PyTorch")
    parser.add_argument("--trainer", required=True, help="the command that runs facewise-training")
    parser.add_argument("--pack", type=Path, help="packed crops; without them only random pictures are measured")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40, help="measured steps a round")
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    arguments = parser.parse_args()
    missing = None
    if arguments.pack and not arguments.pack.exists():
        missing = f"there is no {arguments.pack}"
        arguments.pack = None
    elif not arguments.pack:
        missing = "no --pack was given"

    name, flags = cpu()
    precisions = ["fp32", "bf16"] if flags & BF16_FLAGS else ["fp32"]
    speeds: dict[str, dict[str, list[float]]] = {}
    version = ""
    for precision in precisions:
        speeds[precision], version = rounds(arguments, precision)
    medians = {p: {side: statistics.median(values) for side, values in sides.items()} for p, sides in speeds.items()}
    rows = table(medians, speeds)
    share = min(sides[FACEWISE] / sides[PYTORCH] for sides in medians.values())
    if missing:
        packed = f"share of random-picture speed on packed crops: not measured ({missing})"
    else:
        packed_share = min(sides[PACKED] / sides[FACEWISE] for sides in medians.values())
        packed = f"share of random-picture speed on packed crops: {packed_share:.2f}"

    bf16 = "" if "bf16" in precisions else " The CPU has neither AVX512-BF16 nor AMX, so bf16 was not measured."
    arguments.out.write_text(
        "# Training speed\n\n"
        "Written by `make bench-training`: forward, backward and AdamW on a residual network of 139 M multiply-adds at "
        "64 px (stem of 32,\ntwo basic blocks at each of 32, 64, 128 and 256 channels), channels last, "
        f"batch {arguments.batch}, {arguments.threads} threads, {arguments.steps} steps a round, on {name} "
        f"({cores} cores); PyTorch {version}.{bf16}\nRandom pictures, but for the rows that say packed crops: "
        "those are real ones, decoded, augmented and loaded while the network trains.\n\n"
        f"{rows}\n\n{packed}\n\nshare of PyTorch: {share:.2f}\n"
    )
    print(f"{rows}\n{packed}\nshare of PyTorch: {share:.2f}")


if __name__ == "__main__":
    main()
