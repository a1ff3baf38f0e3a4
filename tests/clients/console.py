"""The console in a real browser, against a real server: `make conformance-console`.

The server is the program that FACEWISE names (default: target/debug/facewise), started here on a free port, or the one
whose address FACEWISE_URL has. The browser is Debian's Chromium, or what FACEWISE_BROWSER names. With FACEWISE_SCREENSHOTS=FOLDER
the pictures of the documentation are written, too.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import axe_playwright_python.sync_playwright as axe
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
GROUP = ROOT / "examples" / "group.jpg"
FACES = ROOT / "examples" / "faces"
REPORT = ROOT / "models" / "face-attributes" / "1" / "evaluation" / "utkface.html"
PROGRAM = os.environ.get("FACEWISE", str(ROOT / "target" / "debug" / "facewise"))
BROWSER = os.environ.get("FACEWISE_BROWSER") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENSHOTS = os.environ.get("FACEWISE_SCREENSHOTS")

DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
# The narrowest screen on which WCAG wants a page to be read without scrolling sideways.
NARROW = {"width": 320, "height": 640}

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser: sudo apt install chromium, or FACEWISE_BROWSER=/path/to/it")

# Of machines that do other things, too.
expect.set_options(timeout=30_000)

# Shifts of the layout that no press of a key or button explains.
WATCH_SHIFTS = """
    window.shifts = [];
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) {
        const moved = entry.sources.map(({ node }) => node?.id || node?.className || node?.nodeName);
        if (!entry.hadRecentInput) window.shifts.push({ value: entry.value, moved: moved.join(' ') });
      }
    }).observe({ type: 'layout-shift', buffered: true });
"""


# The server


@contextlib.contextmanager
def serving(*flags, settings=""):
    """A server with flags and a facewise.toml of its own; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Settings of the person's own shell and folder are no part of the test.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FACEWISE_")}
    log, folder = tempfile.TemporaryFile(), tempfile.TemporaryDirectory()
    environment["FACEWISE_DATA_DIR"] = folder.name
    config = Path(folder.name) / "facewise.toml"
    config.write_text(settings)
    command = [PROGRAM, "serve", "--config", str(config), "--listen", f"127.0.0.1:{port}", "--models", "models", *flags]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            if process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health/ready", timeout=5)
                break
            time.sleep(0.1)
        if process.poll() is not None:
            log.seek(0)
            pytest.exit(f"the server ended: {log.read().decode()}", 1)
        yield address
    finally:
        process.terminate()
        process.wait(30)
        folder.cleanup()


@pytest.fixture(scope="session")
def server():
    if address := os.environ.get("FACEWISE_URL"):
        yield address.rstrip("/")
    else:
        with serving() as address:
            yield address


def ask(server, path, body=None, kind="image/jpeg"):
    """What the server itself answers: status and JSON."""
    request = urllib.request.Request(server + path, data=body, headers={"content-type": kind})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


# The browser


@pytest.fixture(scope="session")
def browser(server):
    """Its camera sees the group picture, for ever."""
    with tempfile.NamedTemporaryFile(suffix=".mjpeg") as film, sync_playwright() as playwright:
        film.write(GROUP.read_bytes())
        film.flush()
        flags = [
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",
            f"--use-file-for-fake-video-capture={film.name}",
            # A name that browsers do not trust, and for the screenshots the address that everybody has.
            f"--host-resolver-rules=MAP facewise.test 127.0.0.1, MAP localhost:8080 {server.removeprefix('http://')}",
        ]
        sandbox = os.geteuid() != 0
        browser = playwright.chromium.launch(executable_path=BROWSER, args=flags, chromium_sandbox=sandbox)
        yield browser
        browser.close()


class Console:
    """A page that is watched: what it logs, whom it speaks to, and how it moves."""

    def __init__(self, browser: Browser, server: str, start="/", **context):
        self.server = server
        self.context = browser.new_context(**{"viewport": DESKTOP, "color_scheme": "light", **context})
        self.context.add_init_script(WATCH_SHIFTS)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.errors, self.addresses, self.expected = [], [], []
        self.page.on("console", self.hear)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.addresses.append(request.url))
        self.page.goto(server + start)
        expect(self.page.locator("#server")).not_to_be_empty()

    def hear(self, line):
        # A server without evaluations says so by a 404, which the browser logs.
        lacks = "status of 404" in line.text and "/v1/evaluations?" in line.location["url"]
        if line.type in ("error", "warning") and not lacks:
            self.errors.append(line.text)

    def give(self, *files):
        """Pictures as from the dialog of the system: paths of JPEGs, or (name, type, content)."""
        whole = [f if isinstance(f, tuple) else (f.name, "image/jpeg", f.read_bytes()) for f in files]
        self.page.set_input_files("#files", [{"name": name, "mimeType": kind, "buffer": content} for name, kind, content in whole])

    def settled(self):
        """Waits until all that was given is answered."""
        expect(self.page.locator("#results")).to_have_attribute("aria-busy", "false")
        expect(self.page.locator("#gallery li:not([data-state=done], [data-state=failed])")).to_have_count(0)

    def cards(self):
        return self.page.locator("#results .face")

    def close(self):
        shifts = self.page.evaluate("window.shifts")
        errors = [e for e in self.errors if not any(f"status of {code}" in e for code in self.expected)]
        self.context.close()
        assert errors == [], "errors in the browser's console"
        foreign = [a for a in self.addresses if not a.startswith((self.server, "blob:", "data:"))]
        assert foreign == [], "requests to other servers"
        assert sum(shift["value"] for shift in shifts) < 0.05, shifts


@pytest.fixture
def visit(browser, server):
    """Makes watched pages, and checks at the end what was watched."""
    consoles = []

    def visit(**context):
        consoles.append(Console(browser, context.pop("at", server), **context))
        return consoles[-1]

    yield visit
    for console in consoles:
        console.close()


def percent(share):
    if 0 < share < 0.005:
        return "<1%"
    if 0.995 <= share < 1:
        return ">99%"
    return f"{math.floor(share * 100 + 0.5)}%"


# What a person sees and does


def test_a_stranger_sees_what_it_is_and_an_example(visit, server):
    console = visit()
    page = console.page
    tasks = next(m["tasks"] for m in ask(server, "/v1/models")[1]["models"] if m["kind"] == "attributes" and m["default"])
    for task in tasks:
        expect(page.locator("#tasks")).to_contain_text(re.compile(task, re.I))
    expect(page.get_by_role("link", name="API")).to_have_attribute("href", re.compile("docs"))
    assert ask_page(server, "/docs/") == 200, "the link to the API leads somewhere"
    page.get_by_role("button", name="Try an example").click()
    console.settled()
    assert console.cards().count() == len(ask(server, "/v1/predict", GROUP.read_bytes())[1]["faces"])


def ask_page(server, path):
    with urllib.request.urlopen(server + path) as answer:
        return answer.status


def test_the_faces_shown_are_those_that_the_server_answers(visit, server):
    console = visit()
    console.give(GROUP)
    console.settled()
    _, answer = ask(server, "/v1/predict", GROUP.read_bytes())
    faces = answer["faces"]
    assert len(faces) >= 9, "the group is found"
    assert console.cards().count() == len(faces)
    console.page.get_by_role("button", name="Open all").click()
    picture = console.page.locator("#picture img").bounding_box()
    scale = picture["width"] / answer["image"]["width"]
    for index, face in enumerate(faces):
        card = console.cards().nth(index)
        age = face["age"]
        years = math.floor(age["years"] + 0.5)
        assert card.locator("summary .years b").inner_text() == str(years)
        assert card.locator("summary .interval").inner_text() == f"{age['low']}–{age['high']}"
        told = card.locator(".age > p").inner_text()
        assert told == f"{age['years']:g} years, 68% from {age['low']} to {age['high']}, group {age['group']}"
        # “neutral” of both smile and emotion is said once.
        labels = list(dict.fromkeys(face[task]["label"] for task in ("gender", "smile", "emotion")))
        assert card.locator("summary .labels").inner_text() == " · ".join(labels)
        for task in ("gender", "smile", "emotion"):
            rows = card.locator(f"[data-task={task}] dl > div").all()
            shown = {row.locator("dt").inner_text(): row.locator("dd > span:last-child").inner_text() for row in rows}
            assert shown == {label: percent(share) for label, share in face[task]["probabilities"].items()}
            widest = max(rows, key=lambda row: row.locator(".bar").evaluate("bar => Number(bar.style.getPropertyValue('--share'))"))
            assert widest.locator("dt").inner_text() == face[task]["label"]
        mark = console.page.locator(f"button.mark[data-face='{index}']")
        assert mark.get_attribute("aria-label") == f"Face {index + 1}: about {years} years, {', '.join(labels)}"
        box, drawn = face["box"], mark.bounding_box()
        for edge, length in (("x", "width"), ("y", "height")):
            assert abs(drawn[edge] - picture[edge] - box[edge] * scale) < 1.5
            assert abs(drawn[length] - box[length] * scale) < 1.5
    timings = console.page.locator(".timings li").all_inner_texts()
    assert [line.split()[0] for line in timings] == ["decode", "detect", "queue", "inference", "other"]


def test_the_curve_is_the_posterior(visit, server):
    console = visit()
    console.give(FACES / "young-woman.jpg")
    console.settled()
    _, answer = ask(server, "/v1/predict?distributions=true", (FACES / "young-woman.jpg").read_bytes())
    probabilities = answer["faces"][0]["age"]["probabilities"]
    line = console.page.locator(".more .curve .line").first.get_attribute("d")
    points = [tuple(map(float, point.split())) for point in line[1:].split("L")]
    assert [x for x, _ in points] == list(range(101))
    # Higher is less: the years are ordered in the curve as in the answer, its peak at the top.
    peak = probabilities.index(max(probabilities))
    assert min(points, key=lambda point: point[1])[0] == peak
    for (_, y), share in zip(points, probabilities):
        assert abs((40 - y) / (40 - points[peak][1]) - share / probabilities[peak]) < 1e-3


def test_the_command_asks_the_same(visit, tmp_path):
    console = visit()
    page = console.page
    console.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Try an example").click()
    console.settled()
    page.get_by_label("Landmarks").check()
    console.settled()
    expect(page.locator(".marks circle").first).to_be_attached()

    def run(folder):
        page.get_by_role("button", name="Copy the same by curl").click()
        command = page.evaluate("navigator.clipboard.readText()")
        assert command == page.locator(".code pre").first.inner_text()
        # A shell reads it, as a person's would.
        answer = subprocess.run(["bash", "-c", command.replace("curl", "curl --silent", 1)], cwd=folder, capture_output=True, check=True)
        return json.loads(answer.stdout)["faces"]

    def shown():
        page.get_by_text("The answer as JSON").click()
        return json.loads(page.locator("details.json pre").inner_text())["faces"]

    assert run(ROOT) == shown()
    awkward = tmp_path / "it's; a, \"name\" \\ $HOME.jpg"
    shutil.copy(FACES / "happy.jpg", awkward)
    console.give(awkward)
    console.settled()
    assert run(tmp_path) == shown()


def test_pointing_at_a_face_shows_its_card_and_the_other_way_round(visit):
    console = visit()
    console.give(GROUP)
    console.settled()
    card, mark = console.cards().nth(3), console.page.locator("button.mark[data-face='3']")
    mark.hover()
    expect(card).to_have_class(re.compile("lit"))
    expect(console.page.locator(".lit.face")).to_have_count(1)
    console.cards().nth(5).locator("summary").hover()
    expect(card).not_to_have_class(re.compile("lit"))
    expect(console.page.locator("button.mark[data-face='5']")).to_have_class(re.compile("lit"))
    expect(console.page.locator(".marks g[data-face='5']")).to_have_class(re.compile("lit"))
    mark.click()
    expect(card).to_have_attribute("open", "")
    expect(card.locator("summary")).to_be_focused()
    expect(card).to_be_in_viewport()


def test_everything_can_be_done_with_the_keyboard(visit):
    console = visit()
    page = console.page

    def tab_to(name, key="Tab"):
        for _ in range(60):
            page.keyboard.press(key)
            focused = page.evaluate("(document.activeElement.ariaLabel || document.activeElement.innerText || '').trim()")
            if focused.startswith(name):
                assert page.evaluate("document.activeElement.matches(':focus-visible')"), "the focus is seen"
                return
        pytest.fail(f"{name} cannot be reached with {key}")

    tab_to("Skip to the content")
    page.keyboard.press("Enter")
    tab_to("Try an example")
    page.keyboard.press("Enter")
    console.settled()
    tab_to("Face 4:", "Shift+Tab")
    expect(console.cards().nth(3)).to_have_class(re.compile("lit"))
    page.keyboard.press("Enter")
    expect(console.cards().nth(3).locator(".more")).to_be_visible()
    page.keyboard.press("Space")
    expect(console.cards().nth(3).locator(".more")).to_be_hidden()
    # The radio buttons of how faces are looked for are one stop, and arrows go through them.
    page.get_by_role("radio", name="find all").focus()
    page.keyboard.press("ArrowRight")
    console.settled()
    expect(console.cards()).to_have_count(1)


def test_a_broken_file_is_explained_in_words(visit, server):
    console = visit()
    console.expected.append("422")
    status, problem = ask(server, "/v1/predict", b"no picture")
    assert status == 422
    console.give(("broken.jpg", "image/jpeg", b"no picture"))
    console.settled()
    failure = console.page.locator(".failure")
    expect(failure.get_by_role("heading")).to_have_text(problem["title"])
    expect(failure).to_contain_text(re.compile(re.escape(problem["detail"]), re.I))
    expect(console.page.locator("#news")).to_contain_text(problem["title"])
    # The person goes on with a good one.
    console.give(FACES / "happy.jpg")
    console.settled()
    expect(console.cards()).to_have_count(1)


def test_a_picture_without_faces_says_so_and_offers_a_way(visit):
    console = visit()
    console.give(("gray.bmp", "image/bmp", bitmap(160, 120)))
    console.settled()
    expect(console.page.get_by_role("heading", name="No face found")).to_be_visible()
    console.page.get_by_role("button", name="It shows one face").click()
    expect(console.cards()).to_have_count(1)
    expect(console.page.get_by_role("radio", name="find one")).to_be_checked()
    expect(console.cards().first).to_contain_text("The centred square of the picture, 120 × 120 pixels")


def bitmap(width, height):
    """A gray picture."""
    row = bytes([128, 128, 128]) * width
    row += b"\0" * (-len(row) % 4)
    header = b"BM" + (54 + len(row) * height).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    header += (40).to_bytes(4, "little") + width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return header + (1).to_bytes(2, "little") + (24).to_bytes(2, "little") + bytes(24) + row * height


def test_several_pictures_are_a_gallery_and_wait_their_turn(visit, server):
    console = visit()
    console.expected.append("422")
    under_way, most = set(), []
    page = console.page

    def begin(request):
        if "/v1/predict" in request.url:
            under_way.add(request)
            most.append(len(under_way))

    page.on("request", begin)
    page.on("requestfinished", lambda request: under_way.discard(request))
    names = ["baby.jpg", "boy.jpg", "girl.jpg", "old-man.jpg", "old-woman.jpg", "happy.jpg", "sad.jpg"]
    console.give(GROUP, *[FACES / name for name in names])
    console.settled()
    console.give(("broken.png", "image/png", b"no picture"))
    console.settled()
    assert max(most) <= 4, "a small queue"
    assert len(most) == 9
    items = page.locator("#gallery li")
    expected = [len(ask(server, "/v1/predict", path.read_bytes())[1]["faces"]) for path in (GROUP, *[FACES / n for n in names])]
    assert items.locator(".badge").all_inner_texts() == [*map(str, expected), "!"]
    items.nth(1).get_by_role("button", name="baby.jpg: 1 face").click()
    expect(page.locator("#caption")).to_contain_text("baby.jpg")
    expect(console.cards()).to_have_count(1)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#caption")).to_contain_text("boy.jpg")
    page.keyboard.press("Delete")
    expect(items).to_have_count(8)
    expect(page.locator("#caption")).to_contain_text("girl.jpg")
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("heading", name="Drop pictures here")).to_be_visible()


def test_a_busy_server_is_asked_again_when_it_says(visit):
    console = visit()
    console.expected.append("429")
    refusals = iter(range(2))
    problem = {"title": "More requests than can be served", "status": 429, "code": "overloaded", "detail": "later", "request_id": "x"}

    def busy(route):
        if next(refusals, None) is None:
            route.continue_()
        else:
            route.fulfill(status=429, headers={"retry-after": "1"}, content_type="application/problem+json", body=json.dumps(problem))

    console.page.route("**/v1/predict?*", busy)
    began = time.monotonic()
    console.give(GROUP)
    expect(console.page.locator("#results")).to_contain_text("The server is busy: asking again in 1 second.")
    console.settled()
    assert time.monotonic() - began >= 2, "it waits as long as the server says"
    expect(console.cards().first).to_be_visible()


def test_a_server_that_is_gone_is_named_and_asked_again(visit):
    console = visit()
    console.page.route("**/v1/predict?*", lambda route: route.abort())
    console.give(FACES / "happy.jpg")
    console.settled()
    expect(console.page.get_by_role("heading", name="The server cannot be reached")).to_be_visible()
    console.page.unroute("**/v1/predict?*")
    console.page.get_by_role("button", name="Try again").click()
    expect(console.cards()).to_have_count(1)
    console.errors = [error for error in console.errors if "ERR_FAILED" not in error]


def test_settings_change_what_is_asked(visit):
    console = visit()
    page = console.page
    console.give(GROUP)
    console.settled()
    faces = console.cards().count()

    def asked(change):
        with page.expect_request(lambda request: "/v1/predict" in request.url) as request:
            change()
        console.settled()
        return request.value.url.split("?")[1]

    assert asked(page.get_by_label("Landmarks").check) == "distributions=true&landmarks=true"
    expect(page.locator(".marks circle")).to_have_count(4 * faces)
    asked(page.get_by_label("Landmarks").uncheck)
    assert asked(lambda: slide(page, "0.95")) == "distributions=true&min_confidence=0.95"
    assert console.cards().count() < faces
    expect(page.locator(".slider output")).to_have_text("0.95")
    assert asked(page.get_by_role("radio", name="find one").check) == "distributions=true&detect=crop&min_confidence=0.95"
    expect(console.cards()).to_have_count(1)
    assert asked(page.get_by_role("radio", name="take the centre").check) == "distributions=true&detect=false"
    expect(page.get_by_label("Least confidence")).to_be_disabled()


def slide(page, value):
    page.get_by_label("Least confidence").fill(value)


def test_heads_that_are_switched_off_are_nowhere(browser):
    with serving("--tasks", "age,smile") as address:
        console = Console(browser, address)
        page = console.page
        expect(page.locator("#tasks")).to_have_text("Age and smile of every face.")
        console.give(GROUP)
        console.settled()
        page.get_by_role("button", name="Open all").click()
        seen = page.locator("body").inner_text() + page.content()
        evaluations = page.get_by_role("link", name="Evaluations")
        if evaluations.is_visible():
            evaluations.click()
            page.get_by_text("What is in the zip?").click()
            seen += page.content()
        for word in ("emotion", "gender", "happy", "female"):
            assert word not in seen.lower(), word
        expect(page.locator("[data-task]").first).to_have_attribute("data-task", "smile")
        console.close()


def test_pictures_can_be_pasted_and_dropped(visit):
    console = visit()
    page = console.page
    make = """async ([kind, types]) => {
      const transfer = new DataTransfer();
      for (const name of types) {
        const blob = await (await fetch('console/example.jpg')).blob();
        transfer.items.add(new File([blob], name, { type: 'image/jpeg' }));
      }
      const init = { bubbles: true, cancelable: true };
      if (kind === 'paste') document.body.dispatchEvent(new ClipboardEvent('paste', { ...init, clipboardData: transfer }));
      else {
        const over = new DragEvent('dragover', { ...init, dataTransfer: transfer });
        document.body.dispatchEvent(over);
        const seen = !document.getElementById('curtain').hidden && over.defaultPrevented;
        document.body.dispatchEvent(new DragEvent('drop', { ...init, dataTransfer: transfer }));
        return seen && document.getElementById('curtain').hidden;
      }
    }"""
    page.evaluate(make, ["paste", ["pasted.jpg"]])
    console.settled()
    expect(page.locator("#caption")).to_contain_text("pasted.jpg")
    assert page.evaluate(make, ["drop", ["one.jpg", "two.jpg"]]), "it shows where to drop, as long as there is something to"
    console.settled()
    expect(page.locator("#gallery li")).to_have_count(3)
    expect(page.locator("#caption")).to_contain_text("one.jpg")
    page.evaluate(make, ["paste", []])
    expect(page.get_by_role("alert")).to_have_text("The clipboard has no picture.")


def test_the_camera_is_looked_through_and_takes_pictures(visit):
    console = visit()
    page = console.page
    page.evaluate("""() => {
      const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      navigator.mediaDevices.getUserMedia = async (what) => (window.opened = await open(what));
    }""")
    page.get_by_role("button", name="Camera").first.click()
    expect(page.locator("#viewfinder .mark").first).to_be_visible(timeout=30_000)
    expect(page.locator("#camera-state")).to_contain_text("faces in")
    page.get_by_label("Look at faces live").uncheck()
    expect(page.locator("#viewfinder .mark")).to_have_count(0)
    page.get_by_role("button", name="Take the picture").click()
    console.settled()
    expect(page.locator("#camera")).to_be_hidden()
    assert console.cards().count() >= 5
    assert page.evaluate("window.opened.getTracks().map(({ readyState }) => readyState)") == ["ended"], "the camera is off"


def test_without_https_the_console_says_why_there_is_no_camera(visit, server):
    console = visit(at=server.replace("127.0.0.1", "facewise.test"))
    page = console.page
    expect(page.get_by_role("button", name="Camera")).to_be_disabled()
    expect(page.get_by_text("The camera needs HTTPS or localhost")).to_be_visible()
    page.get_by_role("button", name="Try an example").click()
    console.settled()
    # Nor is there a clipboard: the command is selected instead.
    page.get_by_role("button", name="Copy the same by curl").click()
    assert page.evaluate("getSelection().toString()").startswith("curl ")


def key(secret, scope):
    """A key as facewise.toml knows it."""
    return f"[[keys]]\nname = '{scope}'\nsha256 = '{hashlib.sha256(secret.encode()).hexdigest()}'\nscopes = ['{scope}']\n"


def test_a_server_with_keys_is_given_one(browser):
    with serving(settings=key("s3cret", "predict") + key("0ther", "evaluate")) as address:
        console = Console(browser, address)
        console.expected += ["401", "403"]
        page = console.page
        expect(page.get_by_label("API key")).to_be_focused()
        expect(page.locator("#server")).to_have_text("needs a key")
        console.give(GROUP)
        console.settled()
        expect(page.locator(".failure")).to_contain_text("Give a key under Settings.")

        def identify(secret):
            page.get_by_label("API key").fill(secret)
            page.get_by_label("API key").press("Enter")
            expect(page.locator("#server")).to_have_text(re.compile("face-attributes"))
            console.settled()

        identify("0ther")
        expect(page.locator(".failure")).to_contain_text("The key under Settings does not allow this.")
        identify("s3cret")
        expect(console.cards()).to_have_count(9)
        command = page.locator(".code pre").first.inner_text()
        environment = {**os.environ, "FACEWISE_KEY": "s3cret"}
        answer = subprocess.run(["bash", "-c", command.replace("curl", "curl --silent", 1)], cwd=GROUP.parent, env=environment, capture_output=True)
        assert len(json.loads(answer.stdout)["faces"]) == 9
        assert "s3cret" not in page.content()
        assert page.evaluate("localStorage.length") == 0, "the key does not outlive the tab"
        page.reload()
        expect(page.locator("#server")).to_have_text(re.compile("face-attributes"))
        console.close()


def test_colours_are_chosen_and_kept(visit):
    console = visit()
    page = console.page

    def paper():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = paper()
    button = page.get_by_role("button", name="Colours")
    button.click()
    assert paper() == light
    button.click()
    dark = paper()
    assert dark != light
    page.reload()
    assert paper() == dark
    page.get_by_role("button", name="Colours: dark").click()
    assert paper() == light, "the system's again"


# For everybody, everywhere

SCREENS = {"desktop": DESKTOP, "phone": PHONE}


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_labels_contrast_and_roles_hold(visit, screen, colours):
    console = visit(viewport=SCREENS[screen], color_scheme=colours, has_touch=screen == "phone")
    page = console.page
    console.expected.append("422")

    def check(state):
        # Colours on their way are none that anybody reads.
        page.evaluate("Promise.allSettled(document.getAnimations().filter(a => a.effect.getTiming().iterations === 1).map(a => a.finished))")
        results = axe.Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]})
        assert results.violations_count == 0, f"{state}: {results.generate_report()}"

    check("welcome")
    if screen == "phone":
        page.get_by_role("button", name="Settings").click()
    console.give(GROUP, FACES / "happy.jpg", ("broken.jpg", "image/jpeg", b"no picture"))
    console.settled()
    page.get_by_role("button", name="Open all").click()
    page.get_by_text("The answer as JSON").click()
    check("faces")
    page.locator("#gallery .choose").nth(2).click()
    check("an error")
    page.get_by_role("button", name="Camera").click()
    page.get_by_label("Look at faces live").uncheck()
    check("camera")


@pytest.mark.parametrize("viewport", [PHONE, NARROW, {"width": 768, "height": 1024}, {"width": 1024, "height": 700}], ids=lambda v: f"{v['width']}")
def test_no_screen_scrolls_sideways(visit, viewport):
    console = visit(viewport=viewport, has_touch=True, is_mobile=viewport["width"] < 600)
    page = console.page
    console.expected.append("422")

    def check():
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{wide} pixels too wide"

    check()
    console.give(GROUP, ("an-endlessly-long-name-without-a-single-space-" * 4 + ".jpg", "image/jpeg", b"no picture"))
    console.settled()
    page.get_by_role("button", name="Open all").click()
    page.get_by_text("The answer as JSON").click()
    check()
    page.locator("#gallery .choose").nth(1).click()
    check()


@pytest.mark.parametrize("screen", SCREENS)
def test_controls_are_large_enough_to_be_touched(visit, screen):
    console = visit(viewport=SCREENS[screen], has_touch=screen == "phone", is_mobile=screen == "phone")
    console.give(GROUP)
    console.settled()
    small = console.page.evaluate("""() => [...document.querySelectorAll('button:not(.mark), a, select, summary, input:not([type=radio], [hidden])')]
        .filter((node) => node.checkVisibility() && !node.matches('.skip'))
        .map((node) => [(node.closest('label') ?? node).getBoundingClientRect(), node.outerHTML.slice(0, 80)])
        .filter(([{ width, height }]) => Math.min(width, height) < 24).map(([, text]) => text)""")
    assert small == [], "smaller than 24 pixels (WCAG 2.2, 2.5.8)"


# Evaluations


@pytest.fixture(scope="session")
def labelled():
    """A set as people send it: a zip with manifest.csv and pictures."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        rows = ["path,smile,split"]
        for name in ("woman-smiling", "man-smiling", "woman-neutral", "man-neutral"):
            archive.write(FACES / f"{name}.jpg", f"{name}.jpg")
            rows.append(f"{name}.jpg,{int('smiling' in name)},test")
        archive.writestr("manifest.csv", "\n".join(rows) + "\n")
    return ("faces.zip", "application/zip", content.getvalue())


def test_an_evaluation_is_started_followed_and_removed(visit, server, labelled):
    if ask(server, "/v1/evaluations")[0] == 404:
        pytest.skip("this server has no /v1/evaluations")
    console = visit()
    page = console.page
    page.get_by_role("link", name="Evaluations").click()
    page.get_by_label("Labelled set").set_input_files({"name": labelled[0], "mimeType": labelled[1], "buffer": labelled[2]})
    page.get_by_label("Rows").fill("split=test")
    with page.expect_response(lambda response: response.request.method == "POST") as accepted:
        page.get_by_role("button", name="Evaluate").click()
    identity = accepted.value.json()["id"]
    run = page.locator(f".run[data-id='{identity}']")
    expect(run).to_have_attribute("data-status", "succeeded", timeout=60_000)
    _, report = ask(server, f"/v1/evaluations/{identity}/report.json")
    smile = report["tasks"]["smile"]
    expect(run.locator(".scores")).to_contain_text(f"{smile['accuracy'] * 100:.1f}%")
    expect(run.locator(".scores")).to_contain_text(f"{smile['n']} faces")
    with page.expect_popup() as popup:
        run.get_by_role("link", name="Report").click()
    popup.value.wait_for_load_state()
    assert popup.value.url.endswith("/report.html") and popup.value.locator("h1").count() == 1
    popup.value.close()
    results = axe.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    run.get_by_role("button", name="Delete").click()
    run.get_by_role("button", name="Delete: sure?").click()
    expect(run).to_have_count(0)
    assert ask(server, f"/v1/evaluations/{identity}")[0] == 404


def test_a_set_that_cannot_be_evaluated_is_refused_in_words(visit, server):
    if ask(server, "/v1/evaluations")[0] == 404:
        pytest.skip("this server has no /v1/evaluations")
    console = visit()
    console.expected += ["400", "415", "422"]
    page = console.page
    page.get_by_role("link", name="Evaluations").click()
    page.get_by_label("Labelled set").set_input_files({"name": "broken.zip", "mimeType": "application/zip", "buffer": b"no zip"})
    page.get_by_role("button", name="Evaluate").click()
    expect(page.locator(".starter").get_by_role("alert")).not_to_be_empty()


# Pictures of the documentation


@pytest.mark.skipif(not SCREENSHOTS, reason="written only with FACEWISE_SCREENSHOTS=docs/images")
@pytest.mark.parametrize("name, context", [
    ("console", {"viewport": {"width": 1440, "height": 900}}),
    ("console-phone", {"viewport": PHONE, "color_scheme": "dark", "device_scale_factor": 2, "is_mobile": True, "has_touch": True}),
])
def test_screenshots(visit, server, name, context):
    console = visit(at="http://localhost:8080", **context)
    page = console.page
    # The first answers of a server are slower than what follows.
    for _ in range(8):
        ask(server, "/v1/predict", GROUP.read_bytes())
    page.get_by_role("button", name="Try an example").click()
    console.settled()
    page.mouse.move(1, 1)
    expect(page.locator(".crop canvas[data-drawn]")).to_have_count(console.cards().count())
    keep(page, name)


@pytest.mark.skipif(not SCREENSHOTS, reason="written only with FACEWISE_SCREENSHOTS=docs/images")
def test_screenshot_of_a_report(browser):
    page = browser.new_page(viewport={"width": 1200, "height": 1500}, color_scheme="light")
    page.goto(REPORT.as_uri())
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    keep(page, "report")


def keep(page, name):
    from PIL import Image

    shot = Image.open(io.BytesIO(page.screenshot()))
    file = Path(SCREENSHOTS) / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    shot.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=5).save(file, optimize=True)
    assert file.stat().st_size < 200_000
