"""facewise beside the raw limit of its networks and beside Python servers that serve the same files: `make bench`.

Servers take turns on an otherwise idle machine; each is put under load by wrk at several concurrencies, and in every
round everything is measured once, in another order. Ratios are made within a round, then their median is taken, so
that a machine that slows down slows both sides. RESULTS.md gets the medians; the first run also tunes the peers.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import report
import serving
from report import FINALISTS, MAIN, Grids, Results, words
from serving import FACEWISE, Running, Scenario, Server

LIMIT = "raw limit"
WARM_UP_SECONDS, GRID_SECONDS, ONCE_SECONDS, TUNE_SECONDS = 1, 0.6, 2, 2
CHECKED = 24


def limit(arguments: argparse.Namespace, scenario: Scenario, *options: str) -> dict:
    """Runs the program `limit` and returns what it says."""
    command = [str(arguments.limit), "--attributes", str(scenario.attributes)]
    command += ["--detector", str(scenario.detector)] if scenario.detector else []
    run = subprocess.run([*command, *options], cwd=serving.ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode != 0:
        serving.fail(f"`{' '.join([*command, *options])}` failed with status {run.returncode}.")
    return json.loads(run.stdout.strip().splitlines()[-1])


def setting(flags: str, name: str, default: int) -> int:
    """What facewise was told by a flag."""
    given = flags.replace("=", " ").split()
    return int(given[given.index(name) + 1]) if name in given else default


def speed(cell: dict) -> float:
    return cell["pictures_per_second"]


def limit_at(arguments: argparse.Namespace, scenario: Scenario, cell: dict, *options: str) -> dict:
    """A cell of the grid again, as long as the servers are measured."""
    bodies = ["--bodies", str(arguments.data / "bodies" / scenario.pictures), "--seconds", str(arguments.seconds)]
    place = [word for name in ("batch", "threads", "loops") for word in (f"--{name}", str(cell[name]))]
    return limit(arguments, scenario, "speed", *bodies, *place, *options)["cells"][0]


def measure_limit(arguments: argparse.Namespace, scenario: Scenario, results: Results) -> None:
    threads = setting(arguments.facewise_flags, "--intra-threads", 1)
    bodies = ["--bodies", str(arguments.data / "bodies" / scenario.pictures)]
    if scenario.name not in results.cells:
        batches = "1,2,4,8,16" if scenario.detector else "1,2,4,8,16,32"
        said = limit(arguments, scenario, "speed", *bodies, "--seconds", str(GRID_SECONDS), "--batch", batches)
        cells = sorted(said["cells"], key=speed, reverse=True)
        finalists = [(speed(limit_at(arguments, scenario, cell)), cell) for cell in cells[:FINALISTS]]
        best = max(finalists, key=lambda finalist: finalist[0])[1]
        results.cells[scenario.name] = [best, *(cell for cell in cells if cell is not best)]
        copies = setting(arguments.facewise_flags, "--workers", max(1, serving.cpus() // threads))
        said = limit(arguments, scenario, "memory", "--copies", str(copies), "--threads", str(threads))
        results.networks[scenario.name] = said["networks_mb"]
    for decoding in ("decoded", "undecoded"):
        options = ["--undecoded"] if decoding == "undecoded" else []
        said = limit_at(arguments, scenario, results.cells[scenario.name][0], *options)
        results.limits.setdefault((scenario.name, decoding), []).append(speed(said))
    said = limit(arguments, scenario, "once", *bodies, "--seconds", str(ONCE_SECONDS), "--threads", str(threads))
    results.once.setdefault(scenario.name, []).append(said["median_ms"])
    now = results.limits[scenario.name, "decoded"][-1]
    print(f"  {LIMIT}: {now:.1f} pictures/s, one alone {said['median_ms']:.2f} ms", flush=True)


def check(running: Running, folder: Path) -> list[list[dict]]:
    """The faces in the first pictures. A server that does not do the work is not measured."""
    answers = []
    for path in sorted(folder.iterdir())[:CHECKED]:
        status, body = running.ask(path.read_bytes())
        if status != 200:
            serving.fail(f"{running.server.name} answered {path} with {status}: {body[:300]!r}")
        answers.append(json.loads(body)["faces"])
    if not any(face.keys() >= {"age", "gender", "smile", "emotion"} for faces in answers for face in faces):
        serving.fail(f"{running.server.name} finds no faces in {folder}.")
    return answers


def measure(arguments: argparse.Namespace, scenario: Scenario, server: Server, results: Results) -> None:
    folder = (arguments.data / "bodies" / scenario.pictures).resolve()
    with serving.running(server) as running:
        faces = check(running, folder)
        results.faces.setdefault((scenario.name, server.name), faces)
        serving.wrk(running.url, folder, MAIN, WARM_UP_SECONDS)
        said, memory = [], 0.0
        for concurrency in arguments.concurrency:
            load = serving.wrk(running.url, folder, concurrency, arguments.seconds)
            results.loads.setdefault((scenario.name, server.name, concurrency), []).append(load)
            memory = max(memory, running.resident())
            others = f" {load.other}" if load.other else ""
            said.append(f"{concurrency}: {load.throughput:.0f}/s p99 {load.p99:.1f}{others}")
        results.memory.setdefault((scenario.name, server.name), []).append(memory)
        print(f"  {server.name}: {'; '.join(said)}; {memory:.0f} MB", flush=True)


def tune(arguments: argparse.Namespace, chosen: list[Scenario]) -> Grids:
    """Tries the settings of every peer. The outcome is kept, for the machine does not change."""
    kept = {"machine": serving.machine(), "grids": {}}
    if arguments.tuning.is_file() and not arguments.tune:
        read = json.loads(arguments.tuning.read_text())
        kept = read if read["machine"] == kept["machine"] else kept
    for scenario in chosen:
        grids = kept["grids"].setdefault(scenario.name, {})
        for kind in serving.peers(scenario):
            if kind in grids or kind not in arguments.servers:
                continue
            tried = []
            for settings in serving.grid(kind, scenario):
                folder = (arguments.data / "bodies" / scenario.pictures).resolve()
                with serving.running(serving.peer(kind, arguments.python, scenario, settings)) as running:
                    serving.wrk(running.url, folder, MAIN, WARM_UP_SECONDS)
                    load = serving.wrk(running.url, folder, MAIN, arguments.tune_seconds)
                tried.append(
                    {
                        "settings": settings,
                        "pictures_per_second": round(load.throughput, 1),
                        "p99_ms": round(load.p99, 1),
                    }
                )
                print(
                    f"tuning for {scenario.name}: {kind} {words(settings)}: {load.throughput:.1f} pictures/s",
                    flush=True,
                )
            if not any(one["pictures_per_second"] for one in tried):
                serving.fail(f"{kind} answered nothing with any settings in {arguments.tune_seconds} s each: is the machine busy?")
            grids[kind] = sorted(tried, key=lambda one: one["pictures_per_second"], reverse=True)
            arguments.tuning.write_text(json.dumps(kept, indent=1) + "\n")
    return kept["grids"]


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def names(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def make_bench(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """The command that measures the same again."""
    said = []
    for name in ("facewise_flags", "rounds", "seconds", "concurrency", "only", "servers", "tune_seconds"):
        value = getattr(arguments, name)
        if value != parser.get_default(name):
            words = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            said += ["--" + name.replace("_", "-"), shlex.quote(words)]
    return f'make bench ARGS="{" ".join(said)}"' if said else "make bench"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facewise", default="target/release/facewise", help="the server")
    parser.add_argument("--limit", default="target/release/examples/limit", help="the program of bench/limit.rs")
    parser.add_argument("--python", default=sys.executable, help="a Python with bench/requirements.txt")
    parser.add_argument(
        "--data", type=Path, default=Path("runs/bench"), help="what networks.py and bodies.py have written"
    )
    parser.add_argument("--facewise-flags", default="", help="further flags for `facewise serve`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="for each server and concurrency, in each round")
    parser.add_argument("--concurrency", type=numbers, default=[1, 8, 32, 64, 256])
    parser.add_argument("--only", type=names, help="scenarios: attributes, resnet-18, light, pipeline")
    parser.add_argument(
        "--servers",
        type=names,
        help="of facewise, limit, and the peers 'direct', 'thread pool', 'micro-batched', 'LitServe'",
    )
    parser.add_argument("--tune", action="store_true", help="tune the peers again")
    parser.add_argument("--tune-seconds", type=int, default=TUNE_SECONDS)
    parser.add_argument("--tuning", type=Path, help="where the tuning is kept [default: tuning.json in --data]")
    parser.add_argument("--out", type=Path, default=serving.BENCH / "RESULTS.md")
    arguments = parser.parse_args()
    command = make_bench(parser, arguments)
    arguments.facewise, arguments.limit = Path(arguments.facewise).resolve(), Path(arguments.limit).resolve()
    # Not resolved: a virtual environment's Python is a link to another one.
    arguments.python = str(Path(arguments.python).absolute())
    arguments.out, arguments.data = arguments.out.resolve(), arguments.data.resolve()
    arguments.tuning = (arguments.tuning or arguments.data / "tuning.json").resolve()
    serving.check_tools(str(arguments.facewise))
    scenarios = serving.scenarios(arguments.data)
    chosen = [
        scenarios.get(name) or parser.error(f"there is no scenario '{name}'") for name in arguments.only or scenarios
    ]
    everybody = [FACEWISE, LIMIT, "FastAPI, direct", "FastAPI, thread pool", "FastAPI, micro-batched", "LitServe"]
    wanted = arguments.servers or everybody
    arguments.servers = [name for name in everybody if any(word in name for word in wanted)]

    grids = tune(arguments, chosen)
    results = Results(arguments.concurrency)
    for number in range(arguments.rounds):
        for scenario in chosen:
            print(f"round {number + 1} of {arguments.rounds}, {scenario.title}:", flush=True)
            entries = [name for name in [FACEWISE, LIMIT, *serving.peers(scenario)] if name in arguments.servers]
            turn = number * 2 % len(entries)
            for name in entries[turn:] + entries[:turn]:
                if name == LIMIT:
                    measure_limit(arguments, scenario, results)
                elif name == FACEWISE:
                    measure(
                        arguments,
                        scenario,
                        serving.facewise(str(arguments.facewise), scenario, arguments.facewise_flags),
                        results,
                    )
                else:
                    settings = grids[scenario.name][name][0]["settings"]
                    measure(arguments, scenario, serving.peer(name, arguments.python, scenario, settings), results)

    flags = f"`{arguments.facewise_flags}`" if arguments.facewise_flags else "its defaults"
    rounds = f"{arguments.rounds} interleaved rounds of {arguments.seconds} s for each server and concurrency"
    conditions = f"{rounds}; facewise with {flags}"
    arguments.out.write_text(report.document(chosen, results, grids, command, conditions))
    print(f"\n{report.summary(chosen, results)}\n\nwritten to {arguments.out}")


if __name__ == "__main__":
    main()
