"""`fetch.py` against pip itself, without a network: fake wheels in a folder stand for the package index."""

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import unittest
import zipfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import fetch

SCRIPT = Path(fetch.__file__)
PLATFORM = "manylinux_2_28_x86_64"


class FetchTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name, "root")
        self.index = Path(folder.name, "index")
        self.root.mkdir()
        self.index.mkdir()
        settings = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        settings |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index)}
        environment = mock.patch.dict(os.environ, settings, clear=True)
        environment.start()
        self.addCleanup(environment.stop)

    def library(self, members: dict[str, str], **changes: str) -> fetch.Library:
        """A library made of one wheel, `thing==1.0`, that lies in the index and holds each member's own name."""
        path = self.index / f"thing-1.0-cp311-cp311-{PLATFORM}.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for name in (*members, "thing/unwanted"):
                wheel.writestr(name + ("header.h" if name.endswith("/") else ""), name)
            wheel.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
            wheel.writestr("thing-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: cp311-cp311-{PLATFORM}\n")
            wheel.writestr("thing-1.0.dist-info/RECORD", "")
        sha256 = changes.get("sha256", hashlib.sha256(path.read_bytes()).hexdigest())
        wheel = fetch.Wheel(changes.get("requirement", "thing==1.0"), PLATFORM, sha256, 1, members)
        return fetch.Library("Thing 1.0", "make thing", ".thing", (wheel,), {"build-version": "1.0\n"})

    def fetched(self, wanted: fetch.Library) -> str:
        """Fetches `wanted` and returns what a person reads meanwhile."""
        with tempfile.TemporaryFile("w+") as stderr, contextlib.redirect_stderr(stderr):
            fetch.fetch(wanted, self.root)
            stderr.seek(0)
            return stderr.read()

    def fails(self, wanted: fetch.Library) -> str:
        with self.assertRaises(fetch.Failure) as caught:
            self.fetched(wanted)
        self.assertEqual([path.name for path in self.root.iterdir()], [".thing.lock"], "something half done was left")
        return str(caught.exception)

    def test_the_code_looks_for_the_versions_that_are_fetched(self) -> None:
        repository = SCRIPT.parent.parent
        for file, text in (
            ("core/src/onnxruntime.rs", f'VERSION: &str = "{fetch.ONNXRUNTIME}"'),
            ("Makefile", f"BENCH_TORCH := {fetch.TORCH}"),
            ("Makefile", f".onnxruntime/{fetch.ONNXRUNTIME}-cuda/libonnxruntime.so"),
            ("Makefile", f".onnxruntime/cuda-{fetch.CUDA}/lib"),
        ):
            self.assertIn(text, (repository / file).read_text(), file)

    def test_only_the_wanted_members_are_unpacked(self) -> None:
        wanted = self.library({"thing/lib/a.so.1": "lib/a.so", "thing/include/": "include/"})
        self.fetched(wanted)
        files = {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()}
        self.assertEqual(
            files, {".thing.lock", ".thing/lib/a.so", ".thing/include/header.h", ".thing/build-version"}
        )
        self.assertEqual((self.root / ".thing/lib/a.so").read_text(), "thing/lib/a.so.1")

    def test_what_is_there_is_not_fetched_again(self) -> None:
        wanted = self.library({"thing/a.so": "a.so"})
        self.assertIn("Fetching thing==1.0", self.fetched(wanted))
        for wheel in self.index.iterdir():
            wheel.unlink()
        self.assertEqual(self.fetched(wanted), "")

    def test_what_the_system_has_is_not_fetched(self) -> None:
        for instead, is_fetched in ((("libc.so.6",), False), (("libc.so.6", "libnobodyhas.so.1"), True)):
            said = self.fetched(replace(self.library({"thing/a.so": "a.so"}), instead=instead))
            self.assertEqual("Fetching thing==1.0" in said, is_fetched, instead)

    def test_another_version_and_a_missing_file_are_mended(self) -> None:
        wanted = self.library({"thing/a.so": "a.so"})
        for spoil in (
            lambda: (self.root / ".thing/build-version").write_text("0.9\n"),
            lambda: (self.root / ".thing/a.so").unlink(),
            lambda: (self.root / ".thing.part").mkdir(),
        ):
            self.fetched(wanted)
            spoil()
            self.fetched(wanted)
            self.assertEqual((self.root / ".thing/build-version").read_text(), "1.0\n")
            self.assertEqual((self.root / ".thing/a.so").read_text(), "thing/a.so")

    def test_a_wheel_with_another_hash_is_thrown_away(self) -> None:
        said = self.fails(self.library({"thing/a.so": "a.so"}, sha256="0" * 64))
        self.assertIn("The SHA-256 of the downloaded thing==1.0 is not the pinned one", said)
        self.assertIn("run `make thing` again", said)

    def test_an_index_without_the_wheel_is_named(self) -> None:
        said = self.fails(self.library({"thing/a.so": "a.so"}, requirement="thing==2.0"))
        self.assertIn(f"has no thing==2.0 for {PLATFORM}", said)

    def test_no_network_is_told_from_a_missing_wheel(self) -> None:
        wanted = self.library({"thing/a.so": "a.so"})
        nothing_listens = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
        with mock.patch.dict(os.environ, {**nothing_listens, "PIP_FIND_LINKS": ""}):
            self.assertIn("pip could not reach its package index", self.fails(wanted))

    def test_a_python_without_pip_is_told_what_to_install(self) -> None:
        # `-S` leaves out the folder that pip is installed in.
        command = [sys.executable, "-S", str(SCRIPT), "onnxruntime", "--root", str(self.root)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(run.returncode, 1)
        self.assertIn("has no pip. Install it (on Debian and Ubuntu: sudo apt install python3-pip)", run.stderr)
        self.assertNotIn("Traceback", run.stderr)

    def test_other_machines_get_the_way_around(self) -> None:
        for name, system, machine, way in (
            ("onnxruntime", "Darwin", "arm64", "set ORT_DYLIB_PATH"),
            ("onnxruntime", "Linux", "riscv64", "set ORT_DYLIB_PATH"),
            ("onnxruntime-cuda", "Linux", "aarch64", "make serve"),
            ("cuda", "Windows", "AMD64", "--provider cuda"),
            ("libtorch", "Linux", "aarch64", "set LIBTORCH"),
        ):
            machine_is = mock.patch.multiple(
                "platform", system=mock.Mock(return_value=system), machine=mock.Mock(return_value=machine)
            )
            with machine_is, self.assertRaisesRegex(fetch.Failure, way):
                fetch.library(name)


if __name__ == "__main__":
    unittest.main()
