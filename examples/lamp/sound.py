"""Recordings: WAV files of one channel become samples at the rate that speech models are trained with."""

import io
import wave
from math import gcd

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from warmstart.errors import InputError

RATE = 16_000  # samples a second
RATES = range(8_000, 192_001)
SHORTEST, LONGEST = 0.1, 60.0  # seconds


def read_wav(sound: bytes) -> NDArray[np.int16]:
    """Return the samples of a WAV file at 16,000 a second.

    Raises
    ------
    InputError
        It is no WAV file of one channel with 16 bits a sample, or too short or too long.
    """
    try:
        with wave.open(io.BytesIO(sound)) as file:
            channels, width, rate, promised = file.getparams()[:4]
            data = file.readframes(promised)
    except (wave.Error, EOFError, RuntimeError) as error:  # the last one without words, for a chunk that ends too early
        found = str(error) or "a part of one"
        raise InputError(f"sound: expected a WAV file, got: {found}; record it again") from error
    if (channels, width) != (1, 2) or rate not in RATES:
        raise InputError(
            "sound: expected one channel, 16 bits a sample and 8,000 to 192,000 samples a second, got "
            f"{channels} of {8 * width} bits at {rate:,}; record or convert it so"
        )
    samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2")
    seconds = len(samples) / rate
    if len(samples) < promised or not SHORTEST <= seconds <= LONGEST:
        found = f"{seconds:.2f}" + (f" of {promised / rate:.2f}" if len(samples) < promised else "")
        raise InputError(
            f"sound: expected {SHORTEST} to {LONGEST:.0f} seconds, got {found}; record one sentence at a time"
        )
    return _resampled(samples, rate)


def _resampled(samples: NDArray[np.int16], rate: int) -> NDArray[np.int16]:
    """Change the number of samples a second, without what the new one cannot carry (a low-pass filter)."""
    common = gcd(rate, RATE)
    if rate == RATE:
        return samples
    changed: NDArray[np.float64] = resample_poly(samples.astype(np.float64), RATE // common, rate // common)
    limits = np.iinfo(np.int16)
    return np.clip(np.rint(changed), limits.min, limits.max).astype(np.int16)
