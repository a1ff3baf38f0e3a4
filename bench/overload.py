"""facewise under ten times the load that it can sustain: `make bench-overload`.

First the peak is measured, in a closed loop. Then many connections together offer ten times as much, each request being
timed by itself, while the server's memory is watched. A single client sends one picture after the other before and
afterwards, and so sees when the server is its old self again.
"""

from __future__ import annotations

import argparse
import http.client
import resource
import statistics
import sys
import threading
import time
from pathlib import Path

import serving
from serving import Load, Running

ALLOWED = {"200", "429 overloaded", "429 deadline"}
TIMES, LEAST_GOODPUT, RECOVERY_SECONDS, MOST_GROWTH = 10, 0.9, 2.0, 1.1
PEAK_CONCURRENCY, PEAK_SECONDS, PROBE_SECONDS = 64, 8, 5
PACING_TRIALS, PACING_SECONDS = 3, 4
# As fast as before: this many answers in a row that took no more than this much longer.
STEADY, SLOWER, SLACK_MS = 10, 1.5, 2.0
DEADLINE_MS = 30_000


class Probe:
    """One picture after the other, each with the time when its answer came and how long it took, in milliseconds."""

    def __init__(self, running: Running, bodies: list[bytes]) -> None:
        self.running, self.bodies = running, bodies

    def send(self, seconds: float) -> list[tuple[float, float, int]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.running.port, timeout=60)
        began, seen = time.monotonic(), []
        while time.monotonic() - began < seconds:
            started = time.monotonic()
            connection.request(
                "POST",
                self.running.server.path,
                self.bodies[len(seen) % len(self.bodies)],
                {"content-type": "image/jpeg"},
            )
            answer = connection.getresponse()
            answer.read()
            now = time.monotonic()
            seen.append((now - began, (now - started) * 1e3, answer.status))
        connection.close()
        return seen


def recovery(before: float, seen: list[tuple[float, float, int]]) -> float | None:
    """Seconds until answers come as fast as before and go on so; `None` where they do not."""
    good = [status == 200 and took <= SLOWER * before + SLACK_MS for _, took, status in seen]
    for first in range(len(good) - STEADY + 1):
        # A single straggler is the machine's, not the server's.
        if all(good[first : first + STEADY]):
            ended, took, _ = seen[first]
            return max(0.0, ended - took / 1e3)
    return None


def pace(running: Running, folder: Path, arguments: argparse.Namespace, wanted: float) -> float:
    """The pause between requests, in milliseconds, with which the connections together send about so many a second. A
    connection that waits for an answer sends nothing, and how many wait is up to the server, so it is tried out."""
    pause = 1e3 * arguments.connections / wanted
    for _ in range(PACING_TRIALS):
        tried = serving.wrk(running.url, folder, arguments.connections, PACING_SECONDS, pause, timeout=60)
        pause *= sum(tried.outcomes.values()) / tried.seconds / wanted
    return pause


class Memory:
    """The largest and the last memory of a server while something else goes on, in megabytes."""

    def __init__(self, running: Running) -> None:
        self.running, self.seen, self.ended = running, [running.resident()], threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self) -> None:
        while not self.ended.wait(0.5):
            self.seen.append(self.running.resident())

    def __enter__(self) -> Memory:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facewise", default="target/release/facewise", help="the server")
    parser.add_argument(
        "--data", type=Path, default=Path("runs/bench"), help="what networks.py and bodies.py have written"
    )
    parser.add_argument("--scenario", default="resnet-18", help="attributes, resnet-18, light or pipeline")
    parser.add_argument("--facewise-flags", default="", help="further flags for `facewise serve`")
    parser.add_argument("--seconds", type=int, default=60, help="how long the overload lasts")
    parser.add_argument("--times", type=float, default=TIMES, help="how much more is offered than can be answered")
    parser.add_argument("--connections", type=int, default=2048)
    parser.add_argument("--deadline-ms", type=float, default=DEADLINE_MS, help="--request-timeout of the server")
    parser.add_argument("--peak-seconds", type=int, default=PEAK_SECONDS)
    arguments = parser.parse_args()
    arguments.facewise, arguments.data = Path(arguments.facewise).resolve(), arguments.data.resolve()
    serving.check_tools(str(arguments.facewise))
    scenario = serving.scenarios(arguments.data).get(arguments.scenario) or parser.error(
        f"there is no scenario '{arguments.scenario}'"
    )
    folder = arguments.data / "bodies" / scenario.pictures
    bodies = [path.read_bytes() for path in sorted(folder.iterdir())]
    flags = f"--request-timeout {arguments.deadline_ms:.0f}ms {arguments.facewise_flags}"
    # Each connection is a file, to the client and to the server, and the usual bound is below the number here.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # A body may not take longer than its request.
    flags = f"--body-timeout {min(arguments.deadline_ms, 10_000):.0f}ms {flags}"

    with serving.running(serving.facewise(str(arguments.facewise), scenario, flags)) as running:
        serving.wrk(running.url, folder, PEAK_CONCURRENCY, 2)
        peak = serving.wrk(running.url, folder, PEAK_CONCURRENCY, arguments.peak_seconds)
        if not peak.answered:
            serving.fail(f"the server answered nothing in {arguments.peak_seconds} s: is the machine busy?")
        probe = Probe(running, bodies)
        probe.send(0.5)
        before = statistics.median(took for _, took, _ in probe.send(PROBE_SECONDS))
        with Memory(running) as memory:
            pause = pace(running, folder, arguments, arguments.times * peak.throughput)
            over = serving.wrk(running.url, folder, arguments.connections, arguments.seconds, pause, timeout=60)
            after = probe.send(PROBE_SECONDS)
        back = recovery(before, after)
    good = report(arguments, scenario.title, peak, over, memory.seen, before, back)
    sys.exit(0 if good else 1)


def report(
    arguments: argparse.Namespace,
    title: str,
    peak: Load,
    over: Load,
    memory: list[float],
    before: float,
    back: float | None,
) -> bool:
    offered = sum(over.outcomes.values()) / over.seconds
    wrong = {name: count for name, count in over.outcomes.items() if name not in ALLOWED}
    share = over.throughput / peak.throughput
    # The client and the server share the cores, and a client that sends ten times as much takes more of them.
    left = (serving.cpus() - over.client_cpu) / (serving.cpus() - peak.client_cpu)
    p99, least = over.wait(0.99), min(list(over.each_second.values())[1:-1] or [0])
    # What is still growing in the second half of the time is not bounded.
    half = len(memory) // 2
    growth = max(memory[half:]) / max(memory[:half] or memory)
    checks = [
        (
            "answers other than 200, 429 overloaded and 429 deadline",
            ", ".join(f"{n} × {w}" for w, n in wrong.items()) or "none",
            "none",
            not wrong,
        ),
        ("broken connections and timeouts", str(over.broken), "0", over.broken == 0),
        ("goodput by peak", f"{share:.3f}", f"≥ {LEAST_GOODPUT}", share >= LEAST_GOODPUT),
        ("p99 of the admitted, ms", f"{p99:.0f}", f"≤ {arguments.deadline_ms:.0f}", p99 <= arguments.deadline_ms),
        ("memory at most, second half by first", f"{growth:.2f}", f"≤ {MOST_GROWTH}", growth <= MOST_GROWTH),
        (
            "latency is back after, s",
            "never" if back is None else f"{back:.2f}",
            f"≤ {RECOVERY_SECONDS:g}",
            back is not None and back <= RECOVERY_SECONDS,
        ),
    ]
    figures = [
        ("peak, pictures/s", f"{peak.throughput:.1f} (concurrency {PEAK_CONCURRENCY}, p99 {peak.p99:.0f} ms)"),
        (
            "offered, requests/s",
            f"{offered:.0f}, {offered / peak.throughput:.1f} times the peak, for {over.seconds:.0f} s",
        ),
        ("answers", ", ".join(f"{count} × {name}" for name, count in sorted(over.outcomes.items()))),
        ("goodput, pictures/s", f"{over.throughput:.1f}, at least {least} in a second"),
        (
            "goodput by peak, on the cores that the client left",
            f"{share / left:.3f} (client: {over.client_cpu:.2f} cores, {peak.client_cpu:.2f} at the peak)",
        ),
        ("p50 of the admitted, ms", f"{over.wait(0.5):.0f}"),
        ("memory before, at most, in the end, MB", f"{memory[0]:.0f}, {max(memory):.0f}, {memory[-1]:.0f}"),
        ("one picture alone before, ms", f"{before:.2f}"),
    ]
    print(f"{title}, {serving.machine()}, {arguments.connections} connections\n\n| | |\n|---|---|")
    print("\n".join(f"| {name} | {value} |" for name, value in figures))
    print("\n| | found | goal | |\n|---|---|---|---|")
    print(
        "\n".join(
            f"| {name} | {found} | {goal} | {'reached' if good else '**missed**'} |"
            for name, found, goal, good in checks
        )
    )
    return all(good for *_, good in checks)


if __name__ == "__main__":
    main()
