"""Errors on their way from one process to another."""

import json

import pytest

from s2l_ray import errors

CLASSES = ("UserError", "ConfigError", "DataError", "ModelError", "StorageError", "UnitError")


@pytest.mark.parametrize("name", CLASSES)
def test_an_error_keeps_its_class_and_text_in_another_process(name):
    error = getattr(errors, name)('row 3 of "a.jsonl":\nno id')
    message = json.loads(json.dumps(errors.as_message(error)))
    again = errors.from_message(message)
    assert type(again) is type(error) and str(again) == str(error)


def test_an_error_of_a_class_of_its_own_becomes_one_of_the_nearest_known_class():
    class Unreadable(errors.DataError):
        pass

    again = errors.from_message(errors.as_message(Unreadable("row 3")))
    assert type(again) is errors.DataError and str(again) == "row 3"


def test_a_message_that_names_another_class_is_refused():
    with pytest.raises(KeyError, match="SystemExit"):
        errors.from_message({"error": "SystemExit", "message": ""})
