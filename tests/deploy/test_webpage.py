"""The page for a phone, used in a real browser: it sees what mnv3 predict sees, and asks nobody for anything."""

import json
import re
import shutil
import subprocess
import time
import urllib.request

import numpy as np
import pytest
import websocket
from PIL import Image

from mnv3lib import inference, store
from mnv3lib.commands import main
from mnv3lib.deploy import webpage
from mnv3lib.errors import InputError
from mnv3lib.provenance import ROOT
from mnv3lib.study import labelling

RUN = "mobilenet_v3_small_0.25"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
PHOTOGRAPHS = labelling.find_images([labelling.images_folder()])


class Tab:
    """A page of a headless Chromium at a phone's size, spoken to by the DevTools protocol."""

    def __init__(self, address: str, profile):
        quiet = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
        command = [CHROMIUM, *quiet.split(), "--remote-debugging-port=0", "--remote-allow-origins=*"]
        self.process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        told = profile / "DevToolsActivePort"
        wait(lambda: told.is_file() and "\n" in told.read_text())
        port = told.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=60) as answer:
            place = next(one for one in json.load(answer) if one["type"] == "page")["webSocketDebuggerUrl"]
        self.socket = websocket.create_connection(place, timeout=120)
        self.count, self.events = 0, []
        for domain in ("Page", "Network", "Runtime", "Log", "DOM"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=3, mobile=True)
        self.ask("Page.navigate", url=address)

    def ask(self, method: str, **parameters) -> dict:
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.count:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def value(self, expression: str):
        """What a JavaScript expression gives in the page, once it is there."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def status(self) -> str:
        return self.value("document.getElementById('status').textContent")

    def pick(self, path) -> str:
        """Choose a file as a person does; returns what the page then says."""
        self.value("document.getElementById('status').textContent = ''")
        root = self.ask("DOM.getDocument")["root"]["nodeId"]
        node = self.ask("DOM.querySelector", nodeId=root, selector="#pick")["nodeId"]
        self.ask("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
        wait(lambda: self.value("queue.then(() => document.getElementById('status').textContent)"))
        return self.status()

    def pixels(self) -> np.ndarray:
        """The scaled picture that the page shows: uint8 [size, size, 3]."""
        found = self.value("[...document.getElementById('small').getContext('2d').getImageData(0, 0, 32, 32).data]")
        return np.array(found, np.uint8).reshape(32, 32, 4)[..., :3]


def wait(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with one network, as the command writes it."""
    try:
        webpage.runtime_parts()
    except InputError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert main(["export", RUN, "--format", "html", "--out", str(path), "--data", str(path.parent)]) == 0
    return path


@pytest.fixture(scope="module")
def tab(page, tmp_path_factory):
    tab = Tab(page.as_uri(), tmp_path_factory.mktemp("profile"))
    wait(lambda: tab.value("document.readyState === 'complete' && typeof queue !== 'undefined'"))
    wait(lambda: tab.status() == "Ready.")
    yield tab
    tab.process.terminate()
    tab.process.wait(timeout=60)


def levels(pixels: np.ndarray, path) -> int:
    """How many grey levels the page's pixels are off mnv3 predict's at most."""
    expected = inference.as_pixels(inference.load_image(path)).numpy()
    return int(np.abs(pixels.astype(int) - expected).max())


@needs_browser
def test_the_page_sees_in_every_photograph_what_predict_sees(tab):
    expected = inference.predict(store.load(RUN), PHOTOGRAPHS)
    first = expected[expected["rank"] == 1].set_index("image")
    for path in PHOTOGRAPHS:
        said = tab.pick(path)
        assert levels(tab.pixels(), path) <= 1, path.name
        guess = first.loc[path.name]
        assert said.startswith(f"{path.name}. V3 Small 0.25: {guess['class']}, "), said
        percent = float(re.search(r"([\d.]+)\s%", said)[1])
        assert percent == pytest.approx(100 * guess["probability"], abs=2), path.name
    rows = tab.value("[...document.querySelectorAll('#answers li')].map(li => li.textContent)")
    named = expected[expected["image"] == PHOTOGRAPHS[-1].name]["class"]
    assert [re.sub(r"[\d.]+\s%$", "", row) for row in rows] == list(named)
    share = tab.value("(li => li.querySelector('.bar').offsetWidth / li.offsetWidth)(document.querySelector('li'))")
    assert 100 * share == pytest.approx(percent, abs=1)


@needs_browser
@pytest.mark.parametrize("shape", [(3, 2), (32, 32), (33, 700), (2000, 31)])
def test_pixels_of_any_shape_are_scaled_as_pillow_does(shape, tab, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    tab.pick(tmp_path / "noise.png")
    assert levels(tab.pixels(), tmp_path / "noise.png") <= 1


@needs_browser
def test_orientation_transparency_and_profile_are_as_predict_has_them(tab, tmp_path):
    image = Image.open(ROOT / "test_images" / "bee.jpg").convert("RGB").resize((300, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / "transparent.png")
    for name, most in (("turned.jpg", 1), ("transparent.png", 2)):
        tab.pick(tmp_path / name)
        assert levels(tab.pixels(), tmp_path / name) <= most, name


@needs_browser
def test_a_broken_image_gives_a_line_and_its_name_is_text(tab, tmp_path):
    broken = tmp_path / "<img src=x onerror=alert(1)>.png"
    broken.write_bytes((ROOT / "test_images" / "man.png").read_bytes()[:50])
    assert tab.pick(broken) == f"{broken.name} is no picture that this browser can read."
    assert tab.value("document.getElementById('seen').hidden")
    assert tab.value("document.querySelectorAll('img').length") == 0
    assert tab.pick(PHOTOGRAPHS[0]).startswith(PHOTOGRAPHS[0].name)  # and the page goes on
    assert not tab.value("document.getElementById('seen').hidden")


@needs_browser
def test_measuring_gives_a_table_a_plot_and_a_csv(tab):
    tab.value("document.getElementById('measure').focus()")
    for kind in ("keyDown", "keyUp"):  # by keyboard
        tab.ask("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    wait(lambda: tab.status() == "Measured.")
    cells = tab.value("[...document.querySelectorAll('#rows tr > *')].map(cell => cell.textContent)")
    top1 = store.load_record(RUN)["result"]["top1"]
    assert cells[0] == "V3 Small 0.25"
    assert float(cells[1]) == pytest.approx(top1, abs=0.01)
    assert 0 < float(cells[3]) <= float(cells[4])
    heading, row, _ = tab.value("document.getElementById('csv').value").split("\n")
    told = dict(zip(heading.split(","), row.split(","), strict=False))
    assert told["run"] == RUN
    assert float(told["median_ms"]) == pytest.approx(float(cells[3]), rel=0.01)
    assert told["onnxruntime_web"] == webpage.RUNTIME
    assert tab.value("document.querySelectorAll('#plot svg circle').length") == 1
    assert tab.value("document.querySelector('#plot svg title').textContent")
    assert tab.value("document.documentElement.scrollWidth") <= 390


@needs_browser
def test_the_page_connects_to_nothing_and_cannot(tab):
    asked = [one["params"]["request"]["url"] for one in tab.events if one["method"] == "Network.requestWillBeSent"]
    assert asked
    assert {address.split(":")[0] for address in asked} <= {"file", "blob", "data"}
    for attempt in ("fetch('http://127.0.0.1:9/')", "import('http://127.0.0.1:9/x.js')"):
        refused = tab.value(
            "new Promise(done => { addEventListener('securitypolicyviolation', () => done(true), { once: true }); "
            f"{attempt}.catch(() => setTimeout(() => done(false), 2000)); }})"
        )
        assert refused, attempt
    errors = [one for one in tab.events if one["method"] == "Runtime.exceptionThrown"]
    assert not errors


@needs_browser
def test_every_control_is_reached_by_keyboard_and_has_a_name(tab):
    nodes = tab.ask("Accessibility.getFullAXTree")["nodes"]
    names = {
        node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "button" and not node["ignored"]
    }
    assert {"Measure", "Copy as CSV"} <= names
    reached = []
    for _ in range(8):  # round the page, from wherever the focus is
        for kind in ("keyDown", "keyUp"):
            tab.ask("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.append(tab.value("document.activeElement.id"))
    assert {"pick", "camera", "measure"} <= set(reached)


def test_a_runtime_that_is_not_the_published_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tools = tmp_path / "tools"
    tools.mkdir()
    npm = tools / "npm"
    npm.write_text(f'#!/bin/sh\nprintf other > "$4/onnxruntime-web-{webpage.RUNTIME}.tgz"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    with pytest.raises(InputError, match="another onnxruntime-web"):
        webpage.runtime_parts()
    npm.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    with pytest.raises(InputError, match="needs a network once: no network"):
        webpage.runtime_parts()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"npm is not installed: .* Node\.js"):
        webpage.runtime_parts()
    assert not list((tmp_path / "cache").rglob("*.tgz"))
