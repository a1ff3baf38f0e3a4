"""The memory of `facewise evaluate` while it scores a set that is much larger than itself: a manifest of many rows over the mean
faces of examples/. Prints the resident memory at each tenth, and fails where it grows by more than a tenth after the first.

    python3 bench/flat_memory.py --facewise target/release/facewise --rows 100000
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def write_set(folder, rows):
    pictures = sorted((ROOT / "examples" / "faces").glob("*.jpg"))
    for picture in pictures:
        shutil.copy(picture, folder / picture.name)
    with open(folder / "manifest.csv", "w", encoding="utf-8") as manifest:
        manifest.write("path,age,gender,side\n")
        for row in range(rows):
            gender = "female" if row % 2 else "male"
            manifest.write(f"{pictures[row % len(pictures)].name},{row % 90},{gender},{row % 5}\n")


def resident(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facewise", required=True, type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_set(folder, options.rows)
        predictions = folder / "predictions.csv"
        command = [options.facewise, "evaluate", folder, "--models", ROOT / "models", "--crop", "square"]
        command += ["--group-by", "side,gender", "--predictions", predictions, "--log-level", "off"]
        # What is done shows in the table: a row has at least a hundred bytes, and the last rows tell how many there are.
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
            found, done = [], 0
            while run.poll() is None:
                time.sleep(0.2)
                try:
                    memory = resident(run.pid)
                    with open(predictions, "rb") as table:
                        done = sum(chunk.count(b"\n") for chunk in iter(lambda: table.read(1 << 20), b""))
                except (OSError, StopIteration):
                    continue
                if done * 10 // options.rows > len(found):
                    found.append(memory)
                    print(f"{done:>9} rows  {memory:7.1f} MiB", flush=True)
            print(run.stdout.read(), end="")
    if run.returncode != 0 or len(found) < 2:
        sys.exit("the evaluation failed, or was too fast to be watched")
    if max(found) > 1.1 * found[0]:
        sys.exit(f"the memory grew from {found[0]:.1f} to {max(found):.1f} MiB")


main()
