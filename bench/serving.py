"""Servers that are measured, the work that they are given, and the load they are put under; for compare.py and
overload.py."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
START_SECONDS, STOP_SECONDS = 120, 20
FACEWISE = "facewise"


@dataclass(frozen=True)
class Scenario:
    """Work: a network and pictures for it."""

    name: str
    title: str
    attributes: Path
    models: Path
    pictures: str
    detector: Path | None = None

    @property
    def path(self) -> str:
        """Where facewise answers it."""
        return "/v1/predict" if self.detector else "/v1/predict?detect=false"

    @property
    def folders(self) -> list[Path]:
        return [self.attributes] + ([self.detector] if self.detector else [])


def scenarios(data: Path) -> dict[str, Scenario]:
    """By name; `data` is the folder that networks.py and bodies.py have written to."""
    made = data / "models"
    models = made / "shipped"
    shipped, detector = models / "face-attributes" / "1", models / "face-detector" / "1"
    cases = [
        Scenario("attributes", "face-attributes at 64 px, 200 × 200 crops", shipped, models, "crops"),
        Scenario(
            "resnet-18",
            "ResNet-18 at 112 px, 200 × 200 crops",
            made / "resnet-18/resnet-18/1",
            made / "resnet-18",
            "crops",
        ),
        Scenario("light", "a light network at 64 px, 200 × 200 crops", made / "light/light/1", made / "light", "crops"),
        Scenario(
            "pipeline", "the whole pipeline, photographs of 1 megapixel", shipped, models, "photographs", detector
        ),
    ]
    return {case.name: case for case in cases}


@dataclass(frozen=True)
class Server:
    """A server for a scenario: its command line, what it needs in the environment, and where it answers."""

    name: str
    command: list[str]
    path: str
    ready: str
    environment: dict[str, str] = field(default_factory=dict)


def fail(message: str) -> None:
    sys.exit(f"facewise: {message}")


def cpus() -> int:
    return len(os.sched_getaffinity(0))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def facewise(binary: str, scenario: Scenario, flags: str) -> Server:
    """The server of this repository."""
    command = [binary, "serve", "--models", str(scenario.models), "--listen", "127.0.0.1:{port}", "--log-level", "warn"]
    command += [] if scenario.detector else ["--detector", "none"]
    return Server(FACEWISE, command + shlex.split(flags), scenario.path, "/health/ready")


def peer(kind: str, python: str, scenario: Scenario, settings: dict[str, str]) -> Server:
    """A Python server with some tuning."""
    # NumPy's own threads would only be in the way of ONNX Runtime's.
    environment = {"MODEL": str(scenario.attributes), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    if scenario.detector:
        environment["DETECTOR"] = str(scenario.detector)
    settings = dict(settings)
    if kind == "LitServe":
        command, ready = [python, "-B", str(BENCH / "peers" / "lit.py"), "--port", "{port}"], "/health"
    else:
        processes = settings.pop("PROCESSES", "1")
        app = "batched:app" if kind == "FastAPI, micro-batched" else "plain:app"
        command = [
            python,
            "-B",
            "-m",
            "uvicorn",
            app,
            "--app-dir",
            str(BENCH / "peers"),
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
        ]
        command += [
            "--loop",
            "uvloop",
            "--http",
            "httptools",
            "--no-access-log",
            "--log-level",
            "warning",
            "--workers",
            processes,
        ]
        ready = "/openapi.json"
    if kind in MODES:
        environment["MODE"] = MODES[kind]
    return Server(kind, command, "/predict", ready, environment | settings)


MODES = {"FastAPI, direct": "direct", "FastAPI, thread pool": "threadpool"}


def grid(kind: str, scenario: Scenario) -> list[dict[str, str]]:
    """The tunings of a peer that are tried; the fastest at concurrency 32 is measured."""
    n = cpus()
    one_process = [{"INTRA": str(intra), "SPIN": spin} for intra, spin in ((1, "0"), (n, "0"), (n, "1"))]
    many = {"PROCESSES": str(n), "INTRA": "1", "SPIN": "0"}
    if kind == "FastAPI, direct":
        return [*one_process, many]
    if kind == "FastAPI, thread pool":
        pools = [{**one_process[0], "POOL": pool} for pool in (str(n), str(2 * n), "40")]
        return [*pools, {**one_process[2], "POOL": str(n)}, {**many, "POOL": "1"}, {**many, "POOL": str(n)}]
    sizes = ("4", "8") if scenario.detector else ("8", "16", "32")
    if kind == "LitServe":
        workers = {"WORKERS": str(n), "INTRA": "1", "SPIN": "0"}
        tried = [{**workers, "BATCH": "1", "FAST": "0"}]
        tried += [
            {**workers, "BATCH": size, "BATCH_TIMEOUT": wait, "FAST": "0"}
            for size in sizes[:2]
            for wait in ("0", "0.001")
        ]
        tried += [{**workers, "BATCH": sizes[0], "BATCH_TIMEOUT": "0.001", "FAST": "1"}]
        tried += [{**workers, "BATCH": sizes[0], "BATCH_TIMEOUT": "0.001", "FAST": "0", "API": "2"}]
        return [
            *tried,
            {"WORKERS": "1", "INTRA": str(n), "SPIN": "1", "BATCH": sizes[1], "BATCH_TIMEOUT": "0.001", "FAST": "0"},
        ]
    loops = [
        {"LOOPS": str(n), "INTRA": "1", "SPIN": "0", "DECODE": where, "BATCH": size}
        for where in ("worker", "handler")
        for size in sizes
    ]
    one = [
        {"LOOPS": "1", "INTRA": str(n), "SPIN": spin, "DECODE": "handler", "BATCH": sizes[-1]} for spin in ("0", "1")
    ]
    single = [{**many, "LOOPS": "1", "DECODE": where, "BATCH": sizes[1]} for where in ("worker", "handler")]
    return [*loops, *one, *single]


def peers(scenario: Scenario) -> list[str]:
    """The peers of a scenario; a photograph is worth the two that batch."""
    batching = ["FastAPI, micro-batched", "LitServe"]
    return batching if scenario.detector else [*MODES, *batching]


class Running:
    """A server that has been started and answers."""

    def __init__(self, server: Server, port: int, process: subprocess.Popen[bytes]) -> None:
        self.server, self.port, self.process = server, port, process
        self.url = f"http://127.0.0.1:{port}{server.path}"

    def ask(self, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", self.server.path, body, {"content-type": "image/jpeg"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", self.server.ready)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def resident(self) -> float:
        """Resident memory of the server's processes in megabytes; what they share counts for each in part (PSS)."""
        total = 0
        for process in family(self.process.pid):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
        return total * 1024 / 1e6


def family(root: int) -> list[int]:
    """A process and those that it has started, and they."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # Behind the name, which may hold anything, in parentheses: state, parent.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


@contextlib.contextmanager
def running(server: Server) -> Iterator[Running]:
    """Starts a server, waits until it is ready, and stops it in the end with everything that it has started."""
    port = free_port()
    command = [word.replace("{port}", str(port)) for word in server.command]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | server.environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            started = Running(server, port, process)
            deadline = time.monotonic() + START_SECONDS
            while not started.is_ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    said = log.read().decode(errors="replace")[-2000:]
                    fail(f"{server.name} did not start: `{shlex.join(command)}` with {server.environment}\n{said}")
                time.sleep(0.05)
            yield started
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    # Its session is its own, so the group holds its processes and no others.
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    process.wait()


@dataclass(frozen=True)
class Load:
    """What wrk saw."""

    seconds: float
    outcomes: dict[str, int]
    p50: float
    p99: float
    most: float
    broken: int
    client_cpu: float
    waits: dict[int, int]
    each_second: dict[int, int]

    @property
    def answered(self) -> int:
        return self.outcomes.get("200", 0)

    @property
    def throughput(self) -> float:
        """Good answers a second."""
        return self.answered / self.seconds

    @property
    def other(self) -> dict[str, int]:
        """Everything but good answers."""
        broken = {"broken connections and timeouts": self.broken} if self.broken else {}
        return {name: count for name, count in sorted(self.outcomes.items()) if name != "200"} | broken

    def wait(self, share: float) -> float:
        """The time within which this share of good answers came, in milliseconds; only where each was timed."""
        total, seen = sum(self.waits.values()), 0
        for step in sorted(self.waits):
            seen += self.waits[step]
            if seen >= share * total:
                return 1.02 ** (step + 1)
        return float("nan")


def wrk(
    url: str, folder: Path, concurrency: int, seconds: float, pause: float | None = None, timeout: int = 10
) -> Load:
    """Puts a server under load from `concurrency` connections. With `pause`, in milliseconds, each waits about so long
    between an answer and its next request."""
    command = ["wrk", "-t1", f"-c{concurrency}", f"-d{max(1, round(seconds))}s", "--timeout", f"{timeout}s"]
    command += ["-s", str(BENCH / "load.lua"), url, "--", str(folder)] + ([f"{pause:.3f}"] if pause is not None else [])
    before = os.times()
    run = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=seconds + 60
    )
    after = os.times()
    lines = [line for line in run.stdout.splitlines() if line.startswith("RESULT ")]
    if run.returncode != 0 or not lines:
        fail(f"`{shlex.join(command)}` failed:\n{run.stdout[-2000:]}")
    said = json.loads(lines[-1].removeprefix("RESULT "))
    errors = ("connect_errors", "read_errors", "write_errors", "timeouts")
    # Of children that have been waited for, which is only wrk between the two readings.
    used = (after.children_user + after.children_system) - (before.children_user + before.children_system)
    return Load(
        seconds=said["seconds"],
        outcomes={name: int(count) for name, count in said["outcomes"].items()},
        p50=said["p50_ms"],
        p99=said["p99_ms"],
        most=said["max_ms"],
        broken=sum(int(said[name]) for name in errors),
        client_cpu=used / said["seconds"],
        waits={int(step): int(count) for step, count in said["waits"].items()},
        each_second={int(second): int(count) for second, count in said["each_second"].items()},
    )


def check_tools(binary: str) -> None:
    """Ends with the remedy when something is missing."""
    if not shutil.which("wrk"):
        fail("wrk is missing. Install it (on Debian and Ubuntu: sudo apt install wrk) and run this again.")
    if not Path(binary).is_file():
        fail(f"there is no server '{binary}': run `make bench`, or `cargo build --release`.")


def machine() -> str:
    """The processor and its cores, as Linux tells them."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()} ({cpus()} cores)"
    return f"{cpus()} cores"
