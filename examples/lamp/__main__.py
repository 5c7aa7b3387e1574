"""The command line of the lamp, `python -m examples.lamp`: serve, say, flip, forget, log, simulate and stress.

Results go to stdout, errors to stderr in one line. The status is 2 if somebody has to mend something first.
"""

import io
import json
import socket
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from examples.lamp.bridges import open_bridge
from examples.lamp.log import KINDS, Event, Log
from examples.lamp.process import BAD_INPUT
from examples.lamp.supervisor import LOG
from examples.lamp.tags import DEFAULT, Tags
from warmstart.errors import InputError

LOCAL, EVERYWHERE = ("localhost", "127.0.0.1", "::1"), ("0.0.0.0", "::")  # noqa: S104 (only if asked for)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
UsageError: Any = typer.BadParameter.__mro__[1]  # typer does not export it in all versions

Folder = Annotated[Path, typer.Option("--folder", help="Holds the log and the model.")]
TagsFile = Annotated[Path, typer.Option("--tags", metavar="TOML", help="The states of the switch.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DATA = Path("lamp-data")


@app.callback()
def lamp() -> None:
    """Work with a lamp that learns when you want light, from your words and your flips of its switch."""


@app.command()
def serve(
    folder: Folder = DATA,
    host: Annotated[str, typer.Option(help="Address to listen at. 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page.")] = 8765,
    tags: TagsFile = DEFAULT,
    speech: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A speech model: wav2vec2 with a CTC head, or Vosk.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="PATH", help="A text file; each line that is added to it is an utterance.")
    ] = None,
    mqtt: Annotated[
        str | None, typer.Option(metavar="HOST:PORT/TOPIC", help="A real lamp that listens to an MQTT topic.")
    ] = None,
    home_assistant: Annotated[
        str | None, typer.Option(metavar="URL", help="A real lamp of Home Assistant; with --entity.")
    ] = None,
    entity: Annotated[
        str | None, typer.Option(metavar="NAME", help="The lamp in Home Assistant, such as light.kitchen.")
    ] = None,
    token: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="File with its access token. Without it: WARMSTART_LAMP_TOKEN."),
    ] = None,
) -> None:
    """Start the lamp and its page, until Ctrl-C."""
    try:
        from examples.lamp.server import serve as serve_page
    except ImportError as error:
        raise InputError(f"expected the extra lamp, got {error}; pip install 'warmstart[lamp]'") from error
    states = Tags.read(tags)
    open_bridge(states, mqtt, home_assistant, entity, token)  # so that what is wrong is said here
    if speech is not None:
        from examples.lamp.transcriber import kind_of

        kind_of(speech)
    given = {"--mqtt": mqtt, "--home-assistant": home_assistant, "--entity": entity, "--token": token}
    options = {
        "recorder": _options({"--file": file}),
        "transcriber": _options({"--model": speech}),
        "operator": _options(given),
    }
    here = socket.gethostname()
    names = ["localhost"] if host in LOCAL else ["localhost", host, here, f"{here}.local"]
    reached = {**dict.fromkeys(LOCAL, "localhost"), **dict.fromkeys(EVERYWHERE, here)}.get(host, host)
    shown = f"[{reached}]" if ":" in reached else reached
    typer.echo(f"{states.name}: http://{shown}:{port}/ (Ctrl-C ends it)")
    serve_page(folder, tags, host, port, names, options)


def _options(given: Mapping[str, object]) -> list[str]:
    return [word for name, value in given.items() if value is not None for word in (name, str(value))]


@app.command()
def say(
    text: Annotated[str, typer.Argument(help="What you would say.")], folder: Folder = DATA, as_json: Json = False
) -> None:
    """Say something, as if it were typed into the page."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError("expected text in UTF-8, got bytes that are not; set the terminal to UTF-8") from error
    _append(folder, as_json, "typed", {"text": text, "via": "typed"})


@app.command()
def flip(
    tag: Annotated[str, typer.Argument(help="A state of the switch.")],
    folder: Folder = DATA,
    tags: TagsFile = DEFAULT,
    as_json: Json = False,
) -> None:
    """Set the switch."""
    states = [state.name for state in Tags.read(tags).states]
    if tag not in states:
        raise InputError(f"expected one of the states {', '.join(states)}, got {tag!r}")
    _append(folder, as_json, "flip", {"tag": tag})


@app.command()
def forget(
    utterance: Annotated[int, typer.Argument(metavar="ID", help="Number of what was said, as `log` shows it.")],
    folder: Folder = DATA,
    as_json: Json = False,
) -> None:
    """Take an utterance out of model and log, as if it had never been said. The running trainer does it."""
    with _log(folder) as log:
        event = log.event(utterance) if 0 < utterance < 2**62 else None
    if event is None or event.kind != "said":
        found = "nothing" if event is None else event.kind
        raise InputError(f"expected the number of what was said, got {utterance}, which is {found}; see the log")
    _append(folder, as_json, "forget", {}, utterance)


@app.command("log")
def show_log(
    folder: Folder = DATA,
    number: Annotated[int, typer.Option("-n", min=1, help="Number of events.")] = 20,
    as_json: Json = False,
) -> None:
    """Show the newest events, the oldest of them first."""
    events: list[Event] = []
    with _log(folder) as log:
        kinds = sorted(KINDS)
        while len(events) < number and (event := log.newest(kinds, events[-1].id if events else 2**62)):
            events.append(event)
    events.reverse()
    if as_json:
        typer.echo(json.dumps([_told(event) for event in events], ensure_ascii=False))
        return
    for event in events:
        time = datetime.fromtimestamp(event.time).strftime("%Y-%m-%d %H:%M:%S")
        about = "" if event.about is None else f" about {event.about}"
        body = json.dumps(event.body, ensure_ascii=False)
        typer.echo(f"{event.id:>6}  {time}  {event.kind:<7}{about}  {body}")


def _told(event: Event) -> dict[str, Any]:
    """Return an event with the size of its recording in place of the recording."""
    return {**event._asdict(), "sound": None if event.sound is None else len(event.sound)}


@app.command("simulate")
def run_simulation(
    file: Annotated[Path, typer.Argument(metavar="TSV", help="Columns text and label, the tag that is meant.")],
    source: Annotated[
        str | None, typer.Option(help="Play only rows with this in their column source, and test on all others.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Order of the rows, and what the person does.")] = 0,
    errors: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the words to drop, swap or misspell, as speech recognition.")
    ] = 0.0,
    baselines: Annotated[bool, typer.Option(help="Play to the baselines too.")] = True,
    tags: TagsFile = DEFAULT,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    as_json: Json = False,
) -> None:
    """Play a person with a switch from a file of utterances, and score the lamp beside simple baselines."""
    from examples.lamp.simulator import play, told
    from warmstart.progress import Reporter

    with Reporter(quiet) as progress:
        result = play(file, Tags.read(tags), source, seed, errors, baselines, progress)
    typer.echo(json.dumps(result) if as_json else told(result))


@app.command("stress")
def run_stress(
    interactions: Annotated[int, typer.Option(min=1, help="Utterances, most of them with a flip.")] = 1000,
    kill_every: Annotated[int, typer.Option(min=1, help="Interactions from one kill to the next.")] = 20,
    as_json: Json = False,
) -> None:
    """Kill a process now and then while somebody talks and flips, and count what is lost."""
    import tempfile

    from examples.lamp.stress import stress

    with tempfile.TemporaryDirectory() as folder:
        _print(stress(Path(folder), interactions, kill_every), as_json)


def _log(folder: Path) -> Log:
    if not (folder / LOG).is_file():
        raise InputError(f"expected the folder of a lamp, got {folder}; start it with serve, or name it with --folder")
    return Log(folder / LOG)


def _append(folder: Path, as_json: bool, kind: str, body: dict[str, Any], about: int | None = None) -> None:
    with _log(folder) as log:
        _print({"event": log.append(kind, body, about)}, as_json)


def _print(result: Mapping[str, object], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result))
    else:
        for name, value in result.items():
            typer.echo(f"{name.replace('_', ' ')}: {value}")


def main() -> int:
    """Run the command line. The status is 2 after wrong usage or input, and 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):  # what was said may not be in its encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return app(sys.argv[1:] or ["--help"], prog_name="python -m examples.lamp", standalone_mode=False) or 0
    except InputError as error:
        why = str(error)
    except UsageError as error:
        where = "python -m examples.lamp" if error.ctx is None else error.ctx.command_path
        why = f"{error.format_message().rstrip('.')}; see {where} --help"
    sys.stderr.write(f"error: {why}\n")
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
