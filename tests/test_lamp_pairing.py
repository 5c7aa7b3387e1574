"""Which utterance a flip belongs to, by cases worked out by hand and by a naive twin that sees everything at once."""

from hypothesis import given
from hypothesis import strategies as st

from examples.lamp.pairing import Lesson, Pairing

STATES = ("on", "dim", "off")


def taught(*steps, window=10):
    """Return the lessons in the order in which they come: `said` as (time, utterance, state), flips as (time, tag)."""
    pairing, lessons = Pairing("none", window), []
    for time, *step in steps:
        lessons += pairing.passed(time)
        if step[0] == "act":
            pairing.acted(*step[1:])
        elif len(step) == 2:
            pairing.said(step[0], time, step[1])
        elif step != ["end"]:
            lessons += [lesson] if (lesson := pairing.flip(step[0], time)) else []
    return lessons


def test_a_flip_teaches_its_state_at_once():
    assert taught((0, 1, "off"), (4, "on")) == [Lesson(1, "on", "flip")]
    assert taught((0, 1, "off"), (10, "on")) == [Lesson(1, "on", "flip")]  # the window ends after its last moment


def test_a_flip_to_the_state_that_was_there_is_a_wish_as_well():
    assert taught((0, 1, "on"), (4, "on")) == [Lesson(1, "on", "flip")]


def test_a_flip_back_is_a_correction():
    assert taught((0, 1, "off"), (4, "on"), (5, "off"))[-1] == Lesson(1, "none", "correction")
    assert taught((0, 1, "off"), (1, "act", 1, "on"), (5, "off")) == [Lesson(1, "none", "correction")]
    assert taught((0, 1, "off"), (4, "on"), (5, "off"), (6, "off"))[-1] == Lesson(1, "none", "correction")


def test_a_flip_to_a_third_state_is_what_was_wanted():
    assert taught((0, 1, "off"), (1, "act", 1, "on"), (5, "dim")) == [Lesson(1, "dim", "flip")]


def test_an_act_that_changes_nothing_leaves_nothing_to_correct():
    assert taught((0, 1, "on"), (1, "act", 1, "on"), (2, "off")) == [Lesson(1, "off", "flip")]
    assert taught((0, 1, "on"), (1, "act", 1, "on"), (2, "on")) == [Lesson(1, "on", "flip")]


def test_later_flips_replace_the_lesson():
    lessons = taught((0, 1, "off"), (1, "on"), (2, "dim"), (3, "on"))
    assert [lesson.tag for lesson in lessons] == ["on", "dim", "on"]


def test_a_window_that_ends_teaches_silence_or_what_was_kept():
    assert taught((0, 1, "off"), (10, "end")) == []
    assert taught((0, 1, "off"), (10.1, "end"), (20, "end")) == [Lesson(1, "none", "silence")]
    assert taught((0, 1, "off"), (1, "act", 1, "on"), (11, "end")) == [Lesson(1, "on", "kept")]
    assert taught((0, 1, "off"), (1, "on"), (11, "end")) == [Lesson(1, "on", "flip")]


def test_a_flip_without_an_utterance_that_waits_teaches_nothing():
    assert taught((0, "on")) == []
    assert taught((0, 1, "off"), (10.5, "on")) == [Lesson(1, "none", "silence")]
    assert taught((5, 1, "off"), (4, "on")) == []  # it was before


def test_an_act_that_nobody_could_see_teaches_nothing():
    assert taught((0, 1, "on"), (1, "act", 1, "on"), (30, "end")) == []
    assert taught((0, 1, "on"), (1, "act", 1, "on"), (2, "off")) == [Lesson(1, "off", "flip")]


def test_a_flip_belongs_to_the_newest_utterance():
    lessons = taught((0, 1, "off"), (2, 2, "off"), (3, "on"), (30, "end"))
    assert lessons == [Lesson(2, "on", "flip"), Lesson(1, "none", "silence")]
    assert taught((2, 2, "off"), (0, 1, "off"), (3, "on")) == [Lesson(2, "on", "flip")]  # it arrived late


def test_an_act_for_an_earlier_utterance_is_undone_for_the_newest():
    assert taught((0, 1, "off"), (1, 2, "off"), (1, "act", 1, "on"), (2, "off")) == [Lesson(2, "none", "correction")]


def test_an_utterance_has_the_window_of_its_time():
    pairing = Pairing("none", 10)
    pairing.said(1, 0, "off", window=2)
    pairing.said(2, 0, "off")
    assert pairing.end == 2
    assert pairing.passed(3) == [Lesson(1, "none", "silence")]
    assert (pairing.waiting, pairing.end) == ([2], 10)


def test_a_forgotten_utterance_waits_no_longer():
    pairing = Pairing("none", 10)
    pairing.said(1, 0, "off")
    pairing.said(2, 1, "off")
    pairing.forget(2)
    pairing.forget(2)
    assert pairing.flip("on", 2) == Lesson(1, "on", "flip")
    assert pairing.passed(20) == []


def test_a_flood_of_flips_ends_with_its_last():
    flips = [(1 + number / 100, STATES[number % 2]) for number in range(1000)]
    lessons = taught((0, 1, "off"), *flips[:900])
    assert len(lessons) == 900
    assert lessons[-1] == Lesson(1, "dim", "flip")


moments = st.lists(
    st.tuples(st.integers(0, 6), st.sampled_from(["said", "flip", "act"]), st.sampled_from(STATES)), max_size=25
)


def naive(events, window):
    """Return the lesson of each utterance from all events (time, kind, tag), each looked at from its utterance."""
    result = {}
    ends = {i: time + window for i, (time, kind, _) in enumerate(events) if kind == "said"}
    for i, end in ends.items():
        state = next((tag for _, kind, tag in reversed(events[:i]) if kind != "said"), "off")
        later = [(j, *event) for j, event in enumerate(events) if j > i and event[1] != "said" and event[0] <= end]
        own = [j for j, time, kind, _ in later if kind == "flip" and max(k for k in ends if k < j) == i]
        acts = [tag for j, _, kind, tag in later if kind == "act" and max(k for k in ends if k < j) == i]
        if own:
            back = events[own[-1]][2] == state and any(tag != state for j, _, _, tag in later if j < own[-1])
            result[i] = Lesson(i, "none", "correction") if back else Lesson(i, events[own[-1]][2], "flip")
        elif not acts:
            result[i] = Lesson(i, "none", "silence")
        elif acts[-1] != state:
            result[i] = Lesson(i, acts[-1], "kept")
    return result


@given(moments, st.sampled_from([4, 9]))
def test_any_order_of_events_teaches_what_a_naive_twin_says(steps, window):
    time, state, newest, events, lessons, pairing = 0, "off", None, [], {}, Pairing("none", window)
    for number, (pause, kind, tag) in enumerate(steps):
        time += pause
        events.append((time, kind, tag))
        new = pairing.passed(time)
        if kind == "said":
            pairing.said(number, time, state)
            newest = number
        elif kind == "act":
            if newest is not None:
                pairing.acted(newest, tag)
            state = tag
        else:
            new += [lesson] if (lesson := pairing.flip(tag, time)) else []
            state = tag
        lessons |= {lesson.utterance: lesson for lesson in new}
    lessons |= {lesson.utterance: lesson for lesson in pairing.passed(time + 100)}
    assert lessons == naive(events, window)
    assert pairing.waiting == []
