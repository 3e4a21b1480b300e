"""The page at /ui in a real Chromium, against real services."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from serving.contract.formats.image_header import FORMATS, IMAGE_EXTENSIONS
from tests.support.browser import ARGUMENTS, CHROMIUM
from tests.support.forged_models import rewritten
from tests.support.paths import ROOT
from tests.support.pictures import COLOURS, picture
from tests.support.server import serving
from training.options.config import TrainConfig
from training.train import train

# Five seconds, if nothing is said; a page without a model tries again every five.
expect.set_options(timeout=30_000)
# Chromium reports every reply that is not 2xx there; what the page makes of such replies is asserted.
FAILED_LOAD = "Failed to load resource: the server responded with a status of"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; `apt-get install chromium` brings it"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, address: str, **options: Any) -> Iterator[Page]:
    """A new page at /ui; at the end nothing was asked of another host and nothing went wrong in the console."""
    context: BrowserContext = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
    page = context.new_page()
    page.set_default_timeout(30_000)
    hosts, complaints = set(), []
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(f"{address}/ui")
    yield page
    context.close()
    assert hosts - {""} == {urlsplit(address).netloc}, "blob: and data: have no host"
    assert [text for text in complaints if not text.startswith(FAILED_LOAD)] == []


@pytest.fixture
def page(browser: Browser, server: str) -> Iterator[Page]:
    with opened(browser, server) as page:
        expect(page.locator("#card")).to_be_visible()
        yield page


@pytest.fixture
def images(tmp_path: Path, png: Callable[..., bytes]) -> dict[str, Path]:
    """A picture file of each class, and a text file."""
    paths = {label: tmp_path / f"{label}.png" for label in COLOURS}
    for label, path in paths.items():
        path.write_bytes(png(picture(label)))
    paths["text"] = tmp_path / "notes.txt"
    paths["text"].write_text("no image")
    return paths


def is_answered(page: Page, server: str, image: Path) -> None:
    """The page shows the prediction of /predict for the image, and explains it."""
    answer = httpx.post(f"{server}/predict", files={"image": image.read_bytes()}).json()
    expect(page.locator("#label")).to_have_text(answer["label"])
    expect(page.locator("#confidence")).to_have_text(shown(answer["confidence"]))
    rows = page.locator("#classes li")
    expect(rows).to_have_count(len(answer["probabilities"]))
    for row, (label, probability) in zip(rows.all(), answer["probabilities"].items(), strict=True):
        expect(row.locator(".name")).to_have_text(label)
        expect(row.locator(".share")).to_have_text(shown(probability))
        boxes = [row.locator(part).bounding_box() for part in (".bar span", ".bar")]
        bar, whole = (box["width"] for box in boxes if box is not None)
        assert bar == pytest.approx(max(2, probability * whole), abs=1.5)
    expect(page.locator("#abstained")).to_be_hidden()
    expect(page.locator("#explanation")).to_be_visible()
    assert page.evaluate("document.getElementById('heat').naturalWidth") == 128


def shown(probability: float) -> str:
    if probability > 0.999:
        return "> 99.9 %"
    return "< 0.1 %" if probability < 0.001 else f"{probability * 100:.1f} %"


def test_the_page_names_the_formats_that_are_read_and_those_of_the_data(page: Page) -> None:
    hint = page.locator(".card > p.hint", has_text="sent to this service only")
    expect(hint).to_contain_text(f"{FORMATS}. It is sent")
    expect(hint).to_contain_text("This model was trained on JPEG, PNG.")
    assert page.locator("#file").get_attribute("accept") == ",".join(IMAGE_EXTENSIONS)


@pytest.mark.parametrize(
    ("labels", "hint"),
    [([], "none of the classes is likely"), (["blue"], "In 90 % of images"), (None, "This model has none")],
)
def test_a_prediction_set_is_explained(
    page: Page, server: str, images: dict[str, Path], labels: list[str] | None, hint: str
) -> None:
    answer = httpx.post(f"{server}/predict", files={"image": images["blue"].read_bytes()}).raise_for_status().json()
    page.route("**/predict*", lambda route: route.fulfill(json=answer | {"prediction_set": labels}))
    page.set_input_files("#file", images["blue"])
    expect(page.locator("#set-hint")).to_contain_text(hint)


def test_a_chosen_image_gets_the_services_answer(page: Page, server: str, images: dict[str, Path]) -> None:
    for label in COLOURS:
        page.set_input_files("#file", images[label])
        expect(page.locator("#label")).to_have_text(label)
        is_answered(page, server, images[label])
    assert "green leaf" in (page.locator("#status").text_content() or ""), "said aloud"
    expect(page.locator("#fitted-size")).to_have_text("24 \u00d7 24 px")
    pressed = page.locator("#classes button[aria-pressed=true]")
    expect(pressed).to_contain_text("green leaf")
    page.locator("#classes button", has_text="blue").click()
    expect(page.locator("#explained")).to_contain_text("blue")
    expect(pressed).to_contain_text("blue")
    page.locator("#strength").fill("25")
    expect(page.locator("#heat")).to_have_css("opacity", "0.25")


def test_regions_that_all_speak_against_the_label_are_reported_so(
    page: Page, server: str, images: dict[str, Path]
) -> None:
    answer = httpx.post(f"{server}/explain", files={"image": images["blue"].read_bytes()}).raise_for_status().json()
    page.route("**/explain*", lambda route: route.fulfill(json=answer | {"drops": [[-0.031, 0.004]]}))
    page.set_input_files("#file", images["blue"])
    expect(page.locator("#explained")).to_have_text(
        "No single region carries blue: covering any of 2 takes less than a point from its probability, "
        "and adds up to 3.1 points to it."
    )


def test_the_last_of_several_images_counts(page: Page, server: str, images: dict[str, Path]) -> None:
    for label in ("blue", "Red rash", "blue", "green leaf"):
        page.set_input_files("#file", images[label])
    is_answered(page, server, images["green leaf"])
    expect(page.locator("#explained")).to_contain_text("green leaf")
    page.wait_for_load_state("networkidle")
    expect(page.locator("#label")).to_have_text("green leaf")
    expect(page.locator("#explained")).to_contain_text("green leaf")


@pytest.mark.long
def test_many_classes_of_any_name_are_ranked_and_folded(
    browser: Browser, tmp_path: Path, png: Callable[..., bytes]
) -> None:
    """Names that are numbers, which an object of the language would put first, and one that is markup."""
    rng = np.random.default_rng(0)
    names = [*(str(number) for number in range(11)), "<img src=x onerror=document.body.remove()>"]
    for name in names:
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(12):
            (tmp_path / "images" / name / f"{number}.png").write_bytes(png(rng.integers(0, 256, (8, 8, 3), np.uint8)))
    config = TrainConfig(
        data=tmp_path / "images", out=tmp_path / "runs", model="mlp", hidden=(8,), image_size=8, epochs=1, workers=0
    )
    model = train(config) / "model.onnx"
    image = tmp_path / "images" / "3" / "0.png"
    with serving(model, BENTOML_HOME=str(tmp_path / "home")) as address, opened(browser, address) as page:
        page.set_input_files("#file", image)
        expect(page.locator("#classes li:visible")).to_have_count(10)
        page.get_by_role("button", name="Show all 12 classes").click()
        is_answered(page, address, image)
        expect(page.locator("#card-classes li")).to_have_text(httpx.get(f"{address}/model").json()["classes"])


def test_an_image_is_pasted(browser: Browser, server: str, images: dict[str, Path]) -> None:
    with opened(browser, server, permissions=["clipboard-read", "clipboard-write"]) as page:
        copy = """async (bytes) => navigator.clipboard.write(
            [new ClipboardItem({ "image/png": new Blob([new Uint8Array(bytes)], { type: "image/png" }) })])"""
        page.evaluate(copy, list(images["blue"].read_bytes()))
        page.keyboard.press("Control+V")
        expect(page.locator("#label")).to_have_text("blue")
        page.evaluate("navigator.clipboard.writeText('words')")
        page.keyboard.press("Control+V")
        expect(page.locator("#alert")).to_contain_text("no file")


def test_an_image_is_dropped(page: Page, server: str, images: dict[str, Path]) -> None:
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(images["Red rash"])], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 900, "y": 300, "data": data})
        if kind == "dragOver":
            expect(page.locator("#dropping")).to_be_visible()
    is_answered(page, server, images["Red rash"])
    expect(page.locator("#dropping")).to_be_hidden()


def test_a_refusal_shows_the_services_message(page: Page, server: str, images: dict[str, Path]) -> None:
    refused = httpx.post(f"{server}/predict", files={"image": images["text"].read_bytes()}).json()["error"]
    page.set_input_files("#file", images["text"])
    expect(page.get_by_role("alert")).to_be_visible()
    assert refused["message"].lower() in (page.locator("#alert-text").text_content() or "").lower()
    expect(page.locator("#answer")).to_be_hidden()
    page.set_input_files("#file", images["blue"])
    expect(page.locator("#label")).to_have_text("blue")
    expect(page.locator("#alert")).to_be_hidden()


def test_without_a_network_the_page_says_so(browser: Browser, server: str, images: dict[str, Path]) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{server}/ui")
    expect(page.locator("#card")).to_be_visible()
    context.set_offline(True)
    page.set_input_files("#file", images["blue"])
    expect(page.locator("#alert")).to_contain_text("No connection")
    context.close()


def test_by_keyboard_alone(page: Page, server: str, images: dict[str, Path]) -> None:
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "file"
        outline = "getComputedStyle(document.querySelector('.button:focus-within')).outlineStyle"
        assert page.evaluate(outline) == "solid", "the focus is visible"
        page.keyboard.press("Enter")
    chooser.value.set_files(images["green leaf"])
    is_answered(page, server, images["green leaf"])
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.label") == "blue":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#explained")).to_contain_text("blue")


def test_the_card_says_what_the_model_is(page: Page, server: str) -> None:
    reply = httpx.get(f"{server}/model")
    card, text = reply.json(), page.locator("#card").inner_text()
    assert "not a medical device" in text
    digest = reply.headers["etag"].strip('"')
    for fact in (
        card["name"],
        card["version"],
        digest,
        "24 \u00d7 24 px",
        card["provenance"]["data_digest"],
        *card["classes"],
    ):
        assert fact in text
    accuracy = card["scores"]["accuracy"]
    assert f"{accuracy['value']:.3f}" in text
    assert f"{accuracy['interval'][0]:.3f} to {accuracy['interval'][1]:.3f}" in text


def test_nothing_that_is_not_the_pages_own_may_run(browser: Browser, server: str) -> None:
    policy = httpx.get(f"{server}/ui").headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    page = browser.new_page()
    page.goto(f"{server}/ui")
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.evaluate(
        """async (elsewhere) => {
        for (const tag of ["script", "style"]) {
            const added = document.createElement(tag);
            added.textContent = tag === "script" ? "window.ran = true" : "body { opacity: 0 }";
            document.body.append(added);
        }
        await fetch(elsewhere).catch(() => {});
    }""",
        "http://127.0.0.2:1/",
    )
    assert page.evaluate("window.ran") is None
    expect(page.locator("body")).to_have_css("opacity", "1")
    for directive in ("script-src", "style-src", "connect-src"):
        assert any("Content Security Policy" in text and directive in text for text in refused), directive
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_accessible(
    browser: Browser, server: str, images: dict[str, Path], width: int, scheme: str
) -> None:
    with opened(browser, server, color_scheme=scheme, reduced_motion="reduce", has_touch=width == 390) as page:
        page.set_viewport_size({"width": width, "height": 844})
        expect(page.locator("#card")).to_be_visible()
        expect(page.locator("#photograph")).to_be_visible(visible=width == 390)
        assert page.get_attribute("#camera", "capture") == "environment"
        is_accessible(page)
        page.set_input_files("#file", images["blue"])
        expect(page.locator("#explanation")).to_be_visible()
        expect(page.locator("#classes .bar span").first).to_have_css("transition-property", "none")
        is_accessible(page)
        page.set_input_files("#file", images["text"])
        expect(page.locator("#alert")).to_be_visible()
        is_accessible(page)
        page.evaluate(
            "document.querySelector('label[for=token]').remove(); document.getElementById('access').hidden = false"
        )
        assert Axe().run(page).violations_count > 0, "axe-core detects a field without a name"
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
        assert (sum(ground) > 600) == (scheme == "light")


def is_accessible(page: Page) -> None:
    """axe-core finds nothing, and nothing is wider than the window."""
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_before_there_is_a_model_the_page_waits_and_then_answers(
    browser: Browser, run: Path, tmp_path: Path, images: dict[str, Path]
) -> None:
    model = tmp_path / "model.onnx"
    environment: dict[str, Any] = {"BENTOML_HOME": str(tmp_path / "home"), "TWINLENS_ABSTAIN_BELOW": "0.999999"}
    with serving(model, until="livez", **environment) as address, opened(browser, address) as page:
        expect(page.locator("#alert")).to_contain_text("not ready")
        expect(page.locator("#alert")).to_contain_text("no model yet")
        page.set_input_files("#file", images["blue"])
        expect(page.locator("#status")).to_have_text("No answer.")
        shutil.copy(run / "model.onnx", tmp_path / "written.onnx")
        (tmp_path / "written.onnx").rename(model)
        expect(page.locator("#card")).to_be_visible()
        expect(page.locator("#alert")).to_be_hidden()
        page.set_input_files("#file", images["blue"])
        expect(page.locator("#label")).to_have_text("blue")
        expect(page.locator("#abstained")).to_contain_text("For a person to decide")
        assert "for a person to decide" in (page.locator("#status").text_content() or "")


def test_decisions_are_shown_with_their_thresholds(
    browser: Browser, server: str, run: Path, tmp_path: Path, images: dict[str, Path]
) -> None:
    points = [
        {"label": "blue", "score": "sensitivity", "target": 0.95, "threshold": 0.125},
        {"label": "Red rash", "score": "specificity", "target": 0.9, "threshold": 0.5},
    ]
    model = rewritten(
        run / "model.onnx", tmp_path / "model.onnx", lambda graph, card: card | {"operating_points": points}
    )
    with serving(model, BENTOML_HOME=str(tmp_path / "home")) as address, opened(browser, address) as page:
        expect(page.locator("#card-decisions li")).to_have_text(
            [
                "blue from 12.5 %: sensitivity 0.95 on validation images",
                "Red rash from 50 %: specificity 0.9 on validation images",
            ]
        )
        page.set_input_files("#file", images["blue"])
        expect(page.locator("#decisions li")).to_have_text(
            ["blue: yes its probability is at least 12.5 %", "Red rash: no its probability is below 50 %"]
        )
        is_accessible(page)
    with opened(browser, server) as page:
        page.set_input_files("#file", images["blue"])
        expect(page.locator("#label")).to_have_text("blue")
        expect(page.locator("#decided")).to_be_hidden()


def test_the_answer_of_the_least_cost_and_similar_training_images_are_shown(
    browser: Browser, server: str, aware: Path, pictures: Path, tmp_path: Path, images: dict[str, Path]
) -> None:
    costs = {
        "actions": ["across", "down", "slanted", "refer"],
        "matrix": [[0, 9, 9, 2e-4], [9, 0, 9, 2e-4], [9, 9, 0, 2e-4]],
    }
    said = {"costs": costs, "statement": "Its scores are those of other models."}
    model = rewritten(aware / "model.onnx", tmp_path / "model.onnx", lambda graph, card: card | said)
    shutil.copy(aware / "model.neighbours.npz", tmp_path)
    environment: dict[str, Any] = {
        "BENTOML_HOME": str(tmp_path / "home"),
        "TWINLENS_SHOW_TRAINING": "1",
        "TWINLENS_TRAINING_DATA": str(pictures),
    }
    image = pictures / "down" / "1.png"
    with serving(model, **environment) as address, opened(browser, address) as page:
        expect(page.locator("#card-statement")).to_have_text("Its scores are those of other models.")
        answer = httpx.post(f"{address}/predict", files={"image": image.read_bytes()}).json()
        found = httpx.post(f"{address}/similar?k=6", files={"image": image.read_bytes()}).json()["similar"]
        page.set_input_files("#file", image)
        expect(page.locator("#least-cost")).to_have_text(answer["least_cost"])
        expect(page.locator("#cost-hint")).to_contain_text("its expected cost is ")
        page.get_by_role("button", name="Show the nearest").click()
        expect(page.locator("#similar .name")).to_have_text([one["label"] for one in found])
        expect(page.locator("#similar li").first).to_contain_text(found[0]["path"])
        expect(page.locator("#similar img")).to_have_count(6)
        assert page.evaluate("document.querySelector('#similar img').naturalWidth") == 16
        is_accessible(page)
    with opened(browser, server) as page:
        page.set_input_files("#file", images["blue"])
        expect(page.locator("#explanation")).to_be_visible()
        for place in ("#near", "#costs", "#card-statement"):
            expect(page.locator(place)).to_be_hidden()


def test_after_another_model_has_taken_over_its_own_costs_are_shown(
    browser: Browser, run: Path, tmp_path: Path, images: dict[str, Path]
) -> None:
    """The page has the costs of the model before, in which the answer's action does not exist."""

    def answering(action: str) -> Path:
        actions, rows = ["Red rash", "blue", "green leaf", action], [[0, 9, 9, 2e-4], [9, 0, 9, 2e-4], [9, 9, 0, 2e-4]]
        costs = {"actions": actions, "matrix": rows}
        return rewritten(
            run / "model.onnx", tmp_path / "new.onnx", lambda graph, card: card | {"costs": costs, "version": action}
        )

    model = answering("refer").rename(tmp_path / "model.onnx")
    environment: dict[str, Any] = {"BENTOML_HOME": str(tmp_path / "home"), "TWINLENS_RELOAD_S": "0.1"}
    with serving(model, **environment) as address, opened(browser, address) as page:
        expect(page.locator("#model")).to_contain_text("refer")
        answering("ask").rename(model)
        deadline = time.monotonic() + 30
        while httpx.get(f"{address}/model").json()["version"] != "ask":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        page.set_input_files("#file", images["blue"])
        expect(page.locator("#least-cost")).to_have_text("ask")
        expect(page.locator("#cost-hint")).to_contain_text("its expected cost is 0.0002")
        expect(page.locator("#model")).to_contain_text("ask")


def test_a_browser_is_led_to_the_page(browser: Browser, server: str) -> None:
    page = browser.new_page()
    page.goto(server)
    assert page.url == f"{server}/ui"
    page.close()


def test_the_page_is_one_document_that_names_no_host() -> None:
    for kind in ("html", "css", "js"):
        text = (ROOT / "serving" / "api" / "static" / f"page.{kind}").read_text()
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text


def test_the_page_asks_for_a_token_and_stores_it_in_the_tab(
    browser: Browser, run: Path, tmp_path: Path, images: dict[str, Path]
) -> None:
    (tmp_path / "tokens").write_text("right\n")
    environment: dict[str, Any] = {
        "BENTOML_HOME": str(tmp_path / "home"),
        "TWINLENS_TOKEN_FILE": str(tmp_path / "tokens"),
    }
    with serving(run / "model.onnx", **environment) as address, opened(browser, address) as page:
        expect(page.locator("#access")).to_be_visible()
        expect(page.locator("#card")).to_be_hidden()
        page.get_by_label("Token").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#alert")).to_contain_text("token")
        page.get_by_label("Token").fill("right")
        page.keyboard.press("Enter")
        expect(page.locator("#card")).to_be_visible()
        expect(page.locator("#alert")).to_be_hidden()
        page.set_input_files("#file", images["blue"])
        expect(page.locator("#label")).to_have_text("blue")
        expect(page.locator("#explanation")).to_be_visible()
        assert page.evaluate("[localStorage.length, document.cookie, sessionStorage.length]") == [0, "", 1]
        page.get_by_role("button", name="Forget the token").click()
        page.set_input_files("#file", images["blue"])
        expect(page.locator("#status")).to_have_text("No answer.")
        page.get_by_label("Token").fill("right")
        page.keyboard.press("Enter")
        expect(page.locator("#label")).to_have_text("blue")
