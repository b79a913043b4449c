"""What the older autoscaler has reported, as Ray stores it, and the sentence for users."""

import pytest

from s2l_ray.distributed.autoscaler import Autoscaler, read_status

STATUS = {
    "active_nodes": {"head": 1, "node_ab12": 1},
    "idle_nodes": None,
    "pending_nodes": [["10.0.0.2", "cpu", "waiting-for-ssh"]],
    "pending_launches": {"cpu": 2},
    "failed_nodes": [],
    "node_availability_summary": {
        "node_availabilities": {
            "spot": {
                "node_type": "spot",
                "is_available": False,
                "last_checked_timestamp": 1.0,
                "unavailable_node_information": {
                    "category": "InsufficientInstanceCapacity",
                    "description": "no spot capacity in eu-west-1a",
                },
            },
            "cpu": {
                "node_type": "cpu",
                "is_available": True,
                "last_checked_timestamp": 1.0,
                "unavailable_node_information": None,
            },
        }
    },
}


def test_the_report_names_types_what_is_starting_and_what_failed():
    found = read_status(STATUS, {"node_ab12"})
    assert found == Autoscaler(
        frozenset({"head", "cpu", "spot"}), {"cpu": 3}, {"spot": "no spot capacity in eu-west-1a"}
    )
    assert str(found) == (
        "Its autoscaler has nodes of the types cpu, head, spot; it is starting 3 cpu; "
        "it could not start spot: no spot capacity in eu-west-1a."
    )


@pytest.mark.parametrize("status", [{}, {"active_nodes": {"node_ab12": 1}}])
def test_nodes_that_were_started_by_hand_are_no_autoscaler(status):
    assert not read_status(status, {"node_ab12"}).node_types


def test_an_autoscaler_that_starts_nothing_says_why_that_may_be():
    said = str(Autoscaler(frozenset({"head"}), {}, {}))
    assert "it is starting no node: no type has what is asked for" in said
