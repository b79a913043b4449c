"""Which inputs count as the same."""

from s2l_ray.artifacts.identity import identity


def of_folder(*lines):
    return identity({"data.tokenizer": "anywhere", "data.tokenizer contents": list(lines)})


def test_files_count_by_name_and_content_in_any_order():
    assert of_folder("a.json 1", "b.json 2") == of_folder("b.json 2", "a.json 1")
    assert of_folder("a.json 1") != of_folder("a.json 2")
    assert of_folder("a.json 1") != of_folder("b.json 1")
    assert of_folder(". 1") != of_folder(". 2"), "a folder's own name, for a single file"


def test_hidden_files_do_not_count_as_they_hold_the_date_of_a_download():
    metadata = ".cache/huggingface/download/a.json.metadata"
    downloaded, again = (of_folder("a.json 1", f"{metadata} {n}", ".gitattributes 3") for n in "12")
    assert downloaded == again == of_folder("a.json 1")
    assert of_folder("v1.0/a.b 1") != of_folder()


def test_a_name_on_the_hub_counts_with_its_commit():
    on_hub = {"data.tokenizer": "org/name", "data.tokenizer contents": "0123abcd"}
    assert identity(on_hub) == on_hub
