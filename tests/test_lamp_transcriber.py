"""Recorded sound becomes text: WAV files, wav2vec2 (a tiny random model), Vosk, and the process beside the log."""

import contextlib
import importlib
import importlib.util
import io
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import types
import wave
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from examples.lamp.log import Log
from examples.lamp.sound import read_wav
from examples.lamp.transcriber import Vosk, Wav2Vec2, kind_of, load, open_transcriber, step
from warmstart.errors import InputError

ROOT = Path(__file__).parents[1]
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJ"]


def wav(samples, rate=16_000, channels=1, width=2):
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((channels, width, rate, 0, "NONE", ""))
        writer.writeframes(np.asarray(samples).astype({1: "u1", 2: "<i2", 4: "<i4"}[width]).tobytes())
    return file.getvalue()


def tone(hertz, rate=16_000, seconds=0.5):
    return 8000 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def installed(module):
    """Skip without a package, unless nothing may be skipped."""
    if os.environ.get("WARMSTART_LAMP") != "1" and importlib.util.find_spec(module) is None:
        pytest.skip(f"needs the package {module}")


# WAV files


def test_samples_at_the_wanted_rate_come_as_they_are():
    samples = np.array([0, 1, -1, 32767, -32768] * 400)
    assert read_wav(wav(samples)).tolist() == samples.tolist()


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_another_rate_gives_the_same_tone(rate):
    heard, expected = read_wav(wav(tone(440, rate), rate)).astype(float), tone(440)
    assert len(heard) == pytest.approx(len(expected), abs=1)
    middle = slice(400, 7600)  # the filter sees silence beyond the ends
    assert np.abs(heard[middle] - expected[middle]).max() < 0.02 * 8000


def test_what_the_wanted_rate_cannot_carry_is_filtered_out():
    """A tone of 15 kHz would be heard at 1 kHz if samples were only left out."""
    heard = read_wav(wav(tone(15_000, 48_000), 48_000))
    assert np.abs(heard[400:7600]).max() < 0.01 * 8000
    assert np.abs(tone(15_000, 48_000)[::3]).max() > 0.8 * 8000


def test_a_loud_recording_is_not_turned_over():
    square = np.where(tone(50, 48_000) > 0, 32767, -32768)
    heard = read_wav(wav(square, 48_000)).astype(float)
    loud = np.abs(tone(50)) > 4000  # away from the edges
    assert (np.sign(heard[loud]) == np.sign(tone(50)[loud])).all()


def cut(sound):
    return sound[:-4000]


@pytest.mark.parametrize(
    ("sound", "found"),
    [
        (b"", "a part of one"),
        (b"\x1aE\xdf\xa3 webm, as some browsers record", "does not start with RIFF"),
        (wav(tone(440))[:30], "a part of one"),
        (wav(tone(440), channels=2), "2 of 16 bits at 16,000"),
        (wav(tone(440), width=1), "1 of 8 bits at 16,000"),
        (wav(tone(440), rate=4_000), "1 of 16 bits at 4,000"),
        (wav(tone(440), rate=400_000), "1 of 16 bits at 400,000"),
        (wav(tone(440, seconds=0.05)), "0.1 to 60 seconds, got 0.05"),
        (wav(np.zeros(61 * 8000), rate=8_000), "0.1 to 60 seconds, got 61.00"),
        (cut(wav(tone(440))), "got 0.38 of 0.50"),
        (wav([]), "got 0.00"),
    ],
)
def test_what_is_no_sentence_of_sound(sound, found):
    with pytest.raises(InputError, match=r"^sound: expected .*, got") as caught:
        read_wav(sound)
    assert found in str(caught.value)


def test_damaged_files_are_refused_or_read():
    """Cut anywhere, or with any byte of the header changed."""
    sound = wav(tone(440, seconds=0.11))
    for length in range(len(sound)):
        with pytest.raises(InputError, match=r"^sound: expected"):
            read_wav(sound[:length])
    for place, value in itertools.product(range(44), (0, 1, 127, 255)):
        with contextlib.suppress(InputError):
            assert len(read_wav(sound[:place] + bytes([value]) + sound[place + 1 :])) > 0


def test_a_compressed_wav_file():
    format_7 = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 7, 1, 16_000, 16_000, 1, 8) + b"data" + struct.pack("<I", 0)
    with pytest.raises(InputError, match="unknown format: 7"):
        read_wav(b"RIFF" + struct.pack("<I", len(format_7)) + format_7)


# wav2vec2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    installed("transformers")
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    folder = tmp_path_factory.mktemp("wav2vec2")
    vocabulary = {letter: number for number, letter in enumerate(LETTERS)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=16_000)
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        vocab_size=len(LETTERS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8, 8), conv_stride=(20, 16), conv_kernel=(20, 16), num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2, pad_token_id=0,
    )  # fmt: skip
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    return folder


def decoded(numbers):
    """CTC by hand: of equal neighbours one, then without blanks and other marks; | is a space."""
    letters = [LETTERS[number] for number, _ in groupby(numbers)]
    return "".join(letter for letter in letters if len(letter) == 1).replace("|", " ").strip()


def test_a_recorded_tone_becomes_the_text_of_the_most_probable_letters(folder):
    transcriber = open_transcriber(folder)
    assert isinstance(transcriber, Wav2Vec2)
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    model = transformers.Wav2Vec2ForCTC.from_pretrained(folder).eval()
    noise = np.random.default_rng(0).normal(0, 3000, 8000)
    texts = set()
    for samples in (tone(440), tone(3000), noise):
        heard = np.rint(samples).astype(np.int16) / 32768
        scaled = (heard - heard.mean()) / np.sqrt(heard.var() + 1e-7)  # as the feature extractor documents
        with torch.inference_mode():
            scores = model(torch.tensor(scaled[None], dtype=torch.float32)).logits[0]
        expected = decoded(scores.argmax(-1).tolist())
        assert transcriber.text(wav(np.rint(samples))) == expected.lower()
        texts.add(expected)
    assert len(texts) > 1
    assert all(texts)


def test_nothing_is_fetched(folder, monkeypatch):
    def refuse(*_):
        raise AssertionError("no connection is to be made")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    open_transcriber(folder)


def test_a_model_that_cannot_write_text_is_refused(folder, tmp_path):
    transformers = importlib.import_module("transformers")
    copy = shutil.copytree(folder, tmp_path / "copy")
    transformers.Wav2Vec2Model.from_pretrained(folder).save_pretrained(copy)
    with pytest.raises(InputError, match="not trained to write text"):
        open_transcriber(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.json"])
def test_a_damaged_wav2vec2_folder(folder, tmp_path, name):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / name).write_bytes(b"damaged")
    with pytest.raises(InputError, match="expected a wav2vec2 model with a CTC head and its processor, got") as caught:
        open_transcriber(copy)
    assert "\n" not in str(caught.value)


# Vosk


class Recognizer:
    """Follows https://alphacephei.com/vosk: pieces end at silence, a result is JSON, and its text may be empty."""

    def __init__(self, model, rate):
        assert isinstance(model, FakeModel)
        assert rate == 16_000
        self.words, self.data = [], b""

    def AcceptWaveform(self, data):  # noqa: N802
        assert isinstance(data, bytes)
        assert len(data) % 2 == 0
        loud = np.abs(np.frombuffer(data, "<i2").astype(int)).max() > 1000
        self.data += data
        if loud:
            self.words.append(f"word{len(self.words)}")
        return 0 if loud else 1

    def Result(self):  # noqa: N802
        words, self.words = self.words, []
        return json.dumps({"text": " ".join(words)})

    FinalResult = Result


class FakeModel:
    def __init__(self, model_path=None, model_name=None, lang=None):
        if not Path(model_path, "am", "final.mdl").exists():
            raise Exception("Failed to create a model")


@pytest.fixture
def vosk_folder(tmp_path):
    for name in ("am", "conf"):
        (tmp_path / "vosk" / name).mkdir(parents=True)
    (tmp_path / "vosk" / "am" / "final.mdl").write_bytes(b"model")
    return tmp_path / "vosk"


def test_vosk_gets_all_samples_and_its_pieces_are_put_together(vosk_folder, monkeypatch):
    made = []

    class Noted(Recognizer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    fake = types.SimpleNamespace(Model=FakeModel, KaldiRecognizer=Noted, SetLogLevel=lambda level: None)
    monkeypatch.setitem(sys.modules, "vosk", fake)
    transcriber = open_transcriber(vosk_folder)
    assert isinstance(transcriber, Vosk)
    samples = np.rint(np.concatenate([tone(440), np.zeros(16_000), tone(440, seconds=0.3)]))
    assert transcriber.text(wav(samples)) == "word0 word1 word0 word1"
    assert transcriber.text(wav(np.zeros(16_000))) == ""
    assert np.frombuffer(made[0].data, "<i2").tolist() == samples.tolist()
    assert len(made) == 2


def test_the_names_are_those_of_the_real_package(vosk_folder):
    installed("vosk")
    vosk = importlib.import_module("vosk")
    for name in ("AcceptWaveform", "Result", "FinalResult"):
        assert callable(getattr(vosk.KaldiRecognizer, name))
    assert callable(vosk.SetLogLevel)
    with pytest.raises(InputError, match="expected a Vosk model, got: Failed to create a model"):
        Vosk(vosk_folder)


# Which one, and what is missing


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, "No such file"),
        ({"config.json": '{"model_type": "whisper"}'}, "got a whisper model"),
        ({"config.json": "{"}, "got"),
        ({"config.json": "[]"}, "got"),
        ({"config.json": "{}"}, "model_type"),
        ({"am": ""}, "No such file"),
    ],
)
def test_a_folder_without_a_speech_model(tmp_path, files, found):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=r"wav2vec2 .* or with a Vosk model") as caught:
        kind_of(tmp_path)
    assert found in str(caught.value)


@pytest.mark.parametrize(
    ("module", "files", "mend"),
    [
        ("transformers", {"config.json": '{"model_type": "wav2vec2"}'}, r"pip install 'warmstart\[hf\]'"),
        ("vosk", {"am/final.mdl": "", "conf/mfcc.conf": ""}, "pip install vosk"),
    ],
)
def test_a_package_that_is_not_installed(tmp_path, monkeypatch, module, files, mend):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=mend):
        open_transcriber(tmp_path)


# The process


class Echo:
    def text(self, sound):
        if sound == b"fault":
            raise RuntimeError("out of memory")
        return f"{len(read_wav(sound))} samples"


def test_a_recording_becomes_typed_and_is_taken_out_in_one_step(tmp_path):
    with Log(tmp_path / "log") as log:
        first, second = (
            log.append("sound", sound=wav(tone(440))),
            log.append("sound", sound=wav(tone(440, 8_000), 8_000)),
        )
        assert step(log, Echo())
        (typed,) = log.after(0, ["typed"])
        assert (typed.about, typed.body) == (first, {"text": "8000 samples", "via": "speech"})
        assert (log.event(first).sound, log.event(second).sound is None) == (None, False)
        assert step(log, Echo())
        assert not step(log, Echo())
        assert [event.about for event in log.after(0, ["typed"])] == [first, second]
        assert log.after(0, ["trouble"]) == []


def test_a_process_that_dies_while_it_listens_leaves_the_recording(tmp_path):
    class Dying:
        def text(self, sound):
            raise KeyboardInterrupt

    with Log(tmp_path / "log") as log:
        number = log.append("sound", sound=wav(tone(440)))
        with pytest.raises(KeyboardInterrupt):
            step(log, Dying())
    with Log(tmp_path / "log") as log:
        assert log.event(number).sound == wav(tone(440))
        assert step(log, Echo())
        assert [event.about for event in log.after(0, ["typed"])] == [number]


@pytest.mark.parametrize(
    ("transcriber", "sound", "why"),
    [
        (Echo(), b"no WAV file", "sound: expected a WAV file"),
        (Echo(), None, "sound: expected a WAV file"),
        (Echo(), b"fault", "out of memory"),
        (load(None), wav(tone(440)), "start with --speech FOLDER"),
        (load(Path("no-such-folder")), wav(tone(440)), "no-such-folder: expected a folder with"),
    ],
)
def test_what_cannot_be_understood_is_said_and_does_not_stop_the_next(tmp_path, transcriber, sound, why):
    with Log(tmp_path / "log") as log:
        number = log.append("sound", sound=sound)
        log.append("sound", sound=wav(tone(440)))
        assert step(log, transcriber)
        (trouble,) = log.after(0, ["trouble"])
        assert (trouble.about, trouble.body["process"]) == (number, "transcriber")
        assert why in trouble.body["why"]
        assert log.event(number).sound is None
        assert step(log, Echo())
        assert [event.body["text"] for event in log.after(0, ["typed"])] == ["8000 samples"]


def test_the_process_beside_the_log(tmp_path, folder):
    command = [sys.executable, "-m", "examples.lamp.transcriber", "--log", tmp_path / "log", "--model", folder]
    with Log(tmp_path / "log") as log, subprocess.Popen(command, cwd=ROOT) as process:
        try:
            log.append("sound", sound=wav(tone(440)))
            log.append("sound", sound=b"no WAV file")
            end = time.monotonic() + 60
            while not log.after(0, ["trouble"]) and process.poll() is None and time.monotonic() < end:
                log.wait(1)
            (typed,), (trouble,) = log.after(0, ["typed"]), log.after(0, ["trouble"])
        finally:
            process.terminate()
    assert typed.body == {"text": open_transcriber(folder).text(wav(tone(440))), "via": "speech"}
    assert "sound: expected a WAV file" in trouble.body["why"]


def test_synthesised_speech_is_read(tmp_path, folder):
    """A real recording of another program, with its own header and rate, goes all the way."""
    if os.environ.get("WARMSTART_LAMP") != "1" and shutil.which("espeak-ng") is None:
        pytest.skip("needs espeak-ng")
    path = tmp_path / "speech.wav"
    subprocess.run(["espeak-ng", "-w", path, "turn on the light"], check=True)  # noqa: S607
    with wave.open(str(path)) as file:
        rate, frames = file.getframerate(), file.getnframes()
    assert rate != 16_000
    samples = read_wav(path.read_bytes())
    assert len(samples) == pytest.approx(frames * 16_000 / rate, abs=1)
    assert np.abs(samples).max() > 1000
    assert open_transcriber(folder).text(path.read_bytes())
