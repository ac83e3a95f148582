"""The dashboard in a real browser, beside a service that serves and trains."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.e2e.load import answer, callers
from tests.e2e.service import BASE_MODEL, PATIENCE_S, RunningService, start, start_job

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page, Route

pytestmark = pytest.mark.e2e

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = "<img src=x onerror=\"window.hacked='yes'\"><script>window.hacked='yes'</script>"
PATIENCE_MS = PATIENCE_S * 1000
_SOMETHING = re.compile("M")  # a path that draws
_TWO_POINTS = re.compile(r"\d \d")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    running = start(tmp_path_factory.mktemp("dashboard"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    paths = [path for name in CHROMIUM_NAMES if (path := shutil.which(name))]
    assert paths, "No Chromium is installed; `make browser` installs Debian's."
    with sync_playwright() as playwright:
        # As root, as CI runs, Chromium's own sandbox does not start; the pages are ours.
        started = playwright.chromium.launch(executable_path=paths[0], args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def problems() -> list[str]:
    """Errors that the tab has logged; a test that provokes one takes it out."""
    return []


@pytest.fixture
def page(browser: Browser, problems: list[str]) -> Iterator[Page]:
    """A new tab that has seen nothing; an error that it logs fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    tab = context.new_page()
    tab.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    yield tab
    context.close()
    assert problems == []


def _enter(page: Page, service: RunningService, key: str) -> None:
    page.goto(f"{service.url}/dashboard")
    page.get_by_label("Your key").fill(key)
    page.get_by_role("button", name="Look").click()


def test_an_operator_sees_the_ring_move_a_loss_fall_and_the_targets_kept(
    service: RunningService, page: Page
) -> None:
    acme, rival = service.tenant("acme"), service.tenant("rival")
    job = start_job(acme, examples=64, epochs=50, batch=1, suffix="tickets")
    _enter(page, service, service.admin_key)

    with callers(acme, rival):
        readout = page.locator("#steps .readout")
        expect(readout).to_contain_text("Step ", timeout=PATIENCE_MS)
        earlier = readout.inner_text()
        expect(readout).not_to_have_text(earlier, timeout=PATIENCE_MS)
        for kind in ("decode", "prefill", "forward", "backward", "real"):
            drawn = page.locator(f"#steps path.fill.{kind}")
            expect(drawn).to_have_attribute("d", _SOMETHING, timeout=PATIENCE_MS)
        expect(page.locator("#steps")).to_contain_text("TPOT target of class default")
        card = page.locator(f"article[data-job={job.id}]")
        expect(card.locator("polyline")).to_have_attribute("points", _TWO_POINTS)
        expect(card).to_contain_text("running")
        expect(card).to_contain_text("tokens/s")
        expect(page.locator("#tile-on .value")).to_contain_text("%", timeout=PATIENCE_MS)
        expect(page.locator("#attainment")).to_contain_text("TPOT 50 ms")
        expect(page.locator("#tile-output .value")).not_to_have_text("0.0")
        expect(page.locator("#tile-trained .value")).not_to_have_text("0.0")
        expect(page.locator("#leases")).to_contain_text(job.id)
        expect(page.locator("#outbox")).to_contain_text("Outbox:")
        expect(page.locator("#workers")).to_contain_text(BASE_MODEL)
        expect(page.locator("#usage")).to_contain_text("rival", timeout=PATIENCE_MS)
    acme.fine_tuning.jobs.cancel(job.id)
    expect(card).to_contain_text("cancelled", timeout=PATIENCE_MS)


def test_steps_can_be_walked_through_with_the_keyboard(service: RunningService, page: Page) -> None:
    answer(service.tenant("walker"))
    _enter(page, service, service.admin_key)
    readout = page.locator("#steps .readout")
    expect(readout).to_contain_text("Step ", timeout=PATIENCE_MS)

    page.locator("#steps svg").focus()
    page.keyboard.press("End")
    last = readout.inner_text()
    page.keyboard.press("ArrowLeft")

    assert _index(readout.inner_text()) == _index(last) - 1
    expect(page.locator("#steps .cursor")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator("#steps .cursor")).to_have_count(0)


def test_a_tenant_sees_its_own_things_and_nobody_elses(service: RunningService, page: Page) -> None:
    owner, stranger = service.tenant("owner"), service.tenant("stranger")
    mine = start_job(owner, suffix="mine")
    theirs = start_job(stranger, suffix="secret")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    _enter(page, service, owner.api_key)

    card = page.locator(f"article[data-job={mine.id}]")
    expect(card).to_contain_text("succeeded", timeout=PATIENCE_MS)
    expect(page.locator("#adapters")).to_contain_text(":owner:mine:", timeout=PATIENCE_MS)
    expect(page.locator("#usage tbody tr")).to_have_count(1, timeout=PATIENCE_MS)
    expect(page.locator("#who")).to_have_text("owner, service class default")
    expect(page.locator("#steps, #workers, #leases, #attainment")).to_have_count(0)
    text = page.content()
    assert not [word for word in (theirs.id, "secret", "stranger") if word in text]
    assert not [url for url in asked if "/admin/" in url or not url.startswith(service.url)]


def test_a_hostile_name_is_only_text(service: RunningService, page: Page) -> None:
    client = service.tenant("hostile")
    start_job(client, suffix="harmless")

    def with_hostile_names(route: Route) -> None:
        answer = route.fetch().text()
        route.fulfill(body=answer.replace("harmless", json.dumps(HOSTILE)[1:-1]))

    page.route("**/v1/admin/jobs?*", with_hostile_names)
    page.route("**/v1/admin/adapters?*", with_hostile_names)
    _enter(page, service, service.admin_key)

    expect(page.locator("#jobs h3", has_text=HOSTILE)).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#adapters td", has_text=HOSTILE)).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("main img, main script")).to_have_count(0)
    assert page.evaluate("window.hacked ?? null") is None


def test_text_that_would_become_markup_is_refused_by_the_browser_itself(
    service: RunningService, page: Page, problems: list[str]
) -> None:
    page.goto(f"{service.url}/dashboard")

    refused = page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; return null; }"
        " catch (error) { return error.name; } }"
    )

    assert refused == "TypeError"
    assert "TrustedHTML" in problems.pop()


def test_a_key_that_does_not_work_is_asked_for_again_and_not_kept(
    service: RunningService, page: Page, problems: list[str]
) -> None:
    _enter(page, service, "sk-tandem-wrong")

    expect(page.get_by_role("alert")).to_contain_text("key", timeout=PATIENCE_MS)
    assert "401" in problems.pop()
    assert page.evaluate("sessionStorage.length + localStorage.length") == 0


def test_a_key_outlives_a_reload_but_not_forgetting(service: RunningService, page: Page) -> None:
    _enter(page, service, service.tenant("reloads").api_key)
    expect(page.locator("#who")).to_contain_text("reloads")

    page.reload()
    expect(page.locator("#who")).to_contain_text("reloads")
    page.get_by_role("button", name="Forget key").click()
    page.reload()

    expect(page.get_by_label("Your key")).to_be_focused()
    assert page.evaluate("sessionStorage.length + localStorage.length") == 0
    assert page.evaluate("document.cookie") == ""


def test_a_page_without_its_gateway_says_so_and_recovers(
    service: RunningService, page: Page, problems: list[str]
) -> None:
    _enter(page, service, service.admin_key)
    expect(page.locator("#pulse")).to_have_text("Live", timeout=PATIENCE_MS)

    page.route("**/v1/**", lambda route: route.abort())
    expect(page.locator("#pulse")).to_contain_text("Not fresh")
    expect(page.locator("#workers")).to_contain_text(BASE_MODEL)  # what was known stays
    page.unroute("**/v1/**")

    expect(page.locator("#pulse")).to_have_text("Live", timeout=PATIENCE_MS)
    assert all("ERR_FAILED" in problem for problem in problems)
    problems.clear()


def test_a_key_that_is_revoked_while_the_page_is_open_ends_the_view(
    service: RunningService, page: Page, problems: list[str]
) -> None:
    client = service.tenant("leaver")
    _enter(page, service, client.api_key)
    expect(page.locator("#jobs")).to_contain_text("No job yet", timeout=PATIENCE_MS)

    service.revoke_keys("leaver")

    expect(page.get_by_label("Your key")).to_be_visible(timeout=PATIENCE_MS)
    assert page.evaluate("sessionStorage.length") == 0
    assert all("401" in problem for problem in problems)
    problems.clear()


def _index(readout: str) -> int:
    return int(readout.split()[1])
