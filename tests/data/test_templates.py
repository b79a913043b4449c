"""Templates: named ones and files, the text they give, and the names that are refused."""

from pathlib import Path

import pytest

from s2l_ray.config.data import NAMED_TEMPLATES
from s2l_ray.errors import ConfigError
from tests.data.test_tokenise import BOS, PLAIN, WITH_INPUT, masked, named, tokens


@pytest.mark.parametrize(
    ("text", "plain", "with_input"),
    [
        (
            "Q: {prompt}\nC: {context}\nA:",
            "Q: Add 1 and 2.\nC: \nA:",
            "Q: Sum up.\nC: A {prompt}!\nA:",
        ),
        ("Q: {prompt}\nA:\n", "Q: Add 1 and 2.\nA:\n", "Q: Sum up.\n\nA {prompt}!\nA:\n"),
        ("{x} {{prompt}} {0}", "{x} {Add 1 and 2.} {0}", "{x} {Sum up.\n\nA {prompt}!} {0}"),
    ],
)
def test_a_template_file_is_filled_in_literally(tmp_path: Path, text, plain, with_input):
    path = tmp_path / "mine.txt"
    path.write_text(text, encoding="utf-8")
    template = named(str(path))

    assert template.render_prompt(PLAIN) == plain
    assert template.render_prompt(WITH_INPUT) == with_input
    assert masked(tokens(PLAIN, str(path), BOS), BOS) == "<s>" + plain


@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_every_name_in_the_configuration_is_a_template(name):
    template = named(name)

    assert (template.name, template.joint) == (name, name == "alpaca-official")


def test_what_is_no_template_is_refused_with_the_names_that_are(tmp_path: Path):
    names = "Use one of alpaca, alpaca-official, radiology, chat, or a text file"
    (tmp_path / "no-prompt.txt").write_text("Hello {context}")
    (tmp_path / "binary.txt").write_bytes(b"\xff{prompt}")

    with pytest.raises(ConfigError, match=rf"'alpacca' is neither a template nor a file\. {names}"):
        named("alpacca")
    with pytest.raises(ConfigError, match="neither a template nor a file"):
        named(str(tmp_path))
    with pytest.raises(
        ConfigError, match=rf"no-prompt.txt does not contain \{{prompt\}}\. {names}"
    ):
        named(str(tmp_path / "no-prompt.txt"))
    with pytest.raises(ConfigError, match=r"cannot read .*binary.txt"):
        named(str(tmp_path / "binary.txt"))
