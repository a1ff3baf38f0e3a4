"""A labelled set, scored by `facewise evaluate` and by `POST /v1/evaluations` from a zip, beside the pictures a second that the same
server describes under load. Fails where the two reports differ by more than 1e-6 anywhere, or where one of them took its pictures
slower than 0.85 of the load.

    make bench-evaluation
"""

import argparse
import json
import math
import subprocess
import tempfile
import time
import zipfile
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

from serving import FACEWISE, ROOT, Server, check_tools, fail, running, wrk

SAME, SHARE = 1e-6, 0.85
LOAD_SECONDS, CONCURRENCY = 8.0, 32
# What is not about the answers.
ASIDE = {"created", "throughput", "name"}


def pack(folder, path):
    """The folder as one zip; pictures are compressed already."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            archive.write(file, file.relative_to(folder))


def on_the_command_line(options, folder):
    report = folder / "report.json"
    command = [options.facewise, "evaluate", options.dataset, "--where", options.where, "--group-by", options.group_by]
    command += ["--json", report, "--models", ROOT / "models", "--log-level", "off"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(report.read_text())


def over_http(options, url, archive):
    query = urlencode({"where": options.where, "group_by": options.group_by})
    send = ["curl", "-sS", "--fail-with-body", "-F", f"dataset=@{archive}", f"{url}/v1/evaluations?{query}"]
    place = f"{url}/v1/evaluations/{json.loads(subprocess.check_output(send))['id']}"
    while (job := answer(place))["status"] in ("queued", "running"):
        time.sleep(0.2)
    if job["status"] != "succeeded":
        fail(f"the evaluation {job['status']}: {job['error']}")
    return answer(f"{place}/report.json")


def answer(url):
    with urlopen(url, timeout=60) as response:
        return json.load(response)


def differences(one, other, place="report"):
    """Where two reports differ by more than SAME."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted((one.keys() | other.keys()) - ASIDE):
            yield from differences(one.get(key), other.get(key), f"{place}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other)):
            yield from differences(*pair, f"{place}[{index}]")
    elif isinstance(one, float) or isinstance(other, float):
        if not math.isclose(one, other, rel_tol=0, abs_tol=SAME):
            yield f"{place}: {one} and {other}"
    elif one != other:
        yield f"{place}: {one} and {other}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facewise", required=True, type=Path, help="the release binary")
    parser.add_argument("--data", required=True, type=Path, help="where bodies.py has written the pictures of the load")
    parser.add_argument("--dataset", required=True, type=Path, help="folder with manifest.csv and its pictures")
    parser.add_argument("--where", default="split=test")
    parser.add_argument("--group-by", default="race")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    check_tools(str(options.facewise))

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        archive = folder / "dataset.zip"
        pack(options.dataset, archive)
        command = [str(options.facewise.resolve()), "serve", "--models", "models", "--listen", "127.0.0.1:{port}"]
        command += ["--data-dir", str(folder / "data"), "--log-level", "warn"]
        with running(Server(FACEWISE, command, "/v1/predict?detect=false", "/health/ready")) as server:
            shares = {"command line": [], "HTTP": []}
            print("pictures a second: round, under load, command line (share), HTTP (share)")
            for number in range(1, options.rounds + 1):
                load = wrk(server.url, options.data / "bodies" / "crops", CONCURRENCY, LOAD_SECONDS).throughput
                reports = {
                    "HTTP": over_http(options, f"http://127.0.0.1:{server.port}", archive),
                    "command line": on_the_command_line(options, folder),
                }
                if found := list(differences(reports["command line"], reports["HTTP"])):
                    fail("the reports differ:\n" + "\n".join(found[:20]))
                speeds = {name: report["throughput"]["images_per_second"] for name, report in reports.items()}
                for name, speed in speeds.items():
                    shares[name].append(speed / load)
                cells = [f"{name} {speed:.0f} ({speed / load:.2f})" for name, speed in speeds.items()]
                print(f"{number}: load {load:.0f}, " + ", ".join(cells), flush=True)
    rows = reports["HTTP"]["dataset"]["rows"]
    print(f"The two reports of {rows} rows agree within {SAME}.")
    for name, found in shares.items():
        median = sorted(found)[len(found) // 2]
        print(f"{name}: {median:.2f} of the load at the median")
        if median < SHARE:
            fail(f"that is less than {SHARE}")


main()
