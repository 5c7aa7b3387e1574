"""The process that turns recorded sound into text, with a speech model in a folder of this machine.

Two kinds of model are understood, and what the folder holds tells which one it is: a wav2vec2 model of Hugging Face
transformers with a CTC head (`config.json`), and a model of Vosk (`am/` and `conf/`). What they need is loaded with
them: without a model this is a light process, which only says that there is none.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from examples.lamp.log import Log
from examples.lamp.process import arguments, run
from examples.lamp.tags import Tags
from warmstart.errors import InputError
from warmstart.formats import read_settings
from warmstart.records import parse_json

PROCESS = "transcriber"
CHUNK = 8_000  # bytes that Vosk gets at a time
MODELS = (
    "a folder with a wav2vec2 model of Hugging Face transformers (config.json) or with a Vosk model (am/ and conf/, "
    "from https://alphacephei.com/vosk/models)"
)


class Transcriber(Protocol):
    """Speech to text."""

    def text(self, sound: bytes) -> str:
        """Return what is said in a WAV file; the empty text if nothing is.

        Raises
        ------
        InputError
            It is no WAV file of one channel with 16 bits a sample, or too short or too long.
        """


class Wav2Vec2:
    """A wav2vec2 model with a CTC head, in a local folder, by transformers and torch.

    Parameters
    ----------
    folder : Path
        The folder that `save_pretrained` of the model and its processor wrote. Nothing is downloaded.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import transformers
        except ImportError as error:
            raise InputError("expected transformers, found none; pip install 'warmstart[hf]'") from error
        try:
            self._processor: Any = transformers.Wav2Vec2Processor.from_pretrained(folder, local_files_only=True)
            read: Any = transformers.Wav2Vec2ForCTC.from_pretrained
            model, loaded = read(folder, local_files_only=True, output_loading_info=True)
            if any(name.startswith("lm_head") for name in loaded["missing_keys"]):
                raise LookupError("a model that was not trained to write text")
        except Exception as error:  # damaged files have errors of many classes
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{folder}: expected a wav2vec2 model with a CTC head and its processor, got: {first}; choose another "
                "folder"
            ) from error
        self._model: Any = model.eval()

    def text(self, sound: bytes) -> str:
        """Return the most probable characters, without blanks and repetitions. Text all in capitals is made small."""
        import torch

        from examples.lamp.sound import RATE, read_wav

        samples = read_wav(sound) / 2**15
        inputs = self._processor(samples, sampling_rate=RATE, return_tensors="pt")
        with torch.inference_mode():
            scores = self._model(**inputs).logits  # (1, frames, characters)
        (text,) = self._processor.batch_decode(scores.argmax(-1), skip_special_tokens=True)
        return str(text.lower() if text.isupper() else text).strip()


class Vosk:
    """A Vosk model in a local folder, by the package vosk.

    Parameters
    ----------
    folder : Path
        An unpacked model from https://alphacephei.com/vosk/models. Nothing is downloaded.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import vosk
        except ImportError as error:
            raise InputError("expected the package vosk, found none; pip install vosk") from error
        vosk.SetLogLevel(-1)
        try:
            self._model = vosk.Model(str(folder.absolute()))
        except Exception as error:  # what vosk raises has no other class
            raise InputError(f"{folder}: expected a Vosk model, got: {error}; unpack it again") from error

    def text(self, sound: bytes) -> str:
        """Return the words of all pieces that the recognizer hears, one after another."""
        from vosk import KaldiRecognizer

        from examples.lamp.sound import RATE, read_wav

        data = read_wav(sound).astype("<i2").tobytes()
        recognizer = KaldiRecognizer(self._model, RATE)
        heard = []
        for begin in range(0, len(data), CHUNK):
            if recognizer.AcceptWaveform(data[begin : begin + CHUNK]):
                heard.append(recognizer.Result())
        heard.append(recognizer.FinalResult())
        return " ".join(text for piece in heard if (text := json.loads(piece)["text"]))


def kind_of(folder: Path) -> type[Wav2Vec2] | type[Vosk]:
    """Return the class for the speech model in a folder, without loading it.

    Raises
    ------
    InputError
        There is no speech model that is known.
    """
    if (folder / "am").is_dir() and (folder / "conf").is_dir():
        return Vosk
    try:
        config = parse_json(read_settings(folder / "config.json"))
        model_type = config["model_type"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{folder}: expected {MODELS}, got: {error or type(error).__name__}; choose it") from error
    if model_type != "wav2vec2":
        raise InputError(f"{folder}: expected {MODELS}, got a {model_type} model; choose another one")
    return Wav2Vec2


def open_transcriber(folder: Path) -> Transcriber:
    """Load the speech model in a folder.

    Raises
    ------
    InputError
        There is no speech model that is known, it cannot be read, or its package is not installed.
    """
    return kind_of(folder)(folder)


def step(log: Log, transcriber: Transcriber | InputError) -> bool:
    """Turn the next recording of the log into text and take it out; return whether there was one.

    With an error in place of a transcriber, or with a recording that cannot be understood, what is written is why.
    """
    event = log.next(PROCESS, ("sound",))
    if event is None:
        return False
    try:
        if isinstance(transcriber, InputError):
            raise transcriber
        kind, body = "typed", {"text": transcriber.text(event.sound or b""), "via": "speech"}
    except Exception as error:  # else the next process would fail at the same recording
        why = str(error) if isinstance(error, InputError) else f"expected to understand a recording, got {error!r}"
        kind, body = "trouble", {"process": PROCESS, "why": why}
    with log.transaction():
        log.append(kind, body, event.id)
        log.blank(event.id)
        log.move(PROCESS, event.id)
    return True


def load(folder: Path | None) -> Transcriber | InputError:
    """Return the transcriber for a folder, or why there is none."""
    if folder is None:
        return InputError(f"expected a speech model, got none; start with --speech FOLDER, where FOLDER is {MODELS}")
    try:
        return open_transcriber(folder)
    except InputError as error:
        return error


def prepare(log: Log, tags: Tags, options: argparse.Namespace) -> Callable[[], bool]:
    """Load the model; return what transcribes the next recording."""
    transcriber = load(options.model)
    return lambda: step(log, transcriber)


def main() -> int:
    """Transcribe each recording of the log, until the process is stopped."""
    parser = arguments("Turn the recordings of the log into text.")
    parser.add_argument("--model", type=Path, help=MODELS)
    return run(parser, prepare)


if __name__ == "__main__":
    sys.exit(main())
