"""Every observer hears every event, whatever becomes of the others."""

import pytest

from paretune.ask.event import Broadcast, Event
from paretune.errors import OutputError


class Heard:
    def __init__(self):
        self.events = []

    def on(self, event):
        self.events.append(event)


class Failing:
    def __init__(self, error):
        self.error = error

    def on(self, event):
        raise self.error


def test_a_broadcast_tells_all_in_order():
    first, second = Heard(), Heard()
    events = [Event("stage", "one"), Event("end", "two", {"n": 1})]
    watch = Broadcast.to(iter((first, Broadcast((second,)))))
    for event in events:
        watch.on(event)
    assert first.events == second.events == events


def test_the_failure_of_one_is_not_that_of_the_others():
    heard = Heard()
    with pytest.warns(RuntimeWarning, match=r"observer Failing failed: KeyError\('x'\)"):
        Broadcast((Failing(KeyError("x")), heard)).on(Event("stage"))
    assert len(heard.events) == 1


def test_what_the_user_must_know_is_passed_on():
    with pytest.raises(OutputError):
        Broadcast((Failing(OutputError("no space left on device")),)).on(Event("stage"))
