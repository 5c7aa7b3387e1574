"""Make the pictures of the page: teach a lamp as a person would, and take the page in light and dark.

    python -m examples.lamp.page_picture docs/images/lamp.png    (and lamp-dark.png)

It needs playwright, Pillow, and Debian's chromium and fonts-inter. What the lamp shows is what
it has learnt in that half minute.
"""

import io
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from bitcipher.files import replacing
from examples.lamp.log import Log
from examples.lamp.server import app, serving
from examples.lamp.supervisor import LOG, Supervisor
from examples.lamp.tags import Tags

WIDTH, HEIGHT = 1200, 1116
WINDOW = 0.5  # seconds in which a flip belongs to a sentence
PATIENCE = 30.0  # seconds
WANTED = {"+": "on", "-": "off", " ": "none"}
CONVERSATION = """\
+it is getting dark in here
 what will the weather be like tomorrow
-good night
 call anna please
+I cannot see a thing
 play some music
-I am going to bed
+so dark today
 what time is it
-we are leaving, good night
 add milk to the shopping list
+I want to read my book
 how are you
-time for bed
+it is dark, I cannot see the door
 remind me to call the bank
-I am leaving for work
 what is on the radio tomorrow
+I am home and it is dark
-good night everybody
 please play the news
+too dark to read
 add bread to the list
-going to bed now
 how will the weather be
+I cannot see my book
-good night, time to sleep
 what time will you be home
 call the bank please
+it is too dark in here to read"""


def main() -> None:
    """Teach a lamp in a folder that is thrown away, and write the two pictures."""
    path, tags = Path(sys.argv[1]), Tags.read()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Supervisor(folder) as supervisor, Log(folder / LOG) as log:
            log.set("window", WINDOW)
            _until(lambda: len(supervisor.pids()) == 5)
            for line in CONVERSATION.splitlines():
                _live(log, tags, line[1:], WANTED[line[0]])
            with serving(app(folder, tags, supervisor=supervisor)) as address:
                _take(address, path)


def _live(log: Log, tags: Tags, text: str, wanted: str) -> None:
    """Say something, see what the lamp does, and set it right."""
    before = log.lamp(tags)
    typed = log.append("typed", {"text": text, "via": "typed"})
    _until(lambda: bool(log.about(typed, ["said"])))
    said = log.about(typed, ["said"])[0].id
    _until(lambda: bool(log.about(said, ["guess"])))
    if log.about(said, ["guess"])[0].body["act"]:
        _until(lambda: bool(log.about(said, ["act"])))
    right = before if wanted == tags.none else wanted
    if log.lamp(tags) != right:
        log.append("flip", {"tag": right})
    _until(lambda: bool(log.about(said, ["lesson"])))
    lesson = log.about(said, ["lesson"])[-1].id
    _until(lambda: log.position("trainer") >= lesson)
    trained = log.newest(["trained"])
    _until(lambda: trained is not None and log.position("anticipator") >= trained.id)
    time.sleep(WINDOW)


def _take(address: str, path: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme, target in (("light", path), ("dark", path.with_stem(f"{path.stem}-dark"))):
            page = browser.new_page(
                viewport={"width": WIDTH, "height": HEIGHT},
                color_scheme="dark" if scheme == "dark" else "light",
                reduced_motion="reduce",
            )
            page.goto(address)
            page.locator("#utterances li").first.wait_for()
            page.wait_for_timeout(500)
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            with replacing(target) as temporary:
                picture.point(lambda value: value | 1).save(temporary, optimize=True)  # soft light needs many bits
        browser.close()


def _until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"expected the lamp to answer within {PATIENCE:.0f} seconds")
        time.sleep(0.01)


if __name__ == "__main__":
    main()
