"""The lamp's page in a real browser, with the real processes behind it."""

import importlib.util
import os
import shutil
import signal
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
NEEDED = ("fastapi", "uvicorn", "websockets", "playwright")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None] + ([] if CHROMIUM else ["chromium"])
if MISSING and os.environ.get("WARMSTART_LAMP") != "1":
    pytest.skip(f"needs {', '.join(MISSING)}: make test-lamp", allow_module_level=True)

from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402

from examples.lamp.log import SETTINGS, Log  # noqa: E402
from examples.lamp.server import app, serving  # noqa: E402
from examples.lamp.supervisor import LOG, Supervisor  # noqa: E402
from examples.lamp.tags import Tags  # noqa: E402

TAGS = Tags.read()
PATIENCE = 180  # seconds; busy machines are slow
WINDOW = 1.5  # seconds in which a flip belongs to an utterance


@dataclass
class Lamp:
    """A lamp that runs, with a tab that shows it."""

    page: Page
    log: Log
    folder: Path
    address: str
    supervisor: Supervisor | None = None

    def say(self, text: str) -> None:
        self.page.fill("#words", text)
        self.page.press("#words", "Enter")

    def flip(self, label: str) -> None:
        self.page.get_by_label(label, exact=True).click()

    def items(self) -> Any:
        return self.page.locator("#utterances li:not(.waiting)")

    def newest(self) -> Any:
        return self.items().first

    def until(self, done: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < end, f"waited in vain; the page shows:\n{self.page.inner_text('body')}"
            self.page.wait_for_timeout(20)

    def say_and_hear(self, text: str) -> bool:
        """Say something, wait for the guess and for what comes of it; return whether the lamp acted by itself."""
        known = len(self.log.after(0, ["guess"]))
        self.say(text)
        self.until(lambda: len(self.log.after(0, ["guess"])) > known)
        guess = self.log.after(0, ["guess"])[-1]
        if acts := guess.body["act"]:
            self.until(lambda: self.log.about(guess.about or 0, ["act"]))
            expect(self.page.locator("#lamp-now")).to_contain_text("by itself")
        expect(self.newest().locator("p")).to_have_text(text)
        expect(self.newest().locator(".guess")).to_be_visible()
        return bool(acts)

    def until_learnt(self) -> None:
        """Wait until every utterance has its lesson, and the model knows them."""
        self.until(lambda: self.lessons() == len(self.log.after(0, ["said"])))
        self.until(lambda: self.log.position("trainer") >= self.newest_lesson())
        self.until(lambda: self.log.position("anticipator") >= self.log.newest(["trained"]).id)  # type: ignore[union-attr]

    def lessons(self) -> int:
        return len({event.about for event in self.log.after(0, ["lesson"])})

    def newest_lesson(self) -> int:
        lesson = self.log.newest(["lesson"])
        return lesson.id if lesson else 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    options = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab in which no error may occur, and which may ask nobody but this machine."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    expect.set_options(timeout=1000 * PATIENCE)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: None if "//127.0.0.1:" in request.url else problems.append(request.url))
    yield page
    context.close()
    assert [problem for problem in problems if "WebSocket connection" not in problem] == []


@pytest.fixture
def bare(page: Page, tmp_path: Path) -> Iterator[Lamp]:
    """A lamp without processes: only its page and its log."""
    with serving(app(tmp_path, TAGS)) as address, Log(tmp_path / LOG) as log:
        page.goto(address)
        expect(page.locator("#lamp-now")).to_have_text("Lamp: Off")
        yield Lamp(page, log, tmp_path, address)


@pytest.fixture
def lamp(page: Page, tmp_path: Path) -> Iterator[Lamp]:
    with (
        Supervisor(tmp_path) as supervisor,
        serving(app(tmp_path, TAGS, supervisor=supervisor)) as address,
        Log(tmp_path / LOG) as log,
    ):
        log.set("window", WINDOW)
        page.goto(address)
        expect(page.locator("#processes .running")).to_have_count(5)
        yield Lamp(page, log, tmp_path, address, supervisor)


def test_it_learns_is_corrected_and_forgets(lamp):
    dark, shown = "it is so dark in here", lamp.page.locator("#lamp-now")
    for text, label in [(dark, "On"), ("what will the weather be like", None), ("good night", "Off")]:
        if not lamp.say_and_hear(text) and label:
            lamp.flip(label)
        elif not label and shown.inner_text() != "Lamp: On":  # it acted, and wrongly
            lamp.flip("On")
        lamp.until_learnt()
        time.sleep(WINDOW + 0.1)
    flips = 1
    lamp.flip("Off")  # belongs to no sentence
    while not lamp.say_and_hear(dark):
        flips += 1
        lamp.flip("On")
        lamp.until_learnt()
        time.sleep(WINDOW + 0.1)
        lamp.flip("Off")
    assert flips <= 3
    expect(shown).to_have_text("Lamp: On, by itself")
    expect(lamp.page.locator("#status")).to_have_text("By itself: On.")
    expect(lamp.page.locator("#thought")).to_contain_text("so it switched by itself")
    expect(lamp.page.locator("#why-sentences")).to_contain_text(dark)
    expect(lamp.page.locator("#why-words mark").first).to_be_visible()
    expect(lamp.newest()).to_contain_text("you kept what it did")
    expect(lamp.newest().locator("select")).to_have_value("on")
    expect(lamp.page.locator("#learning-note")).to_contain_text("It guessed right")

    # Correct it: the switch goes back within the window.
    wrong = "it is so dark in that film"
    lamp.flip("Off")
    corrections = 0
    while lamp.say_and_hear(wrong):
        corrections += 1
        lamp.page.get_by_role("button", name="Undo: back to Off").click()
        expect(lamp.newest()).to_contain_text("you corrected it")
        expect(lamp.newest().locator("select")).to_have_value("none")
        lamp.until_learnt()
        time.sleep(WINDOW + 0.1)
    assert 1 <= corrections <= 3
    expect(shown).to_have_text("Lamp: Off")
    lamp.until_learnt()

    # Forget one of the sentences: it leaves the page and the disk.
    text = "the secret word is abracadabra"
    lamp.say_and_hear(text)
    lamp.until_learnt()
    lamp.page.get_by_role("button", name=f"Forget “{text}”").click()
    expect(lamp.page.get_by_text(text)).to_have_count(0)
    assert not [file for file in lamp.folder.rglob("*") if file.is_file() and b"abracadabra" in file.read_bytes()]


def test_a_lesson_can_be_set_right_while_it_waits_and_later(lamp):
    lamp.say_and_hear("nice weather")
    lamp.newest().locator("select").select_option("On")
    expect(lamp.newest()).to_contain_text("you corrected it")
    time.sleep(WINDOW + 0.5)  # the window ends without a flip: that teaches nothing else now
    lamp.until_learnt()
    expect(lamp.newest().locator("select")).to_have_value("on")
    lamp.newest().locator("select").select_option("Nothing")
    lamp.until(lambda: [event.body["tag"] for event in lamp.log.after(0, ["lesson"])] == ["on", "none"])
    lamp.until_learnt()
    expect(lamp.newest().locator("select")).to_have_value("none")


def test_every_process_may_be_killed_and_nothing_is_lost(lamp):
    said = []
    for name in ("recorder", "transcriber", "anticipator", "trainer", "operator"):
        os.kill(lamp.supervisor.pids()[name], signal.SIGKILL)
        said.append(f"while the {name} is away")
        lamp.say(said[-1])
        for label in ("On", "Off"):
            lamp.flip(label)
            expect(lamp.page.locator("#lamp-now")).to_have_text(f"Lamp: {label}")
        expect(lamp.page.locator("#troubles")).to_contain_text(f"The {name} was killed (SIGKILL)")
        expect(lamp.page.locator("#notices")).to_contain_text(f"The {name} was killed (SIGKILL)")
    expect(lamp.items().locator("p")).to_have_text(said[::-1])
    expect(lamp.page.locator("#processes .running")).to_have_count(5)
    lamp.until_learnt()
    assert [event.body["text"] for event in lamp.log.after(0, ["said"])] == said
    assert len(lamp.log.after(0, ["guess"])) == len(said)
    assert [event.body["tag"] for event in lamp.log.after(0, ["flip"])] == ["on", "off"] * 5


LEVEL = "getComputedStyle(document.documentElement).getPropertyValue('--level')"


def test_the_switch_by_mouse_and_keys_and_a_press_on_what_is_set(bare):
    for action, state in [
        (lambda: bare.flip("On"), "on"),
        (lambda: bare.flip("On"), "on"),
        (lambda: bare.page.keyboard.press("Space"), "on"),
        (lambda: bare.page.keyboard.press("Enter"), "on"),
        (lambda: bare.page.keyboard.press("ArrowLeft"), "off"),
        (lambda: bare.page.keyboard.press("ArrowRight"), "on"),
    ]:
        known = len(bare.log.after(0, ["flip"]))
        action()
        bare.until(lambda known=known: len(bare.log.after(0, ["flip"])) == known + 1)
        assert bare.log.lamp(TAGS) == state
        expect(bare.page.get_by_label(state.capitalize(), exact=True)).to_be_checked()
    bare.until(lambda: float(bare.page.evaluate(LEVEL)) == 1)


NAME = "(e => e.ariaLabel || e.value || e.textContent.trim() || e.id)(document.activeElement)"
OUTLINED = "[e, e.closest('label')].some(x => x && getComputedStyle(x).outlineStyle !== 'none')"
NAMELESS = """[...document.querySelectorAll('input, select, button')]
    .filter(e => !e.hidden && !e.labels?.length && !e.ariaLabel && !e.textContent.trim()).map(e => e.outerHTML)"""


def test_keys_reach_everything_and_everything_has_a_name(bare):
    typed = bare.log.append("typed", {"text": "hello", "via": "typed"})
    bare.log.append("said", {"text": "hello", "via": "typed"}, typed)
    bare.log.append("flip", {"tag": "on"})
    expect(bare.page.get_by_role("button", name="Undo: back to Off")).to_be_enabled()
    seen = []
    for _ in range(9):
        bare.page.keyboard.press("Tab")
        seen.append(bare.page.evaluate(NAME))
        assert bare.page.evaluate(f"(e => {OUTLINED})(document.activeElement)"), f"no outline at {seen[-1]}"
    order = ["Go to the switch", "on", "Undo: back to Off", "words", "Speak", "Say", str(SETTINGS["threshold"].start)]
    assert seen == [*order, "What “hello” should do", "Forget “hello”"]
    assert bare.page.evaluate(NAMELESS) == []
    for role, name in [("radio", "On"), ("slider", "It acts from"), ("textbox", "Say something to it")]:
        expect(bare.page.get_by_role(role, name=name)).to_have_count(1)  # type: ignore[arg-type]
    expect(bare.page.get_by_role("group", name="The switch")).to_have_count(1)


def test_hostile_and_foreign_texts_are_shown_as_they_are(bare):
    texts = ["<img src=x onerror=alert(1)>", "💡🌙", "灯をつけて", "أضئ المصباح", "x" * 500]
    for text in texts:
        bare.log.append(
            "said", {"text": text, "via": "typed"}, bare.log.append("typed", {"text": text, "via": "typed"})
        )
    expect(bare.items().locator("p")).to_have_text(texts[::-1])
    bare.page.set_viewport_size({"width": 320, "height": 700})
    assert bare.page.evaluate("document.documentElement.scrollWidth") <= 320


def test_what_cannot_be_taken_is_said_in_plain_words(lamp):
    lamp.say("")
    expect(lamp.page.locator("#notices")).to_contain_text("There is nothing in it")
    text = "dark " * 3000
    lamp.say(text)
    expect(lamp.page.locator("#notices")).to_contain_text("at most 10,000 characters, got 15,000; make it shorter")
    expect(lamp.page.locator("#words")).to_have_value(text)  # it is given back
    lamp.say("dark " * 200)
    expect(lamp.newest().locator("p")).to_have_text("dark " * 99 + "dark …")
    lamp.page.get_by_role("button", name="Dismiss").first.click()
    expect(lamp.page.locator(".notice")).to_have_count(1)


def test_two_tabs_show_the_same_and_a_flood_of_flips_ends_right(bare):
    other = bare.page.context.new_page()
    other.goto(bare.address)
    flips = 300
    bare.page.evaluate(
        "n => { const [off, on] = document.querySelectorAll('#switch input');"
        "for (let i = 0; i < n; i++) (i % 2 ? off : on).click(); on.click(); }",
        flips,
    )
    bare.until(lambda: len(bare.log.after(0, ["flip"])) == flips + 1)
    for page in (bare.page, other):
        expect(page.locator("#lamp-now")).to_have_text("Lamp: On")
    other.get_by_label("Off", exact=True).click()
    expect(bare.page.locator("#lamp-now")).to_have_text("Lamp: Off")


def test_the_threshold_moves_by_keys_and_in_all_tabs(bare):
    other = bare.page.context.new_page()
    other.goto(bare.address)
    bare.page.get_by_label("It acts from").press("End")
    bare.until(lambda: bare.log.setting("threshold") == 1)
    expect(other.locator("#threshold-value")).to_have_text("100 %")


def test_the_page_comes_back_by_itself_and_sends_what_was_said_meanwhile(page, tmp_path):
    with serving(app(tmp_path, TAGS)) as address, Log(tmp_path / LOG) as log:
        page.goto(address)
        lamp = Lamp(page, log, tmp_path, address)
        lamp.flip("On")
        expect(page.locator("#lamp-now")).to_have_text("Lamp: On")
    expect(page.locator("body.away")).to_have_count(1)
    expect(page.locator("#status")).to_have_text("The connection to the lamp is lost. Trying again.")
    lamp.say("are you there")
    with serving(app(tmp_path, TAGS), int(address.rpartition(":")[2])), Log(tmp_path / LOG) as log:
        expect(page.locator("body.away")).to_have_count(0)
        lamp = Lamp(page, log, tmp_path, address)
        lamp.until(lambda: [event.body["text"] for event in log.after(0, ["typed"])] == ["are you there"])
        expect(page.locator(".waiting")).to_contain_text("are you there")
        expect(page.locator("#lamp-now")).to_have_text("Lamp: On")


def test_the_microphone_records_for_the_transcriber(page, tmp_path):
    with serving(app(tmp_path, TAGS, transcriber=True)) as address, Log(tmp_path / LOG) as log:
        page.goto(address)
        expect(page.locator("#microphone-note")).to_have_text("Your voice is written down on this machine.")
        button = page.get_by_role("button", name="Speak")
        button.click()
        expect(button).to_have_attribute("aria-pressed", "true")
        page.wait_for_timeout(1500)
        button.click()
        expect(button).to_have_attribute("aria-pressed", "false")
        Lamp(page, log, tmp_path, address).until(lambda: log.newest(["sound"]))
        with wave.open(BytesIO(log.newest(["sound"]).sound)) as sound:
            assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (16000, 1, 2)
            assert sound.getnframes() > 8000
            assert any(sound.readframes(sound.getnframes()))  # the browser's test device beeps


def test_without_a_transcriber_the_browser_recognises_and_the_page_says_what_that_means(bare):
    expect(bare.page.get_by_role("button", name="Speak")).to_be_visible()
    expect(bare.page.locator("#microphone-note")).to_contain_text("may send the sound to the browser's maker")
    bare.page.add_init_script("delete window.SpeechRecognition; delete window.webkitSpeechRecognition")
    bare.page.reload()
    expect(bare.page.locator("#lamp-now")).to_have_text("Lamp: Off")
    expect(bare.page.get_by_role("button", name="Speak")).to_have_count(0)


def test_what_the_browser_recognised_is_said(page, tmp_path):
    page.add_init_script(
        "window.SpeechRecognition = class { start() { this.onresult({results: [[{transcript: 'light please'}]]});"
        " this.onend(); } };"
    )
    with serving(app(tmp_path, TAGS)) as address, Log(tmp_path / LOG) as log:
        page.goto(address)
        page.get_by_role("button", name="Speak").click()
        Lamp(page, log, tmp_path, address).until(lambda: log.newest(["typed"]))
        assert log.newest(["typed"]).body == {"text": "light please", "via": "speech"}
        expect(page.get_by_role("button", name="Speak")).to_have_attribute("aria-pressed", "false")


def test_a_damaged_log_is_said_on_the_page(page, tmp_path):
    (tmp_path / LOG).write_bytes(b"no database" * 1000)
    with serving(app(tmp_path, TAGS)) as address:
        page.goto(address)
        expect(page.locator("#notices")).to_contain_text("is damaged")
        expect(page.locator(".notice")).to_have_count(1)
