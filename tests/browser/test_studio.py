"""From nothing to one's own drawn concept: teach, ask, draw, edit, look, delete, all by hand in a browser."""

from pathlib import Path
from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.browser.conftest import Studio


def test_a_newcomer_teaches_an_invented_pet(studio: Studio, opened: Callable[..., Page], pictures: Path) -> None:
    page = opened(f"{studio.url}/studio/")
    expect(page.get_by_role("heading", level=1)).to_have_text("Teach it something of yours")
    page.screenshot(path=pictures / "teach-empty.png", full_page=True)
    page.get_by_role("button", name="A pet").click()
    expect(page.get_by_text("Ready: 10 photos, 3 facts.")).to_be_visible()
    page.screenshot(path=pictures / "teach-filled.png", full_page=True)
    page.get_by_text("Advanced").click()
    page.get_by_label("Training steps").fill("40")
    page.get_by_role("button", name="Start teaching").click()
    expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.locator(".strip li").first).to_be_visible()
    page.screenshot(path=pictures / "becoming.png", full_page=True)
    page.get_by_role("link", name="Ask and draw it").click()
    page.screenshot(path=pictures / "use-empty.png", full_page=True)
