"""Tests a server by its own description: `conformance.py --facewise target/debug/facewise --schemathesis .venv/bin/schemathesis`.

Starts the program on a free port with keys, lets schemathesis ask every operation with good and bad requests, and checks the
metrics of the server after that with promtool, where there is one. Ends with 1 when anything is found.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

# What is left out: operations that change which models the others find, and streams of events, which do not end.
EXCLUDED = r"/(load|unload|reload)$|/events$"
# A schema cannot say which bytes are a picture.
UNCHECKED = "positive_data_acceptance"


def network() -> bytes:
    """A network that tells the gender from three numbers, as ONNX, field by field."""

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)

    def field(tag: int, value: int | str | bytes) -> bytes:
        if isinstance(value, int):
            return varint(tag << 3) + varint(value)
        value = value.encode() if isinstance(value, str) else value
        return varint(tag << 3 | 2) + varint(len(value)) + value

    def tensor(name: str, length: int) -> bytes:
        shape = field(1, field(2, "batch")) + field(1, field(1, length))
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))

    weights = field(1, 3) + field(1, 2) + field(2, 1) + field(8, "weights") + field(9, struct.pack("<6f", 1, 0, 0, 1, 0, 0))
    node = field(1, "embedding") + field(1, "weights") + field(2, "gender") + field(4, "MatMul")
    graph = field(1, node) + field(2, "graph") + field(5, weights) + field(11, tensor("embedding", 3)) + field(12, tensor("gender", 2))
    return field(1, 8) + field(7, graph) + field(8, field(2, 18))


def models(folder: Path) -> Path:
    """The models that ship, and one that reads embeddings as short as the description's example."""
    shutil.copytree(ROOT / "models", folder / "models")
    version = folder / "models" / "resmlp" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(network())
    head = {"task": "gender", "output": "gender", "values": "logits", "labels": ["female", "male"]}
    manifest = {"schema": 1, "name": "resmlp", "version": "1", "kind": "embeddings"}
    manifest |= {"input": {"name": "embedding", "features": 3}, "heads": [head]}
    (version / "manifest.json").write_text(json.dumps(manifest))
    return folder / "models"


def start(facewise: Path, folder: Path) -> tuple[subprocess.Popen, str, str]:
    """The server, its address, and a key that is good for everything."""
    made = subprocess.run(
        [facewise, "key", "conformance", "--scopes", "predict,evaluate,admin"], check=True, capture_output=True, text=True
    ).stdout
    key, lines = made.split("\n\n", 1)
    config, log = folder / "facewise.toml", folder / "log"
    config.write_text(f"{lines}\n")
    with log.open("w") as out:
        command = [facewise, "--config", config, "serve", "--listen", "127.0.0.1:0", "--models", models(folder)]
        server = subprocess.Popen(command, stderr=out, cwd=ROOT)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        # The last such line: metrics may have an address of their own.
        if found := re.findall(r"listening.*?address=([0-9.:]+)", re.sub(r"\x1b\[\d*m", "", log.read_text())):
            return server, found[-1], key
        if server.poll() is not None:
            break
        time.sleep(0.1)
    stop(server)
    sys.exit(f"conformance: the server does not start:\n{log.read_text()}")


def stop(server: subprocess.Popen) -> None:
    server.terminate()
    try:
        server.wait(timeout=60)
    except subprocess.TimeoutExpired:
        server.kill()


def asked(schemathesis: Path, address: str, key: str, examples: int, further: list[str]) -> bool:
    """Whether schemathesis finds nothing."""
    command = [
        schemathesis, "run", f"http://{address}/openapi.json",
        "--header", f"Authorization: Bearer {key}",
        "--exclude-checks", UNCHECKED,
        "--exclude-path-regex", EXCLUDED,
        "--max-examples", str(examples),
        "--seed", "1",
        "--no-color",
        *further,
    ]  # fmt: skip
    return subprocess.run(command, cwd=tempfile.gettempdir()).returncode == 0


def scraped(address: str, key: str) -> bool:
    """Whether promtool finds the metrics good, or is not there to say so."""
    promtool = shutil.which("promtool")
    if promtool is None:
        print("conformance: the metrics are not checked, for there is no promtool (on Debian: sudo apt install prometheus)")
        return True
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", "/metrics", headers={"x-api-key": key})
    response = connection.getresponse()
    metrics = response.read()
    if response.status != 200:
        print(f"conformance: /metrics answers {response.status}")
        return False
    checked = subprocess.run([promtool, "check", "metrics"], input=metrics, capture_output=True)
    said = (checked.stdout + checked.stderr).decode().strip()
    print(said or f"promtool finds nothing in {len(metrics)} bytes of metrics")
    return checked.returncode == 0 and not said


def main() -> None:
    parser = argparse.ArgumentParser(description="Test a server by its own description.")
    parser.add_argument("--facewise", type=Path, required=True, help="the program")
    parser.add_argument("--schemathesis", type=Path, required=True, help="the tester")
    parser.add_argument("--examples", type=int, default=50, help="most requests of a kind, for each operation")
    parser.add_argument("further", nargs="*", help="further arguments for schemathesis, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server, address, key = start(arguments.facewise.resolve(), Path(folder))
        try:
            tester = arguments.schemathesis.absolute()
            found_nothing = [
                asked(tester, address, key, arguments.examples, arguments.further),
                scraped(address, key),
                server.poll() is None,
            ]
        finally:
            stop(server)
    sys.exit(0 if all(found_nothing) else 1)


if __name__ == "__main__":
    main()
