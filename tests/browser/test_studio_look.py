"""Looking at what was learned: where an identifier looks in a picture, and how well it does on the benchmark."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from omnifarm.cli import bench_run
from omnifarm.cli.bench_settings import plan_of, scoring_of
from omnifarm.cli.bench_work import LocalWork
from tests.browser.conftest import PHONE, Studio

pytestmark = pytest.mark.slow
DARKNESS = """canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]
    .filter((_, index) => index % 4 === 3)"""


@pytest.fixture(scope="module")
def run(studio: Studio) -> str:
    """Name of a benchmark run in the studio's store: the bare backbone, one concept, nothing learned."""
    plan = plan_of(
        data="miniature:1", quick=True, concepts=1, images=1, variants="none", baselines="plain", name="bare"
    )
    prepared = bench_run.prepare(plan, store_url=studio.services.settings.store)
    bench_run.carry_out(prepared, LocalWork(workers=1))
    bench_run.score(prepared, scoring_of())
    return plan.run


def test_where_it_looks_is_laid_over_a_photo(
    studio: Studio, somebody: str, opened: Callable[..., Page], pictures: Path
) -> None:
    page = opened(f"{studio.url}/studio/#/look/{somebody}")
    photo = page.get_by_role("button", name="Photo 3 of 10")
    photo.click()
    expect(photo).to_have_attribute("aria-pressed", "true")
    told = page.get_by_text(
        re.compile(rf"^The brighter a place, the more <{somebody}> looks at it .* most of all at the ")
    )
    expect(told).to_be_visible()
    veil = page.locator(".where canvas")
    first = veil.evaluate(DARKNESS)
    assert min(first) == 0, "the place it looks at most is not darkened"
    assert max(first) > 200, "the place it looks at least is"
    page.screenshot(path=pictures / "looking.png")
    # Another picture has another map, and is not sent anywhere but to be looked at.
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((80, 64)).convert("RGB").save(buffer, format="PNG")
    another = {"name": "mine.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    page.locator(".one input[type=file]").set_input_files(another)
    expect(page.get_by_role("img", name="mine.png")).to_be_visible()
    expect(photo).to_have_attribute("aria-pressed", "false")
    expect(told).to_be_visible()
    assert veil.evaluate(DARKNESS) != first
    with studio.http() as client:
        assert "mine.png" not in [file["filename"] for file in client.get("/v1/files").json()["data"]]


def test_an_answer_about_a_photo_shows_where_it_looked(
    studio: Studio, somebody: str, opened: Callable[..., Page], pictures: Path
) -> None:
    page = opened(f"{studio.url}/studio/#/look/{somebody}")
    page.get_by_role("button", name="Photo 1 of 10").click()
    page.get_by_role("button", name="Ask about it").click()
    page.get_by_label("Your words").fill(f"Is {somebody} in the photo?")
    page.get_by_label("Your words").press("Enter")
    expect(page.locator(".answer")).not_to_be_empty()
    expect(page.locator(".where")).to_have_count(0)
    page.get_by_text(f"Where <{somebody}> looks").click()
    expect(page.locator(".where canvas")).to_be_visible()
    page.screenshot(path=pictures / "asked-looking.png")


def test_a_benchmark_run_is_shown_and_saved(
    studio: Studio, run: str, opened: Callable[..., Page], pictures: Path
) -> None:
    page = opened(f"{studio.url}/studio/#/look")
    page.get_by_role("link", name=run, exact=True).click()
    expect(page.get_by_role("heading", name="How well it does", level=1)).to_be_visible()
    report = json.loads(Path(studio.services.settings.store, "benchmark", run, "report.json").read_text())
    exact = report["cells"]["plain"]["world_vqa"]["value"]
    table = page.get_by_role("region", name="Exact, on the drawn world")
    title = report["rows"][0]["title"]
    expect(table.get_by_role("row").filter(has=page.get_by_role("rowheader", name=title))).to_contain_text(
        f"{exact:.3f}"
    )
    expect(page.get_by_text(f"{report['num_items']} items")).to_be_visible()
    expect(page.get_by_role("link", name="Look", exact=True).first).to_have_attribute("aria-current", "page")
    page.screenshot(path=pictures / "scores.png", full_page=True)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save the whole report").click()
    assert saved.value.suggested_filename == f"{run}.html"
    whole = Path(saved.value.path()).read_bytes()
    assert whole == Path(studio.services.settings.store, "benchmark", run, "report.html").read_bytes()
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.screenshot(path=pictures / "phone-scores.png")


def test_without_a_benchmark_the_page_says_how_to_run_one(
    start: Callable[..., Studio], opened: Callable[..., Page]
) -> None:
    empty = start()
    page = opened(f"{empty.url}/studio/#/look")
    command = page.get_by_label("Command")
    expect(command).to_have_text(re.compile(r"^omnifarm bench run .* --quick --store \S+$"))
    page.goto(f"{empty.url}/studio/#/scores/nothing")
    expect(page.get_by_role("alert")).to_contain_text("not there any more")
