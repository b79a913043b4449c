"""Room for workers: it is waited for, and not for ever."""

import re
import threading

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from s2l_ray import events
from s2l_ray.distributed import resources, waiting
from s2l_ray.errors import ConfigError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

TWO = resources.Workers("reference", 2, 2, cpus=1)
THREE = resources.Workers("target", 3, 3, cpus=1)


def test_room_that_others_take_is_waited_for_and_then_asked_of_the_user(monkeypatch):
    monkeypatch.setattr(waiting, "SECONDS_UNTIL_SAID", 0.0)
    others = placement_group([{"CPU": 1}])
    ray.get(others.ready())
    message = (
        r"^reference: no room for 2 workers of 1 CPU in 0:02 \(resources.wait\)\. The cluster has "
        r"2 CPU \(1 free\), 0 GPU \(0 free\)\. Nothing adds nodes to it\. Lower reference\.workers"
    )
    told: list[events.Event] = []
    with (
        events.heard_by(told.append),
        pytest.raises(ConfigError, match=message),
        waiting.limited_to(2.0),
    ):
        waiting.for_room(TWO)
    (notice,) = told
    said = notice["text"]
    assert said.startswith("  reference: waiting for room for 2 workers of 1 CPU, at most 0:02")

    # It is there as soon as they leave, and nothing that was asked for is left behind.
    remove_placement_group(others)
    waiting.for_room(TWO)
    waiting.for_room(TWO)


def test_a_training_that_has_lost_its_room_says_so_once_and_then_ends(monkeypatch):
    monkeypatch.setattr(waiting, "SECONDS_UNTIL_SAID", 0.0)
    monkeypatch.setattr(waiting, "SECONDS_OF_GRACE", 0.0)
    told: list[events.Event] = []
    ends: list[str] = []
    with events.heard_by(told.append), waiting.limited_to(100.0):
        room = waiting.LostRoom(THREE, lambda: ends.append("given up"))
        assert {room.look() for _ in range(3)} == {"waiting for room for 3 workers of 1 CPU"}
    (notice,) = told
    assert "target: waiting for room for 3 workers of 1 CPU, at most 1:40" in notice["text"]
    assert room.error is None and ends == []

    with waiting.limited_to(0.0):
        room = waiting.LostRoom(THREE, lambda: ends.append("given up"))
    room.regained()
    assert room.look() == room.look() == "waiting for room for 3 workers of 1 CPU"
    assert set(ends) == {"given up"}  # again and again: at first there may be nothing to end
    message = (
        r"target: no room for 3 workers .* in 0:00 .* Its workers were lost\. Give the cluster"
    )
    assert re.match(message, str(room.error))


def test_workers_that_start_have_time_to_get_their_room():
    with waiting.limited_to(0.0):
        room = waiting.LostRoom(THREE, lambda: pytest.fail("it has only begun to wait"))
    assert room.look() == room.look() == "waiting for room for 3 workers of 1 CPU"


def test_room_for_the_first_workers_is_waited_for_once_and_they_are_not_called_lost(monkeypatch):
    monkeypatch.setattr(waiting, "SECONDS_OF_GRACE", 0.0)
    ends: list[str] = []
    with waiting.limited_to(100.0):
        room = waiting.LostRoom(THREE, lambda: ends.append("given up"), waited=100.0)
    room.look()

    assert ends == ["given up"]
    assert re.match(r"target: no room for 3 workers .* in 1:40 .* Lower target", str(room.error))
    assert "lost" not in str(room.error)


def test_ctrl_c_gives_up_only_a_training_that_waits():
    ends: list[str] = []
    room = waiting.LostRoom(THREE, lambda: ends.append("given up"))
    assert not room.leave() and ends == []

    room.look()
    assert room.leave() and ends == ["given up"]


def test_workers_that_have_room_are_not_waited_for():
    while resources.num_free(TWO) < TWO.min:  # what others have left is reported a little later
        threading.Event().wait(0.1)
    with waiting.limited_to(0.0):
        room = waiting.LostRoom(TWO, lambda: pytest.fail("there is room for two"))
    assert room.look() == ""
