"""Room for workers: it is waited for, and not for ever."""

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from s2l_ray import events
from s2l_ray.distributed import resources, waiting
from s2l_ray.errors import ConfigError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

TWO = resources.Workers("reference", 2, 2, cpus=1)


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
