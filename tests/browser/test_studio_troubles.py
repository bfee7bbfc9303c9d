"""When things go wrong: bad photographs, a server that is away or refuses, keys; and what the page may load."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from serve.routes.studio import FOLDER
from tests.browser.conftest import CHECKPOINT, Studio

FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())


def picture(colour: str, *, size: tuple[int, int] = (64, 64), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format=kind)
    return buffer.getvalue()


def test_each_photo_says_at_once_what_is_wrong_with_it(
    studio: Studio, opened: Callable[..., Page], pictures: Path
) -> None:
    page = opened(f"{studio.url}/studio/#/teach")
    given = {
        "good.png": picture("teal"),
        "again.png": picture("teal"),
        "phone.heic": b"\x00\x00\x00\x18ftypheic" + bytes(40),
        "tiny.png": picture("red", size=(9, 9)),
        "ribbon.png": picture("red", size=(600, 20)),
        "broken.jpg": picture("blue", kind="JPEG")[:40],
        "empty.png": b"",
    }
    files = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in given.items()]
    page.locator("input[type=file]").first.set_input_files(files)
    shown = page.get_by_role("list", name="Drop photos here, or choose them").get_by_role("listitem")
    for name, words in {
        "again.png": "The same picture is here already.",
        "phone.heic": "This is a HEIC. Save it as JPEG, PNG or WebP.",
        "tiny.png": "Too small: 9×9",
        "ribbon.png": "Too narrow: 600×20",
        "broken.jpg": "The file is damaged.",
        "empty.png": "The file is empty.",
    }.items():
        expect(shown.filter(has=page.get_by_role("button", name=f"Remove {name}"))).to_contain_text(words)
    expect(page.locator(".photos li.refused")).to_have_count(6)
    page.screenshot(path=pictures / "photos-refused.png")
    # The good one was sent at once, and goes from the server when it is taken out.
    with studio.http() as client:
        names = lambda: [file["filename"] for file in client.get("/v1/files").json()["data"]]  # noqa: E731
        assert "good.png" in names()
        with page.expect_response(lambda reply: reply.request.method == "DELETE"):
            page.get_by_role("button", name="Remove good.png").click()
        assert "good.png" not in names()


def test_a_server_that_is_away_costs_nobody_their_words(
    studio: Studio, somebody: str, opened: Callable[..., Page], pictures: Path
) -> None:
    page = opened(f"{studio.url}/studio/#/use")
    expect(page.get_by_role("button", name=f"<{somebody}>", exact=True)).to_be_visible()
    page.context.set_offline(True)
    page.get_by_label("Your words").fill(f"Where does {somebody} live?")
    page.get_by_label("Your words").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    expect(page.locator("#notice")).to_contain_text("Trying again")
    page.screenshot(path=pictures / "offline.png")
    page.context.set_offline(False)
    expect(page.locator("#notice")).to_have_text("The server is back.")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer")).not_to_be_empty()


def test_a_slow_server_is_admitted_and_can_be_left(studio: Studio, somebody: str, opened: Callable[..., Page]) -> None:
    page = opened(f"{studio.url}/studio/#/use")
    held: list[Route] = []
    page.route("**/v1/chat/completions", lambda route: held.append(route))
    page.get_by_label("Your words").fill(f"Where does {somebody} live?")
    page.get_by_label("Your words").press("Enter")
    expect(page.get_by_text("Still working.")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert len(held) == 1


def test_a_refusal_says_what_to_do(studio: Studio, somebody: str, opened: Callable[..., Page]) -> None:
    page = opened(f"{studio.url}/studio/#/use")
    page.locator(".composer").get_by_text("Draw", exact=True).click()
    page.locator(".composer").get_by_text("Advanced").click()
    page.get_by_label("Guidance by words").fill("99")
    page.get_by_label("Your words").fill(f"A photo of {somebody}.")
    page.get_by_label("Your words").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Guidance by words: Input should be less than")


@pytest.mark.slow
def test_what_could_not_be_erased_is_told(
    studio: Studio, teach: Callable[..., str], opened: Callable[..., Page], pictures: Path
) -> None:
    name = teach("object", seed=9, steps=1)
    page = opened(f"{studio.url}/studio/#/look/{name}")
    lost: list[str] = []

    def lose_two(route: Route) -> None:
        """Two requests never reach the server."""
        if len(lost) < 2:
            lost.append(route.request.url.rpartition("/")[2])
            route.abort()
        else:
            route.continue_()

    page.route(
        "**/v1/files/file-*", lambda route: lose_two(route) if route.request.method == "DELETE" else route.continue_()
    )
    page.get_by_role("button", name=f"Erase <{name}>…").click()
    page.get_by_role("dialog").get_by_role("button", name="Erase it").click()
    expect(page.get_by_text(f"<{name}> is erased, 2 uploads not")).to_be_visible()
    page.screenshot(path=pictures / "not-erased.png")
    with studio.http() as client:
        assert client.get(f"/studio/api/concepts/{name}").status_code == 404
    assert sorted(lost) == sorted(
        file.file_id for file in studio.services.spaces.of("").shelf.list() if file.file_id in lost
    )


@pytest.mark.slow
def test_a_training_that_fails_says_why(
    start: Callable[..., Studio], opened: Callable[..., Page], pictures: Path
) -> None:
    wild = start(recipe=json.dumps({"warmup_steps": 0, "learning_rate": 1e30, "steps": 6}))
    page = opened(f"{wild.url}/studio/#/teach")
    page.get_by_role("button", name="An object").click()
    expect(page.get_by_text(re.compile("^Ready: 10 photos"))).to_be_visible()
    name = page.get_by_label("Name", exact=True).input_value()
    page.get_by_role("button", name="Start teaching").click()
    learning = page.get_by_role("region", name=f"Learning <{name}>")
    expect(learning.get_by_role("alert")).to_contain_text(
        re.compile("That did not work.*The soft tokens grew .*lower the learning rate", re.DOTALL)
    )
    expect(learning).to_contain_text("what you uploaded is still there")
    page.screenshot(path=pictures / "failed.png")
    learning.get_by_role("button", name="Close").click()
    expect(learning).to_have_count(0)
    with wild.http() as client:
        assert client.get(f"/studio/api/concepts/{name}").status_code == 404


def test_with_keys_a_tenant_sees_its_own(
    start: Callable[..., Studio], opened: Callable[..., Page], pictures: Path
) -> None:
    guarded = start(access="keys", backbone=str(CHECKPOINT))
    guarded.accounts.create("acme")
    key = guarded.accounts.add_key("acme", scopes=("use", "learn"))
    page = opened(f"{guarded.url}/studio/")
    field = page.get_by_label("Your key")
    expect(field).to_be_visible()
    page.screenshot(path=pictures / "login.png")
    field.fill("omf_nonsense")
    page.get_by_role("button", name="Enter").click()
    expect(page.get_by_role("alert")).to_contain_text("That key opens nothing here")
    page.get_by_label("Your key").fill(key)
    page.get_by_role("button", name="Enter").click()
    expect(page.get_by_role("heading", name="Teach it something of yours")).to_be_visible()
    # Not the miniature: nobody can be invented.
    expect(page.get_by_text("No photos at hand?")).to_have_count(0)
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Your key")).to_be_visible()
    assert page.evaluate("sessionStorage.length") <= 1
    assert httpx.get(f"{guarded.url}/studio/api/concepts/maeve").status_code == 401


def test_the_keyboard_reaches_everything_and_everything_has_a_name(
    studio: Studio, somebody: str, opened: Callable[..., Page]
) -> None:
    page = opened(f"{studio.url}/studio/#/teach")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the page")).to_be_focused()
    for address in ("teach", "use", "look", f"look/{somebody}"):
        page.goto(f"{studio.url}/studio/#/{address}")
        expect(page.get_by_role("heading", level=1).first).to_be_attached()
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('button, a[href], input:not([hidden]), textarea, select, summary')]
                .filter((one) => !one.labels?.length && !one.getAttribute('aria-label') && !one.textContent.trim()
                                 && !one.querySelector('img[alt]:not([alt=""])'))
                .map((one) => one.outerHTML)"""
        )
        assert nameless == []
        assert page.evaluate("[...document.images].filter((one) => !one.hasAttribute('alt')).length") == 0


def test_a_photo_is_chosen_and_asked_about_without_a_mouse(
    studio: Studio, somebody: str, opened: Callable[..., Page]
) -> None:
    page = opened(f"{studio.url}/studio/#/look")

    def tab_to(name: str, *, most: int = 40) -> None:
        """Press Tab until what has that name has the focus."""
        for _ in range(most):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                "() => { const one = document.activeElement; return one.getAttribute('aria-label') || one.querySelector('img')?.alt || one.textContent; }"
            )
            if focused.strip().startswith(name):
                return
        raise AssertionError(f"{most} times Tab did not reach {name!r}")

    expect(page.get_by_role("link", name=f"<{somebody}>")).to_be_visible()
    tab_to(f"<{somebody}>")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Photo 2 of 10")).to_be_visible()
    tab_to("Photo 2 of 10")
    page.keyboard.press("Enter")
    expect(page.locator(".where canvas")).to_be_visible()
    tab_to("Ask about it")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Your words")).to_be_focused()
    page.keyboard.type(f"Is {somebody} in the photo?")
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).not_to_be_empty()
    expect(page.get_by_role("status").filter(has_text="Answer: ")).to_be_attached()
    tab_to("Where")
    page.keyboard.press("Enter")
    expect(page.locator(".where canvas")).to_be_visible()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_page_is_small_and_names_no_other_site(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 400
    assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\bon\w+=\"|style=", text)


def test_its_policy_lets_it_talk_to_its_own_server_only(studio: Studio) -> None:
    for path in ("", "base.css", "js/main.js", "nothing.js"):
        policy = httpx.get(f"{studio.url}/studio/{path}").headers["content-security-policy"]
        rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
        assert rules["default-src"] == rules["frame-ancestors"] == rules["form-action"] == "'none'"
        assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    for path in ("../app.py", "%2e%2e/app.py", "js/../../app.py", "js/", "studio.css.map"):
        assert httpx.get(f"{studio.url}/studio/{path}").status_code == 404


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(theme: str) -> None:
    """WCAG AA: 4.5 to 1 for text, 3 to 1 for the edges of controls."""
    blocks = re.findall(r":root \{(.*?)\}", (FOLDER / "base.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", blocks[0]))
    if theme == "dark":
        colours |= dict(re.findall(r"--([\w-]+): (#\w{6});", blocks[1]))

    def light(name: str) -> float:
        parts = [int(colours[name][place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def ratio(one: str, other: str) -> float:
        high, low = sorted((light(one), light(other)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    surfaces = ("paper", "card", "sunk")
    text = [(ink, behind) for ink in ("ink", "soft", "leaf", "bad") for behind in surfaces]
    text += [("leaf-ink", "leaf"), ("leaf", "leaf-wash"), ("ink", "leaf-wash"), ("soft", "leaf-wash")]
    text += [("warn", "warn-wash"), ("bad", "bad-wash"), ("ink", "warn-wash"), ("soft", "bad-wash")]
    assert [(pair, ratio(*pair)) for pair in text if ratio(*pair) < 4.5] == []
    assert [behind for behind in ("paper", "card") if ratio("edge", behind) < 3] == []
