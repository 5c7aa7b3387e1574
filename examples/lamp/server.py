"""The web page of the lamp, served from this machine, and the WebSocket between it and the log.

A tab gets what is new in the log as soon as it is there, and writes what the person does into it. Each tab has its own
connections to the log, so all tabs show the same, and a tab that was away goes on after the last event that it has.
The page is plain files; nothing is loaded from elsewhere.

The server sends news: `hello` (only in the first), `events`, `erased`, `lamp`, `settings`, `processes`, `time`. The
page sends the messages of `examples.lamp.messages`, each with a key of its own, and gets an answer with this key.
"""

import asyncio
import contextlib
import dataclasses
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Query, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse

from examples.lamp.guard import Guard
from examples.lamp.log import KINDS, SETTINGS, TRAINER, Event, Log
from examples.lamp.messages import LONGEST, answer
from examples.lamp.supervisor import LOG, PROCESSES, Supervisor
from examples.lamp.tags import DEFAULT, Tags
from warmstart.errors import InputError

PAGE = Path(__file__).with_name("page")
BATCH = 500  # events in a message
LOOK = 0.2  # seconds between two looks at the processes
REMEMBERED = 1000  # keys of messages that were taken: one that is sent again after a lost connection is taken once
SILENT: Any = dict.fromkeys(
    ("auto_configure", "tracing", "metrics", "logs"), False
)  # newer FastAPI can report to others

Ask = Callable[..., Awaitable[Any]]


def app(
    folder: str | Path,
    tags: Tags,
    hosts: Collection[str] = ("localhost",),
    transcriber: bool = False,
    supervisor: Supervisor | None = None,
) -> FastAPI:
    """Make the application that serves the page.

    Parameters
    ----------
    folder : path
        The folder of the log.
    tags : Tags
        The states of the switch.
    hosts : names
        The names of this machine by which a browser may ask for the page. Its addresses in numbers always work.
    transcriber : bool
        Whether a process turns recorded sound into text. If not, the page uses the browser's own recognition.
    supervisor : Supervisor or None
        Tells which processes run.
    """
    application = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, telemetry=SILENT)
    application.add_middleware(Guard, hosts=frozenset(name.lower() for name in hosts))
    path = Path(folder, LOG)
    run = secrets.token_hex(8)  # another run of the server may have another log: the page then begins anew
    taken: deque[str] = deque(maxlen=REMEMBERED)
    hello = {"server": run, "tags": dataclasses.asdict(tags), "transcriber": transcriber}

    for file in PAGE.iterdir():
        application.get("/" if file.name == "index.html" else f"/{file.name}")(_sender(file))

    @application.websocket("/events")
    async def events(tab: WebSocket, server: str = "", after: Annotated[int, Query(ge=0, lt=2**62)] = 0) -> None:
        await tab.accept()
        news = News(tags, supervisor, None, after) if server == run else News(tags, supervisor, hello, 0)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_tell(tab, path, news))
                tasks.create_task(_listen(tab, path, lambda log, text: answer(log, text, tags, transcriber, taken)))
        except* WebSocketDisconnect:
            pass  # the tab was closed
        except* InputError as errors:
            await tab.send_json({"trouble": str(errors.exceptions[0])})
            await tab.close(1011)

    return application


class News:
    """What a tab was not told yet: the events after the number ``after``, and the state where it has changed."""

    def __init__(self, tags: Tags, supervisor: Supervisor | None, hello: Mapping[str, Any] | None, after: int) -> None:
        self.tags = tags
        self.supervisor = supervisor
        self.hello = hello
        self.after = after
        self.state: dict[str, Any] = {}
        self.forgetting: dict[int, int] | None = None  # number of a `forget`: the utterance

    def read(self, log: Log) -> dict[str, Any] | None:
        """Return the next message for the tab, or None if nothing is new."""
        events = log.after(self.after, sorted(KINDS), BATCH)
        if self.forgetting is None:  # a tab that was away may have missed that something was erased
            forgets = log.after(0, ["forget"], 2**62)
            self.forgetting = {event.id: event.about for event in forgets if event.about and event.about <= self.after}
        self.forgetting |= {event.id: event.about for event in events if event.kind == "forget" and event.about}
        end = log.position(TRAINER)  # it moves when no byte of the text is left in the files
        erased = {number: utterance for number, utterance in self.forgetting.items() if number <= end}
        state = {
            "lamp": log.lamp(self.tags),
            "settings": {name: log.setting(name) for name in SETTINGS},
            "processes": self._processes(),
        }
        if not events and not erased and state == self.state:
            return None
        message = {**state, "events": [_told(event) for event in events], "time": time.time()}
        message["erased"] = sorted(set(erased.values()))
        if self.hello:
            message["hello"] = self.hello
        self.after, self.state, self.hello = events[-1].id if events else self.after, state, None
        self.forgetting = {number: self.forgetting[number] for number in self.forgetting.keys() - erased}
        return message

    def _processes(self) -> dict[str, bool]:
        if self.supervisor is None:
            return {}
        running = self.supervisor.pids()
        return {name: name in running for name in PROCESSES}


def _told(event: Event) -> dict[str, Any]:
    return {key: value for key, value in event._asdict().items() if key != "sound"}


def serve(
    folder: str | Path,
    tags: str | Path = DEFAULT,
    host: str = "127.0.0.1",
    port: int = 8765,
    hosts: Collection[str] = ("localhost",),
    options: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Start the processes of the lamp, and serve its page until Ctrl-C or SIGTERM.

    Parameters
    ----------
    folder : path
        Holds the log and the model; it is made if there is none.
    tags : path
        The file with the states of the switch.
    host, port : str, int
        The address to listen at. With the default, only this machine can reach it.
    hosts : names
        As for `app`.
    options : mapping of str to sequence of str
        Options of the processes, as for `Supervisor`. With any for the transcriber, the page records sound for it.

    Raises
    ------
    InputError
        The address, the folder, its log or the file of tags cannot be used.
    """
    states = Tags.read(tags)
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(f"expected a free address of this machine, got {host}, port {port}: {error}") from error
    with listener, Supervisor(Path(folder), Path(tags), options) as supervisor:
        transcriber = bool(options and options.get("transcriber"))
        server(app(folder, states, hosts, transcriber, supervisor)).run(sockets=[listener])


@contextlib.contextmanager
def serving(application: FastAPI, port: int = 0) -> Iterator[str]:
    """Serve in a thread of its own while a block runs, at a free port or the given one; give the address."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        running = server(application)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join()


def server(application: FastAPI) -> uvicorn.Server:
    """Make the server; it refuses longer messages than any that the page sends."""
    return uvicorn.Server(uvicorn.Config(application, log_level="warning", ws_max_size=2 * LONGEST))


def _sender(file: Path) -> Callable[[], FileResponse]:
    return lambda: FileResponse(file)


async def _tell(tab: WebSocket, path: Path, news: News) -> None:
    async with _log(path) as ask:
        while True:
            if (message := await ask(news.read)) is not None:
                await tab.send_json(message)
            else:
                await ask(Log.wait, LOOK)


async def _listen(tab: WebSocket, path: Path, respond: Callable[[Log, str | None], dict[str, str]]) -> None:
    async with _log(path) as ask:
        while True:
            message = await tab.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect
            await tab.send_json(await ask(respond, message.get("text")))


@contextlib.asynccontextmanager
async def _log(path: Path) -> AsyncIterator[Ask]:
    """Open the log in a thread of its own, so that the server never waits for a disk: `ask(function, ...)`."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as thread:
        log = await loop.run_in_executor(thread, Log, path)

        async def ask(function: Callable[..., Any], *arguments: Any) -> Any:
            return await loop.run_in_executor(thread, function, log, *arguments)

        try:
            yield ask
        finally:
            await ask(Log.__exit__)
