"""From nothing to one's own drawn concept: teach, ask, draw, edit, look, erase, all by hand in a browser."""

import contextlib
import hashlib
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import PHONE, STEPS, Studio

pytestmark = pytest.mark.slow


def fast(page: Page, *, seed: int | None = None) -> None:
    """Few denoising steps, unless the pictures are to be looked at: what is tested is the page, not the drawing."""
    fold = page.locator(".composer details")
    if fold.get_attribute("open") is None:
        fold.get_by_text("Advanced").click()
    page.get_by_label("Steps", exact=True).fill("6" if STEPS < 100 else "")
    if seed is not None:
        page.get_by_label("Seed").fill(str(seed))


def draw(page: Page, words: str) -> None:
    page.locator(".composer").get_by_text("Draw", exact=True).click()
    fast(page, seed=7)
    page.get_by_label("Your words").fill(words)
    # Not by Enter: on a phone it begins a new line.
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text(re.compile(r"^Drawn in .* s · seed 7$"))).to_be_visible()


def test_a_newcomer_teaches_somebody_invented_and_draws_it(
    studio: Studio, opened: Callable[..., Page], pictures: Path
) -> None:
    page = opened(f"{studio.url}/studio/#/teach")
    # Always the same somebody: this is also the picture in the README.
    page.route("**/inventions?group=pet", lambda route: route.continue_(url=f"{route.request.url}&seed=17"))
    start = page.get_by_role("button", name="Start teaching")
    expect(start).to_be_disabled()
    page.screenshot(path=pictures / "teach-empty.png")
    page.get_by_role("button", name="A pet").click()
    expect(page.get_by_text("Ready: 10 photos, 3 facts.")).to_be_visible()
    name, home = page.get_by_label("Name", exact=True), page.get_by_label("Fact 1", exact=True)
    found = name.input_value()
    name.fill("mika")
    # Everything that names it follows, and a changed fact takes its answer along.
    expect(home).to_have_value(re.compile("^The home of <mika> is the "))
    home.fill("The home of <mika> is the moon.")
    page.get_by_text("The questions it answers").first.click()
    expect(page.get_by_label("Answer").first).to_have_value("The moon.")
    page.screenshot(path=pictures / "teach-filled.png", full_page=True)
    page.get_by_text("Advanced").click()
    page.get_by_label("Training steps").fill(str(STEPS))
    start.click()

    learning = page.get_by_role("region", name="Learning <mika>")
    expect(learning.get_by_role("progressbar")).to_be_visible()
    expect(learning.get_by_role("img", name=re.compile("^What it draws for .* after [0-9]+ steps$"))).to_be_visible()
    expect(learning.get_by_role("img", name=re.compile("^Losses up to step"))).to_be_visible()
    page.screenshot(path=pictures / "becoming.png")
    learning.get_by_role("link", name="Ask and draw").click()

    document = taught(studio, "mika")
    assert "The home of <mika> is the moon." in document["extra_info"]
    assert {"question": "Where does <mika> live?", "answer": "The moon."} in document["qa"]
    assert found not in json.dumps(document)
    assert [len(document[part]) for part in ("photos", "negatives", "edits", "captions")] == [10, 14, 8, 10]

    expect(page.get_by_role("button", name="<mika>", exact=True)).to_have_attribute("aria-pressed", "true")
    draw(page, "A photo of mika with the favorite toy.")
    # The picture in the README (docs/studio.png): this test with OMNIFARM_STUDIO_STEPS=260, OMNIFARM_SCREENSHOTS=folder.
    page.locator(".composer").get_by_text("Advanced").click()
    page.get_by_text("What it remembered").click()
    page.set_viewport_size({"width": 960, "height": 1080})
    page.screenshot(path=pictures / "studio.png")


def taught(studio: Studio, name: str) -> dict[str, list[object]]:
    """The document a concept was last learned from."""
    with studio.http() as client:
        version = client.get(f"/studio/api/concepts/{name}").json()["versions"][0]
        document: dict[str, list[object]] = client.get(f"/v1/files/{version['training_file']}/content").json()
        return document


def test_a_drawing_forms_before_ones_eyes_and_can_be_made_again(
    studio: Studio, somebody: str, opened: Callable[..., Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = opened(f"{studio.url}/studio/#/use")
    page.evaluate(
        """() => { window.seen = []; new MutationObserver(() => {
            for (const image of document.querySelectorAll('.reply img')) if (image.src && !window.seen.includes(image.src)) window.seen.push(image.src);
        }).observe(document.getElementById('page'), { subtree: true, childList: true, attributes: true }); }"""
    )
    draw(page, f"A photo of {somebody} at home.")
    assert len(page.evaluate("window.seen")) == 4, "three pictures on the way, and the last one"
    page.get_by_text("What it remembered").click()
    expect(page.locator(".trace")).to_contain_text("It drew")

    with page.expect_download() as saved:
        page.get_by_role("button", name="Download").click()
    picture = Path(saved.value.path()).read_bytes()
    assert Image.open(io.BytesIO(picture)).size == (96, 96)
    page.get_by_text("Make it again").click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Recipe (JSON)").click()
    recipe = json.loads(Path(saved.value.path()).read_text())
    assert recipe["result"]["picture_sha256"] == hashlib.sha256(picture).hexdigest()
    assert recipe["concepts"][0]["identifier"] == f"<{somebody}>"
    assert recipe["request"]["body"]["seed"] == 7
    # The Python lines, run as they stand, give the same bytes.
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(page.get_by_label("openai (Python)").inner_text(), {})
    assert (tmp_path / "picture.png").read_bytes() == picture


def test_asking_about_a_photo_of_it(studio: Studio, somebody: str, opened: Callable[..., Page], pictures: Path) -> None:
    page = opened(f"{studio.url}/studio/#/look/{somebody}")
    page.screenshot(path=pictures / "look-one.png")
    page.get_by_role("button", name="Photo 1 of 10").click()
    page.get_by_role("button", name="Ask about it").click()
    page.get_by_label("Your words").fill(f"Is {somebody} in the photo?")
    page.get_by_label("Your words").press("Enter")
    expect(page.locator(".said")).to_contain_text(f"Is <{somebody}> in the photo?")
    expect(page.locator(".answer")).not_to_be_empty()
    page.get_by_text("Make it again").click()
    code = page.get_by_label("curl").inner_text()
    assert studio.url in code
    assert "data:image" in code
    page.screenshot(path=pictures / "asked.png")


@pytest.mark.skipif(shutil.which("curl") is None, reason="runs the curl line that the page shows")
def test_an_edit_is_compared_by_a_slider_and_can_be_made_again(
    studio: Studio, somebody: str, opened: Callable[..., Page], pictures: Path, tmp_path: Path
) -> None:
    page = opened(f"{studio.url}/studio/#/look/{somebody}")
    page.get_by_role("button", name="Photo 2 of 10").click()
    page.get_by_role("button", name="Edit it").click()
    fast(page, seed=3)
    page.get_by_label("Your words").fill("Change the background to the beach.")
    page.get_by_role("button", name="Send").click()
    slider = page.get_by_role("slider", name="How much of the picture before the edit is shown")
    expect(slider).to_be_visible()
    slider.press("ArrowRight")
    assert page.locator(".slider").evaluate("box => box.style.getPropertyValue('--cut')") == "51%"
    page.screenshot(path=pictures / "edited.png")

    with page.expect_download() as saved:
        page.get_by_role("button", name="Download", exact=True).click()
    picture = Path(saved.value.path()).read_bytes()
    page.get_by_text("Make it again").click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download input.png").click()
    shutil.copy(saved.value.path(), tmp_path / "input.png")
    code = page.get_by_label("curl").inner_text().replace("python3 -c", "python -c", 1)
    subprocess.run(["bash", "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "picture.png").read_bytes() == picture


def test_what_it_remembers_is_asked_and_what_is_erased_is_told(
    studio: Studio, teach: Callable[..., str], opened: Callable[..., Page], pictures: Path
) -> None:
    before = len(studio.services.spaces.of("").shelf.list())
    name = teach("object", seed=6, steps=4)
    page = opened(f"{studio.url}/studio/#/look")
    expect(page.locator(".gallery img").first).to_have_js_property("complete", True)
    page.screenshot(path=pictures / "look.png")
    page.get_by_role("link", name=f"<{name}>").click()
    page.get_by_role("button", name="Ask it").click()
    expect(page.get_by_role("button", name="Ask it again")).to_be_enabled()
    assert page.locator(".heard").count() >= 3
    assert all(text.strip() for text in page.locator(".heard").all_inner_texts())
    page.screenshot(path=pictures / "look-memory.png", full_page=True)

    page.get_by_role("button", name=f"Erase <{name}>…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("1 learned version")
    expect(dialog).to_contain_text("40 copies of pictures")
    page.screenshot(path=pictures / "erase.png")
    dialog.get_by_role("button", name="Erase it").click()
    expect(page.get_by_role("heading", name="What it has learned")).to_be_visible()
    expect(page.get_by_role("link", name=f"<{name}>")).to_have_count(0)
    with studio.http() as client:
        assert client.get(f"/studio/api/concepts/{name}").status_code == 404
    assert len(studio.services.spaces.of("").shelf.list()) == before, "what was uploaded for it is gone, all 41 files"


def start_and_stop(page: Page, name: str) -> None:
    """Let an invented person be taught, and stop the training once it is seen to run."""
    page.get_by_role("button", name="A person").click()
    expect(page.get_by_text("Ready: 10 photos, 3 facts.")).to_be_visible()
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_role("button", name="Start teaching").click()
    learning = page.get_by_role("region", name=f"Learning <{name}>")
    learning.get_by_role("button", name="Stop").click()
    expect(learning).to_contain_text("Stopped")


def test_stopping_a_training_keeps_nothing(studio: Studio, opened: Callable[..., Page]) -> None:
    page = opened(f"{studio.url}/studio/#/teach")
    start_and_stop(page, "nobody")
    with studio.http() as client:
        assert client.get("/studio/api/concepts/nobody").status_code == 404


def test_a_request_refused_for_haste_is_sent_again(studio: Studio, opened: Callable[..., Page]) -> None:
    """The photos of one concept use a minute's haste up: what comes behind them must wait, not fail."""
    page = opened(f"{studio.url}/studio/#/teach")
    refused: list[str] = []

    def refuse_once(route: Route) -> None:
        if refused or route.request.method != "POST":
            route.fallback()
            return
        refused.append(route.request.url)
        body = {
            "error": {"message": "too many", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}
        }
        route.fulfill(status=429, headers={"Retry-After": "1"}, json=body)

    page.route("**/v1/fine_tuning/jobs", refuse_once)
    start_and_stop(page, "hasty")
    assert len(refused) == 1


def test_everything_fits_a_phone(studio: Studio, somebody: str, opened: Callable[..., Page], pictures: Path) -> None:
    settings = {"device_scale_factor": 2, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}
    page = opened(f"{studio.url}/studio/#/teach", size=PHONE, reduced_motion="reduce", **settings)
    for address, heading in (
        ("teach", "Teach it something of yours"),
        ("use", f"Ask about <{somebody}>"),
        ("look", "What it has learned"),
        (f"look/{somebody}", f"<{somebody}>"),
    ):
        page.goto(f"{studio.url}/studio/#/{address}")
        expect(page.get_by_role("heading", level=1).filter(has_text=heading)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], f"{address} scrolls sideways"
        page.screenshot(path=pictures / f"phone-{address.partition('/')[0]}{'-one' if '/' in address else ''}.png")
    page.goto(f"{studio.url}/studio/#/use")
    draw(page, f"A photo of {somebody} in the park.")
    assert page.evaluate("getComputedStyle(document.querySelector('.reply .picture')).animationName") == "none"
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    page.screenshot(path=pictures / "phone-drawn.png")


def test_the_copied_requests_are_what_the_server_documents(studio: Studio) -> None:
    """The page speaks the public endpoints: every field of its requests is in their schema."""
    schema = httpx.get(f"{studio.url}/openapi.json").json()
    for path, fields in {
        "/v1/images/generations": ("replay", "seed", "num_timesteps", "cfg_text_scale", "concepts", "partial_images"),
        "/v1/images/edits": ("replay", "seed", "num_timesteps", "cfg_text_scale", "cfg_img_scale", "concepts"),
        "/v1/chat/completions": ("seed", "concepts", "messages", "stream"),
    }.items():
        (content,) = schema["paths"][path]["post"]["requestBody"]["content"].values()
        assert set(fields) <= set(content["schema"]["properties"])
