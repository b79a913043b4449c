"""Contents of files are known by hashes, through links, and however soon they change."""

import hashlib
import os
import sys

from s2l_ray.artifacts.inputs import Contents
from s2l_ray.storage.input_files import InputFile

LONG_AGO = 10**18
"""A modification time in nanoseconds since 1970."""


def test_contents_are_read_again_only_when_size_or_date_say_so(tmp_path):
    path = tmp_path / "x"
    path.write_text("abc")
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    contents = Contents()
    [first] = contents.folder_hashes(str(path))

    path.write_text("xyz")
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    assert contents.folder_hashes(str(path)) == [first]
    os.utime(path, ns=(LONG_AGO + 1, LONG_AGO + 1))
    assert contents.folder_hashes(str(path)) != [first]
    assert contents.changed == {str(path)}


def test_a_file_that_had_just_been_written_is_read_again_whatever_its_date(tmp_path):
    path = tmp_path / "x"
    path.write_text("abc")
    contents = Contents()
    [first] = contents.folder_hashes(str(path))
    status = path.stat()

    path.write_text("xyz")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert contents.folder_hashes(str(path)) != [first]


def test_files_behind_links_count_and_links_that_loop_end(tmp_path):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "a").write_text("1")
    (tmp_path / "elsewhere" / "b").write_text("2")
    root = tmp_path / "root"
    root.mkdir()
    (root / "own").write_text("3")
    (root / "one").symlink_to(tmp_path / "elsewhere")
    (root / "two").symlink_to(tmp_path / "elsewhere")
    (root / "file").symlink_to(tmp_path / "elsewhere" / "b")
    (root / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "elsewhere" / "deep" / "up").symlink_to(tmp_path / "elsewhere")
    (root / "itself").symlink_to(root)

    names = [line.split()[0] for line in Contents().folder_hashes(str(root))]
    assert names == ["file", "one/b", "one/deep/a", "own", "two/b", "two/deep/a"]


def test_a_link_that_leads_to_another_file_of_this_size_and_date_is_another_content(tmp_path):
    """So it is with models of one architecture whose dates an archive or an image has set."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
        os.utime(tmp_path / name / "model.safetensors", ns=(LONG_AGO, LONG_AGO))
    link, contents = tmp_path / "best", Contents()
    link.symlink_to("one")
    before = contents.folder_hashes(str(link))

    link.unlink()
    link.symlink_to("two")
    assert contents.folder_hashes(str(link)) == contents.folder_hashes(str(tmp_path / "two"))
    assert contents.folder_hashes(str(link)) != before


def test_the_order_of_files_is_that_of_their_paths(tmp_path):
    for name in ("a-b/x", "a/x", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")

    names = [line.split()[0] for line in Contents().folder_hashes(str(tmp_path))]
    assert names == [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*/x"))] + [
        "a.txt"
    ]


def test_a_file_of_a_package_counts_by_content(tmp_path, monkeypatch):
    package = tmp_path / "shipped_model"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "small.gguf").write_bytes(b"1")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    name, contents = "package:shipped_model/small.gguf", Contents()

    before = contents.model_inputs("model", name)
    assert before["model"]
    (package / "small.gguf").write_bytes(b"2")
    assert contents.model_inputs("model", name) != before
    assert contents.model_inputs("model", "package:shipped_model/none.gguf") == {}


def test_many_files_have_their_own_hashes_in_their_order(tmp_path):
    texts = [f"{number}" * (number * 7919) for number in range(40)]
    files = []
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(text)
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
        files.append(InputFile(str(path), len(text), str(LONG_AGO)))
    contents = Contents()

    hashes = contents.file_hashes(files)

    assert hashes == [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    assert list(contents.cache) == [file.uri for file in files]
    for file in files:
        os.unlink(file.uri)
    assert contents.file_hashes(files[::-1]) == hashes[::-1], "they are known"
