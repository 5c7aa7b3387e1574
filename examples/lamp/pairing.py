"""Which utterance a flip of the switch belongs to, and what it teaches. Pure logic; all times are given.

An utterance waits for some seconds, its window. A flip belongs to the newest utterance that waits. It teaches the
state that was set; but a flip that sets back the state from before the utterance, after the lamp had left it, is a
correction: nothing was wanted. A later flip within the window replaces the lesson. A window that ends without a flip
teaches what the model did, since it was not corrected, or that nothing was wanted. It teaches nothing if the model
would have set the state that the lamp had already: nobody could see it, so nobody could object.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Lesson(NamedTuple):
    """What an utterance meant, and how that is known: by flip, correction, silence, or because an act was kept."""

    utterance: int
    tag: str
    reason: str


@dataclass
class _Waiting:
    utterance: int
    time: float
    end: float
    state: str  # of the lamp, before the utterance
    left: bool = False  # the lamp has had another state since
    acted: str | None = None
    flipped: bool = False


class Pairing:
    """The utterances that wait for a flip.

    Parameters
    ----------
    none : str
        The tag of utterances that want nothing.
    window : float
        Seconds that an utterance waits.

    Examples
    --------
    >>> pairing = Pairing("none", window=10)
    >>> pairing.said(1, time=0, state="off")
    >>> pairing.flip("on", time=4)
    Lesson(utterance=1, tag='on', reason='flip')
    >>> pairing.flip("off", time=5)
    Lesson(utterance=1, tag='none', reason='correction')
    >>> pairing.said(2, time=20, state="off")
    >>> pairing.passed(time=31)
    [Lesson(utterance=2, tag='none', reason='silence')]
    """

    def __init__(self, none: str, window: float) -> None:
        self.none, self.window = none, window
        self._waiting: list[_Waiting] = []

    def said(self, utterance: int, time: float, state: str, window: float | None = None) -> None:
        """Let an utterance wait, with a window of its own if one is given. The state is that of the lamp before it."""
        end = time + (self.window if window is None else window)
        self._waiting.append(_Waiting(utterance, time, end, state))

    def acted(self, utterance: int, tag: str) -> None:
        """Note that the model moved the lamp because of an utterance."""
        for waiting in self._waiting:
            if waiting.utterance == utterance:
                waiting.acted = tag
        self._moved(tag)

    def flip(self, tag: str, time: float) -> Lesson | None:
        """Return what a flip teaches, if an utterance waits."""
        waits = [waiting for waiting in self._waiting if waiting.time <= time <= waiting.end]
        lesson = None
        if waits:
            newest = max(waits, key=lambda waiting: (waiting.time, waiting.utterance))
            newest.flipped = True
            correction = newest.left and tag == newest.state
            lesson = Lesson(newest.utterance, *((self.none, "correction") if correction else (tag, "flip")))
        self._moved(tag)
        return lesson

    def passed(self, time: float) -> list[Lesson]:
        """Return what the windows teach that have ended without a flip; their utterances wait no longer."""
        ended = [waiting for waiting in self._waiting if waiting.end < time]
        self._waiting = [waiting for waiting in self._waiting if waiting.end >= time]
        return [self._unflipped(each) for each in ended if not each.flipped and each.acted != each.state]

    def forget(self, utterance: int) -> None:
        """Let an utterance wait no longer."""
        self._waiting = [waiting for waiting in self._waiting if waiting.utterance != utterance]

    @property
    def waiting(self) -> list[int]:
        """The utterances that wait."""
        return [waiting.utterance for waiting in self._waiting]

    @property
    def end(self) -> float:
        """The time when the next window ends; infinite if none waits."""
        return min((waiting.end for waiting in self._waiting), default=float("inf"))

    def _moved(self, tag: str) -> None:
        for waiting in self._waiting:
            waiting.left |= tag != waiting.state

    def _unflipped(self, waiting: _Waiting) -> Lesson:
        if waiting.acted is not None:
            return Lesson(waiting.utterance, waiting.acted, "kept")
        return Lesson(waiting.utterance, self.none, "silence")
