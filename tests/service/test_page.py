"""The page for people, in a real browser on a real server: what it shows, to whom, by which keys, and what it stops."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

import pytest

from qilbee_core import Episode, JSONObject
from qilbeedb.server.page_routes import CONTENT_SECURITY_POLICY

from .serving import PASSWORD, PATIENCE_S, Serving, get, login, serving, wait_until

FILES = {file.name: file.read_text() for file in (files("qilbeedb.server") / "page").iterdir()}
DAY = datetime(2026, 3, 2, 10, tzinfo=UTC)
HOSTILE = "<img src=x onerror=window.hacked=1>"


def fill(served: Serving) -> None:
    """What the tests look at."""
    shop = served.store.agent_memory("shop")
    said = [("Where is my order 48213?", "Order 48213 left our store this morning."), ("Do you sell violins?", "No.")]
    for day in range(12):
        for number, (question, answer) in enumerate(said):
            at = DAY + timedelta(days=day, minutes=number)
            shop.store_episode(Episode.conversation("shop", question, f"{answer} ({day})", event_time=at))
    shop.store_episode(Episode.observation("shop", "The customer owns a small cat.", event_time=DAY))
    changed = shop.store_episode(Episode.action("shop", "refund", "asked for", event_time=DAY + timedelta(days=20)))
    shop.update_episode(changed, content={"action": "refund", "result": "done"})
    retired = shop.store_episode(Episode.observation("shop", "Closed on Fridays.", event_time=DAY))
    shop.invalidate(retired)
    twice = served.store.agent_memory("twice")
    for minutes in (0, 1):
        at = DAY + timedelta(minutes=minutes)
        twice.store_episode(Episode.observation("twice", "The lamp is red.", event_time=at))
    assert twice.consolidate("duplicates").superseded
    content: JSONObject = {
        HOSTILE: HOSTILE,
        "__proto__": {"hacked": HOSTILE},
        "link": "javascript:window.hacked=1",
        "n": [1, None],
    }
    hostile = Episode(HOSTILE, HOSTILE, content, metadata={HOSTILE: HOSTILE}, event_time=DAY)
    served.store.agent_memory(HOSTILE).store_episode(hostile)
    served.store.agent_memory("invoice\u202efdp.exe").store_episode(Episode.observation("invoice\u202efdp.exe", "x"))
    wait_for_index(served)


def wait_for_index(served: Serving) -> None:
    """Return once all of the agent "shop" is indexed: the page says how much is, and asks once."""
    wait_until(lambda: not served.store.agent_memory("shop").get_semantic_search_status().pending)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with login, and users "admin", "reader" and "limited", who sees the agent "mine" only."""
    directory = tmp_path_factory.mktemp("page") / "data"
    tables = {"storage": {"data_path": str(directory)}, "search": {"indexing": "background"}}
    with serving(tables, login=True) as served:
        fill(served)
        admin = login(served, "admin")
        for name, limits in (("reader", {}), ("forgetful", {}), ("limited", {"agents": ["mine"]})):
            user = {"username": name, "password": PASSWORD, "roles": ["Read"], **limits}
            assert served.client.post("/api/v1/users", json=user, headers=admin).status_code == 201
        yield served


@pytest.fixture(scope="module")
def open_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The same without login."""
    directory = tmp_path_factory.mktemp("open") / "data"
    with serving({"storage": {"data_path": str(directory)}, "search": {"indexing": "background"}}) as served:
        fill(served)
        yield served


# --- the files


def test_every_file_is_sent_with_a_policy_that_lets_in_nothing_from_elsewhere(shop: Serving) -> None:
    for path in ("/", *(f"/page/{name}" for name in FILES if name != "index.html")):
        answer = shop.client.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none'; ")
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "frame-ancestors 'none'" in CONTENT_SECURITY_POLICY


@pytest.mark.parametrize(
    "name", ["index.html", "nothing.js", "..%2fapp.py", "%2e%2e%2fapp.py", "..%2f..%2fwire.py", "%00"]
)
def test_nothing_else_is_sent(shop: Serving, name: str) -> None:
    answer = get(f"{shop.client.base_url}/page/{name}")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")


def test_what_the_files_name_is_there_and_nothing_is_from_elsewhere() -> None:
    named = {name for text in FILES.values() for name in re.findall(r"/page/([\w.]+)", text)}
    named |= {name for text in FILES.values() for name in re.findall(r'from "\./([\w.]+)"', text)}
    assert named == set(FILES) - {"index.html"}
    for name, text in FILES.items():
        urls = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"]*", re.sub(r"(?m)(^|\s)//.*", "", text)))
        assert urls <= {"http://www.w3.org/2000/svg", "//www.w3.org/2000/svg"}, name


@pytest.mark.parametrize("name", FILES)
def test_no_file_turns_text_into_html_script_or_style(name: str) -> None:
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc|\.cssText"
    assert not re.search(sinks, FILES[name])
    assert not re.search(r"<style|\sstyle=|\son\w+=\"|<script(?! type=\"module\" src=)", FILES[name])


# --- in the browser


class Page:
    """One Chromium, and what a test does in it. ``allowed`` are the only lines that its console may have had."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        self.url = url
        self.allowed: list[str] = []

    def open(self, where: str = "") -> None:
        """Load the page anew, at an address of its own."""
        self.driver.get("about:blank")
        self.driver.get(self.url + where)

    def go(self, where: str) -> None:
        """Go to another address of the page, as a link would, and come back when the page has begun to show it."""
        script = """
            const [where, done] = arguments, before = location.href;
            addEventListener("hashchange", () => done(), { once: true });
            location.hash = where;
            if (location.href === before) done();
        """
        self.driver.execute_async_script(script, where)

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def emulate(self, name: str, **parameters: object) -> None:
        self.driver.execute_cdp_cmd(f"Emulation.{name}", parameters)

    def text(self, selector: str = "main") -> str:
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)", selector
        )
        return found

    def says(self, *texts: str, where: str = "main") -> None:
        """Wait until all of that is read there."""
        try:
            wait_until(lambda: all(text in self.text(where) for text in texts))
        except AssertionError:
            raise AssertionError(f"{texts} is not in:\n{self.text(where)}") from None

    def comes(self, selector: str) -> Any:
        """Wait for an element."""
        wait_until(lambda: self.run("return document.querySelector(arguments[0]) !== null", selector))
        return self.driver.find_element("css selector", selector)

    def settles(self) -> None:
        """Wait until all that is loaded is there: nothing moves any more."""
        wait_until(lambda: not self.run("return document.querySelector('main [aria-busy]')"))

    def click(self, selector: str, at: int = 0, by: str = "css selector") -> None:
        """Click on one of these, where it stays."""
        wait_until(lambda: self.driver.find_elements(by, selector))
        self.settles()
        self.driver.find_elements(by, selector)[at].click()

    def type(self, *keys: str) -> None:
        """Press keys, whatever has the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def focused(self) -> str:
        """The text or name of what has the focus."""
        return str(self.run("const e = document.activeElement; return e.name || e.innerText || e.tagName"))

    def log_in(self, user: str = "admin", password: str = PASSWORD, where: str = "") -> None:
        self.open(where)
        self.comes("#password")
        self.type(user, "\t", password, "\n")

    def search(self, query: str, mode: str) -> None:
        self.go(f"#/agents/shop?q={query.replace(' ', '+')}&mode={mode}")
        self.says("best first")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium with nothing in it, whose clock stands in Berlin."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or chromedriver is None:
        pytest.skip("there is no Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1100,900"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # which root cannot have
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    driver.set_script_timeout(PATIENCE_S)
    driver.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "Europe/Berlin"})
    driver.execute_cdp_cmd("Emulation.setLocaleOverride", {"locale": "en-GB"})
    try:
        yield driver
    finally:
        driver.quit()


def watched(driver: Any, served: Serving) -> Iterator[Page]:
    """The page of a server, whose console has nothing in the end but what was allowed."""
    page = Page(driver, str(served.client.base_url))
    driver.get("about:blank")  # what is left open from another server may ask that in vain
    driver.get_log("browser")
    yield page
    lines = [line["message"] for line in driver.get_log("browser")]
    assert [line for line in lines if not any(allowed in line for allowed in page.allowed)] == []


@pytest.fixture
def page(chromium: Any, shop: Serving) -> Iterator[Page]:
    yield from watched(chromium, shop)


@pytest.fixture
def open_page(chromium: Any, open_shop: Serving) -> Iterator[Page]:
    yield from watched(chromium, open_shop)


# --- logging in and out


def test_who_logs_in_sees_the_agents_with_their_figures_and_leaves_nothing_in_the_browser(page: Page) -> None:
    page.log_in()
    page.says("Agents", "shop", "26", "4 agents", "22 Mar 2026, 11:00")
    assert page.run("return localStorage.length + sessionStorage.length + document.cookie.length") == 0
    page.open()
    page.says("Log in")
    assert page.run("return document.getElementById('nav').checkVisibility()") is False


def test_a_wrong_password_is_told_in_words_and_so_is_a_lock_out(page: Page) -> None:
    page.allowed = ["status of 401", "status of 429"]
    page.log_in("stranger", "not this")
    page.says("The username or the password is wrong. Check both and try again.")
    assert page.focused() == "password"
    for _ in range(5):
        wait_until(lambda: page.run("return !document.querySelector('form button').disabled"))
        page.type("not this", "\n")
        wait_until(
            lambda: not page.run("return document.querySelector('form button').disabled") or "(in" in page.text()
        )
    page.says("Too many failed logins.", "Log in (in ")
    page.run("document.getElementById('username').select(); document.getElementById('username').focus()")
    page.type("reader")  # who does not have to wait
    assert page.run("return document.querySelector('form button').disabled") is False
    page.type("\t", PASSWORD, "\n")
    page.says("Agents", "shop")


def test_a_locked_account_is_sent_to_an_administrator(page: Page, shop: Serving) -> None:
    admin = login(shop, "admin")
    assert shop.client.post("/api/v1/lockouts/forgetful/lock", json={}, headers=admin).status_code == 200
    page.allowed = ["status of 429"]
    page.log_in("forgetful")
    page.says("This account is locked. Ask an administrator to unlock it.")
    assert page.run("return document.querySelector('form button').disabled") is False


def test_logging_out_ends_the_session_at_the_server_too(page: Page, shop: Serving) -> None:
    page.log_in("reader")
    page.says("shop")
    page.click("#who button")
    page.says("You are logged out.")
    events = shop.client.get("/api/v1/audit-logs", params={"username": "reader"}, headers=login(shop, "admin")).json()
    assert "logout" in {event["action"] for event in events["events"]}


def test_a_session_that_is_over_asks_to_log_in_and_goes_on_where_one_was(page: Page, shop: Serving) -> None:
    admin = login(shop, "admin")
    page.log_in("reader")
    page.says("shop")
    (reader,) = (
        user for user in shop.client.get("/api/v1/users", headers=admin).json()["users"] if user["username"] == "reader"
    )
    shop.client.post("/api/v1/auth/revoke-all", json={"user_id": reader["id"]}, headers=admin)
    page.allowed = ["status of 401"]
    page.go("#/agents/shop")
    page.says("Your session has ended.")
    page.type("reader", "\t", PASSWORD, "\n")
    page.says("Newest episodes", "refund")


def test_a_session_goes_on_behind_the_end_of_its_access_token(chromium: Any) -> None:
    tables: dict[str, dict[str, object]] = {"storage": {"backend": "ephemeral"}, "accounts": {"access_token_s": 10}}
    with serving(tables, login=True) as served:  # the page renews what has less than 30 s left
        fill(served)
        for page in watched(chromium, served):
            page.log_in()
            page.says("shop", "26")
            page.go("#/agents/shop")
            page.says("Newest episodes", "refund")


def test_without_login_it_needs_none(open_page: Page) -> None:
    open_page.open()
    open_page.says("shop", "26")
    assert open_page.text("#who") == "no login"


def test_who_sees_no_agent_is_told_so(page: Page) -> None:
    page.log_in("limited")
    page.says("No agent has stored anything yet, or none that you may see.")
    page.allowed = ["status of 403"]
    page.go("#/agents/shop")
    page.says("'limited' may not do this with agent 'shop'")


# --- agents and episodes


def test_agents_are_found_by_a_part_of_their_name(open_page: Page) -> None:
    open_page.open()
    open_page.says("4 agents")
    open_page.comes("#search").send_keys("SHO")
    open_page.says("1 agent")
    assert open_page.texts("tbody th") == ["shop"]


def test_an_agent_is_shown_with_its_figures_and_the_newest_episodes_page_by_page(open_page: Page) -> None:
    open_page.open("#/agents/shop")
    open_page.says("conversation 24, action 1, observation 1", "26 indexed", "Newest episodes", "20 are shown.")
    assert open_page.texts(".episode a")[:2] == ["Action, 22 Mar 2026, 11:00", "Conversation, 13 Mar 2026, 11:01"]
    open_page.click(".results > button")
    open_page.says("26 episodes, there are no older ones.")
    assert len(open_page.texts(".episode")) == 26
    assert open_page.focused() == open_page.texts(".episode a")[20]


def test_an_agent_without_memories_says_so(open_page: Page) -> None:
    open_page.open("#/agents/nobody")
    open_page.says("This agent remembers nothing yet.", "There is nothing to count yet.")


def test_statistics_over_time_count_every_episode_and_lead_to_those_of_a_day(open_page: Page) -> None:
    open_page.open("#/agents/shop")
    picture = open_page.comes("[role=img]").get_attribute("aria-label")
    assert picture == "Episodes by day, from 2 Mar 2026 to 22 Mar 2026; most, 3, in 2 Mar 2026."
    open_page.click(".over-time summary")
    rows = [row.split("\t") for row in open_page.texts(".over-time tbody tr")]
    assert rows[0] == ["22 Mar 2026", "1", "100 %", "0", "1", "0"]
    assert sum(int(row[1]) for row in rows) == 26
    open_page.click(".over-time tbody a", at=-1)
    open_page.says("3 episodes, there are no older ones.", "The customer owns a small cat.")
    assert open_page.run("return document.getElementById('from').value") == "2026-03-02T00:00"


def test_any_time_is_cut_into_a_bounded_number_of_periods_and_no_episode_is_lost(open_page: Page) -> None:
    open_page.open()
    script = """
        const [first, last, done] = [Date.parse(arguments[0]) / 1000, Date.parse(arguments[1]) / 1000, arguments[2]];
        const times = Array.from({ length: 500 }, (_, n) => first + ((last - first) * n) / 499);
        import("/page/chart.js").then(({ counted }) => {
          const { unit, rows } = counted(times.map((at) => ({ at, type: "x", relevance: 1 })));
          const right = (row) => times.filter((at) => row.from <= at && at < row.to).length === row.count;
          const joined = rows.every((row, n) => n === 0 || rows[n - 1].to === row.from);
          done([unit, rows.length, rows.every(right), joined, rows.reduce((sum, { count }) => sum + count, 0)]);
        });
    """
    for first, last, unit in (
        ("2026-03-28T22:30Z", "2026-03-30T01:00Z", "hour"),  # over a change of the clock
        ("2026-01-01T12:00Z", "2026-05-01T12:00Z", "day"),
        ("2024-01-01T12:00Z", "2026-05-01T12:00Z", "week"),
        ("2017-01-01T12:00Z", "2026-05-01T12:00Z", "month"),
        ("1926-01-01T12:00Z", "2026-05-01T12:00Z", "year"),
        ("0001-01-03T00:00Z", "9999-12-30T00:00Z", "year"),
        ("2026-01-01T12:00Z", "2026-01-01T12:00Z", "hour"),
    ):
        found_unit, length, *rest = open_page.driver.execute_async_script(script, first, last)
        assert (found_unit, rest) == (unit, [True, True, 500])
        assert 1 <= length <= 130


@pytest.mark.parametrize("mode", ["keyword", "semantic", "hybrid"])
def test_each_way_to_search_finds_and_says_why(open_page: Page, mode: str) -> None:
    open_page.open()
    query = {"keyword": "order 48213", "semantic": "kitten", "hybrid": "kitten"}[mode]
    open_page.search(query, mode)
    first = open_page.text(".episode")
    assert ("48213" if mode == "keyword" else "a small cat") in first
    assert re.search(r"Score \d\.\d{3}: (its|what|the|that)", first)
    assert open_page.run("return document.querySelector('input[name=mode]:checked').value") == mode
    open_page.click(".why summary")
    parts = dict(row.split("\t")[:2] for row in open_page.texts(".episode .why tbody tr") if row)
    score = re.search(r"Score (\d\.\d{3})", first)
    assert score is not None
    assert sum(map(float, parts.values())) == pytest.approx(float(score[1]), abs=0.005)
    assert ("its meaning" in parts) == (mode != "keyword")
    if mode == "keyword":
        assert {"order", "48213"} <= {text.lower() for text in open_page.texts("mark")}


def test_keyword_search_on_the_page_ranks_as_the_route_does(open_page: Page, open_shop: Serving) -> None:
    open_page.open()
    open_page.search("did the order leave the store", "keyword")
    found = open_shop.client.post(
        "/memory/shop/episodes/search", json={"query": "did the order leave the store", "limit": 50}
    ).json()["episodes"]
    links = open_page.run("return [...document.querySelectorAll('[data-item]')].map((a) => a.hash)")
    assert links == [f"#/agents/shop/episodes/{episode['episodeId']}" for episode in found]


def test_filters_narrow_each_search_and_keep_its_reasons(open_page: Page) -> None:
    open_page.open()
    for mode in ("keyword", "hybrid", "semantic"):
        open_page.go(f"#/agents/shop?q=order&mode={mode}&from=2026-03-05T00:00&to=2026-03-06T00:00&type=conversation")
        open_page.says("2 results, best first.")
        shown = open_page.texts(".episode")
        assert len(shown) == 2
        assert all("(3)" in found and "Score" in found for found in shown), mode
        open_page.go(f"#/agents/shop?q=order&mode={mode}&type=action&kind=semantic")
        open_page.says("Nothing fits", "fewer filters")


def test_filters_narrow_what_is_browsed(open_page: Page) -> None:
    open_page.open()
    open_page.go("#/agents/shop?type=action")
    open_page.says("1 episode, there are no older ones.")
    open_page.go("#/agents/shop?type=observation&from=2026-03-01T00:00")
    open_page.says("1 episode, there are no older ones.", "small cat")
    open_page.go("#/agents/shop?asOf=2020-01-01T00:00")
    open_page.says("No episode fits these filters.")


def test_what_an_answer_has_no_room_for_is_asked_for_and_shown_in_its_place(chromium: Any) -> None:
    tables: dict[str, dict[str, object]] = {"storage": {"backend": "ephemeral"}, "server": {"answer_bytes_max": 20_000}}
    with serving({**tables, "search": {"indexing": "background"}}) as served:
        herons = [Episode.observation("shop", f"heron {'x' * 4000}", event_time=DAY + timedelta(n)) for n in range(30)]
        served.store.agent_memory("shop").store_episodes(herons)
        wait_for_index(served)
        asked = {"query": "heron", "limit": 50}
        told = served.client.post("/memory/shop/episodes/hybrid-search", json=asked).json()
        best = [result["episode"]["episodeId"] for result in told["results"]]
        assert len(best) < 10
        best += [each["episodeId"] for each in told["left"]]
        for page in watched(chromium, served):
            page.open("#/agents/shop?q=heron&mode=hybrid")
            page.says("30 results, best first.")
            links = page.run("return [...document.querySelectorAll('[data-item]')].map((a) => a.hash)")
            assert links == [f"#/agents/shop/episodes/{episode_id}" for episode_id in best]
            scores = [float(re.findall(r"Score (\d\.\d{3})", text)[0]) for text in page.texts(".episode")]
            assert scores == sorted(scores, reverse=True)
            page.go("#/agents/shop")
            page.click(".over-time summary")
            assert len(page.texts(".over-time tbody tr")) == 30  # a day each
            while (shown := len(page.texts(".episode"))) < 30:
                page.says(f"{shown} are shown.")
                page.click(".results > button")
                wait_until(lambda: len(page.texts(".episode")) > shown)  # noqa: B023
            page.says("30 episodes, there are no older ones.")
            assert page.texts(".episode a")[-1] == "Observation, 2 Mar 2026, 11:00"


def test_a_search_that_finds_nothing_says_what_to_try(open_page: Page) -> None:
    open_page.open("#/agents/shop?q=zzzzqqq&mode=keyword")
    open_page.says("Nothing fits by words.", "Try other words")


def test_an_episode_is_shown_with_its_history_its_durability_and_what_is_like_it(open_page: Page) -> None:
    open_page.open("#/agents/shop")
    open_page.click(".episode a")
    open_page.says("Action, 22 Mar 2026, 11:00", "survives a power cut", "changed: content", "as it was first stored")
    versions = open_page.texts(".history > li")
    assert [("done" in version, "asked for" in version) for version in versions] == [(True, False), (False, True)]
    assert open_page.texts(".crumbs a") == ["Agents", "shop"]
    open_page.type("u")
    open_page.says("Newest episodes", "Conversation, 13 Mar 2026, 11:01")
    open_page.run("document.querySelectorAll('.episode a')[1].click()")
    open_page.says("It has not been changed since it was stored.")
    open_page.click("main button")
    open_page.says("Score", "its meaning (100 %)")


def test_who_goes_back_stands_where_he_was(open_page: Page) -> None:
    open_page.open()
    open_page.search("order", "keyword")
    third = open_page.texts(".episode a")[2]
    open_page.run("document.querySelectorAll('.episode a')[2].click()")
    open_page.says("survives a power cut")
    open_page.driver.back()
    open_page.says("best first")
    wait_until(lambda: open_page.focused() == third)


def test_an_episode_that_is_retired_or_was_never_there_says_so(open_page: Page, open_shop: Serving) -> None:
    memory = open_shop.store.agent_memory("shop")
    retired = memory.store_episode(Episode.observation("shop", "to be retired", event_time=DAY))
    memory.invalidate(retired)
    wait_for_index(open_shop)
    open_page.open(f"#/agents/shop/episodes/{retired}")
    open_page.says("not current any more", "to be retired")
    open_page.go("#/agents/shop/episodes/0e320ddf-b885-8cee-9a20-3d61bce200c4")
    open_page.says("There is no such episode")
    twice = open_shop.store.agent_memory("twice")
    (kept,) = twice.get_recent_episodes()
    (gone,) = (episode for episode in twice.episodes(as_of=kept.transaction_time) if episode.id != kept.id)
    open_page.go(f"#/agents/twice/episodes/{gone.id}")
    open_page.says("in favour of this one")
    open_page.click("this one", by="link text")
    open_page.says("survives a power cut", kept.id)
    open_page.allowed = ["status of 400"]
    open_page.go("#/agents/shop/episodes/no-id")
    open_page.says("'no-id' is not an episode id", "Try again")
    open_page.go("#/somewhere/else")
    open_page.says("There is nothing at this address.")


def test_health_is_for_everybody_and_the_figures_for_administrators(page: Page) -> None:
    page.log_in("reader", where="#/health")
    page.says("Writes are taken, and become durable in time.", "A power cut could take", "up for")
    page.allowed = ["status of 403"]
    page.click("main button")
    page.says("'reader' may not do this")


def test_problems_and_figures_of_the_store_are_shown(
    open_page: Page, open_shop: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qilbee_core import StorageFullError

    monkeypatch.setattr(open_shop.store._durability, "failure", StorageFullError("the disk is full"))
    open_page.allowed = ["status of 503"]
    open_page.open("#/health")
    open_page.says("Something is wrong:", "the disk is full")
    open_page.says("writes fail", where="#nav")
    open_page.run("document.querySelector('main button').click()")
    open_page.says("Durable sequence", "Indexing")


def test_a_server_that_does_not_answer_is_told_and_can_be_tried_again(open_page: Page) -> None:
    open_page.open()
    open_page.says("4 agents")
    conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    open_page.driver.execute_cdp_cmd("Network.enable", {})
    open_page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**conditions, "offline": True})
    open_page.allowed = ["ERR_INTERNET_DISCONNECTED"]
    try:
        open_page.go("#/agents/shop")
        open_page.says("The server does not answer. See whether it runs, and try again.")
        open_page.says("no answer", where="#nav")
        open_page.settles()  # each part has told so
    finally:
        open_page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**conditions, "offline": False})
    open_page.run("for (const b of document.querySelectorAll('.refusal button')) b.click()")
    open_page.says("26 indexed", "refund", "Most in one day")


# --- what others have written


def test_hostile_agents_episodes_and_addresses_are_text(open_page: Page) -> None:
    open_page.open()
    open_page.says(HOSTILE, "invoice[U+202E]fdp.exe")
    open_page.click(HOSTILE, by="link text")
    open_page.says("Newest episodes", HOSTILE, "javascript:window.hacked=1")
    assert open_page.text("h1") == HOSTILE
    open_page.click(".over-time summary")
    open_page.click(".episode a")
    open_page.says("survives a power cut", '"hacked": "<img')
    assert open_page.texts(".content dd")[:3] == [
        HOSTILE,
        f'{{\n  "hacked": "{HOSTILE}"\n}}',
        "javascript:window.hacked=1",
    ]
    assert open_page.text("h1").startswith(f"{HOSTILE}, 2 Mar")
    open_page.run("for (const d of document.querySelectorAll('details')) d.open = true")
    for where in (
        f"#/agents/{HOSTILE}?q={HOSTILE}&mode=keyword",
        f"#/agents/shop?q={HOSTILE}&mode=hybrid&type={HOSTILE}&from={HOSTILE}",
        f"#/agents/{HOSTILE}/episodes/{HOSTILE}",
        "#/agents/%zz",
        "#/agents/__proto__?mode=constructor&q=x",
    ):
        open_page.allowed = ["status of 400"]
        open_page.go(where)
        open_page.settles()
    assert open_page.run("return window.hacked") is None
    assert open_page.run("return document.querySelectorAll('img').length") == 1
    assert open_page.run("return [...document.links].every((a) => a.protocol === 'http:')") is True


def test_the_policy_stops_what_would_get_in_all_the_same(open_page: Page) -> None:
    open_page.open()
    open_page.says("shop")
    open_page.allowed = ["Content Security Policy", "TrustedHTML", "requires", "ERR_BLOCKED_BY_CSP"]
    refused = open_page.driver.execute_async_script(
        """
        const done = arguments[0], seen = new Set();
        addEventListener("securitypolicyviolation", (event) => {
          seen.add(event.effectiveDirective);
          if (seen.size === 4) done([...seen].sort());
        });
        try { document.body.innerHTML = "<b>x</b>"; } catch {}
        document.body.append(Object.assign(new Image(), { src: "http://127.0.0.2:9/x.png" }));
        fetch("http://127.0.0.2:9/").catch(() => {});
        document.body.setAttribute("style", "color: red");
        """
    )
    assert refused == ["connect-src", "img-src", "require-trusted-types-for", "style-src-attr"]


def test_it_asks_nobody_but_its_server(open_page: Page) -> None:
    open_page.open("#/agents/shop?q=order&mode=hybrid")
    open_page.says("best first")
    asked = open_page.run("return performance.getEntriesByType('resource').map(({ name }) => name)")
    assert len(asked) > len(FILES)
    assert all(name.startswith(open_page.url) for name in asked)


# --- without a mouse, and without eyes


def test_everything_is_reached_by_keys_alone(page: Page) -> None:
    page.log_in()
    page.says("4 agents")
    page.type("/", "shop")
    page.says("1 agent")
    page.type("\ue00c", "j")  # Escape
    assert page.focused() == "shop"
    page.type("\n")
    page.says("Newest episodes")
    page.type("/", "kitten", "\n")
    page.says("best first")
    page.type("\ue00c", "j", "j", "k")
    assert page.focused() == page.texts(".episode a")[0]
    page.type("\n")
    page.says("survives a power cut", "small cat")
    assert page.run("return document.activeElement.tagName") == "H1"
    page.type("u")
    page.says("Newest episodes")
    page.type("h")
    page.says("Writes are taken")
    page.type("?")
    assert "go to the search" in page.text("dialog")
    page.type("\ue00c")
    wait_until(lambda: page.run("return document.querySelector('dialog') === null"))
    page.type("g")
    page.says("4 agents")


def test_the_first_tab_leads_past_the_head_of_the_page(open_page: Page) -> None:
    open_page.open()
    open_page.says("4 agents")
    open_page.type("\t")
    assert open_page.focused() == "Skip to the content"
    open_page.type("\n", "\t")
    assert open_page.run("return document.activeElement.id") == "search"


def test_single_keys_can_be_switched_off(open_page: Page) -> None:
    open_page.open()
    open_page.says("4 agents")
    try:
        open_page.click("#help")
        open_page.click("#keys-on")
        open_page.click("dialog button")
        open_page.type("h")
        assert open_page.run("return location.hash") == ""
        open_page.open()
        open_page.says("4 agents")
        open_page.type("h")
        assert open_page.run("return location.hash") == ""
    finally:
        open_page.run("localStorage.clear()")


AUDIT = """
const problems = [];
const tell = (what, element) => problems.push(`${what}: ${element.outerHTML.slice(0, 160)}`);
const all = (selector) => [...document.querySelectorAll(selector)].filter((e) => e.checkVisibility());
const named = (e) => (e.getAttribute("aria-label") || e.innerText || e.textContent).trim();
for (const e of all("input, select, textarea")) if (!e.labels?.length) tell("no label", e);
for (const e of all("a, button, summary, [role=img]")) if (!named(e)) tell("no name", e);
for (const e of all("a")) if (!e.hasAttribute("href")) tell("no href", e);
for (const e of all("img")) if (!e.hasAttribute("alt")) tell("no alt", e);
for (const e of all("table")) if (!e.caption) tell("no caption", e);
for (const e of all("th")) if (!e.scope) tell("no scope", e);
for (const e of all("[tabindex]")) if (e.tabIndex > 0) tell("tabindex", e);
for (const e of all("[aria-labelledby]")) {
  if (!document.getElementById(e.getAttribute("aria-labelledby"))) tell("no such id", e);
}
for (const one of ["h1", "main", "header", "footer"]) {
  if (all(one).length !== 1) tell(`${all(one).length} of ${one}`, document.body);
}
for (const e of all("nav")) if (!e.getAttribute("aria-label")) tell("no label", e);
const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
if (new Set(ids).size !== ids.length) tell("an id twice", document.body);
if (!document.documentElement.lang || !document.title) tell("no language or title", document.documentElement);
let level = 0;
for (const e of all("h1, h2, h3")) {
  if (+e.tagName[1] > level + 1) tell("a heading too low", e);
  level = +e.tagName[1];
}
// Contrast as WCAG 2.2 counts it, of all that has text of its own.
const rgb = (color) => color.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const [r, g, b, a = 1] = rgb(getComputedStyle(e).backgroundColor);
    if (a > 0) return [r, g, b];
  }
  return [255, 255, 255];
};
for (const e of all("body *")) {
  if (e.disabled || ![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
  const style = getComputedStyle(e), [one, other] = [light(rgb(style.color)), light(behind(e))].sort((a, b) => b - a);
  const isLarge = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
  const contrast = (one + 0.05) / (other + 0.05);
  if (contrast < (isLarge ? 3 : 4.5)) tell(`contrast ${contrast.toFixed(2)}`, e);
}
// What has the focus shows it.
for (const e of all("a, button, input, select, summary")) {
  e.focus({ focusVisible: true });
  if (document.activeElement === e && getComputedStyle(e).outlineStyle === "none") tell("no focus to be seen", e);
}
const whole = document.documentElement;
if (whole.scrollWidth > whole.clientWidth) tell("wider than the window", whole);
return problems;
"""


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 320)])
def test_every_view_is_labelled_readable_and_as_wide_as_the_window(page: Page, scheme: str, width: int) -> None:
    page.emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.emulate("setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    try:
        page.open()
        page.comes("#password")
        assert page.run(AUDIT) == []
        page.log_in()
        views: Mapping[str, str] = {
            "#/": "4 agents",
            "#/agents/shop": "Most in one day",
            "#/agents/shop?q=order&mode=hybrid": "best first",
            "#/agents/nobody": "There is nothing to count yet.",
            "#/health": "Writes are taken",
            "#/nowhere": "There is nothing at this address",
        }
        for where, text in views.items():
            page.go(where)
            page.says(text)
            page.settles()
            page.run("for (const d of document.querySelectorAll('details')) d.open = true")
            assert page.run(AUDIT) == [], where
        page.go("#/agents/shop")
        page.says("refund")
        page.click(".episode a")
        page.says("survives a power cut")
        page.settles()
        page.run("for (const d of document.querySelectorAll('details')) d.open = true")
        assert page.run(AUDIT) == []
        page.click("#help")
        assert page.run(AUDIT) == []
    finally:
        page.emulate("setEmulatedMedia", features=[])
        page.emulate("clearDeviceMetricsOverride")


def test_the_audit_sees_what_it_looks_for(open_page: Page) -> None:
    open_page.open()
    open_page.says("4 agents")
    open_page.run(
        """
        const add = (name, text) => document.querySelector("main").appendChild(
          Object.assign(document.createElement(name), { textContent: text }));
        add("input"), add("button"), add("h3", "too low"), add("h1", "two");
        add("p", "pale").style.color = "#999";
        add("p", "wide").style.width = "3000px";
        """
    )
    told = [problem.split(":")[0] for problem in open_page.run(AUDIT)]
    expected = {"no label", "no name", "a heading too low", "2 of h1", "contrast 2.85", "wider than the window"}
    assert set(told) == expected


def test_what_happens_is_said_to_who_does_not_see_it(open_page: Page) -> None:
    open_page.open()
    open_page.says("4 agents", where="[role=status].unseen")
    open_page.search("order", "hybrid")
    open_page.says("results", where="[role=status].unseen")
    assert open_page.run("return document.title") == "shop · QilbeeDB"
