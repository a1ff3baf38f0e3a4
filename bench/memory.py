"""The memory of facewise over many requests: `make bench-memory`.

Requests of 32 clients come until so many are answered. Prints the resident memory at each tenth, and fails where it grows
by more than a tenth after the first, or where a request is not answered.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import serving

CONCURRENCY, SLICE_SECONDS, MOST_GROWTH = 32, 2, 1.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facewise", default="target/release/facewise", help="the server")
    parser.add_argument(
        "--data", type=Path, default=Path("runs/bench"), help="what networks.py and bodies.py have written"
    )
    parser.add_argument("--scenario", default="attributes", help="attributes, resnet-18, light or pipeline")
    parser.add_argument("--requests", type=int, default=100_000)
    arguments = parser.parse_args()
    scenarios = serving.scenarios(arguments.data.resolve())
    scenario = scenarios.get(arguments.scenario) or parser.error(f"there is no scenario '{arguments.scenario}'")
    server = serving.facewise(str(Path(arguments.facewise).resolve()), scenario, "")
    folder = (arguments.data / "bodies" / scenario.pictures).resolve()
    serving.check_tools(server.command[0])
    print(f"{scenario.title}, {serving.machine()}, {CONCURRENCY} clients\n\n| requests | memory, MB |\n|---|---|", flush=True)
    found, done = [], 0
    with serving.running(server) as running:
        while done < arguments.requests:
            load = serving.wrk(running.url, folder, CONCURRENCY, SLICE_SECONDS)
            if load.other or not load.answered:
                serving.fail(f"not every request was answered with 200: {load}")
            done += load.answered
            memory = running.resident()
            if done * 10 // arguments.requests > len(found):
                found.append(memory)
                print(f"| {done:,} | {memory:.1f} |", flush=True)
    if max(found) > MOST_GROWTH * found[0]:
        sys.exit(f"the memory grew from {found[0]:.1f} to {max(found):.1f} MB")


if __name__ == "__main__":
    main()
