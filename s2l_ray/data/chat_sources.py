"""Chat templates that replace the tokenizer's own: ChatML, or a Jinja file."""

import io
from typing import TYPE_CHECKING

from s2l_ray.config.data import CHATML, DataConfig
from s2l_ray.errors import ConfigError, StorageError
from s2l_ray.storage.location import Location

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHATML_TEXT = """\
{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + END + '\\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
_IM_END = "<|im_end|>"


def read_chat_template(data: DataConfig) -> str | None:
    """Return "chatml" or the text of the file that `data.chat_template` names; None for neither.

    Raises:
        ConfigError: there is no such file, it cannot be read, or it is no template.
    """
    name = data.chat_template
    if name is None or name == CHATML:
        return name
    advice = "Give chatml, or a file with a chat template in Jinja."
    text = template_text("data.chat_template", name, "chatml", advice)
    if "messages" not in text:
        raise ConfigError(f"data.chat_template: {name} does not contain `messages`. {advice}")
    return text


def template_text(key: str, name: str, named: str, advice: str) -> str:
    """Return the text of a file with a template, to its last character.

    Args:
        key: the key of the configuration that names it.
        named: what `name` could be instead of a file.
        advice: what to give instead.

    Raises:
        ConfigError: there is no such file, or it cannot be read.
    """
    file = Location.of(name)
    if not file.is_file():
        raise ConfigError(f"{key}: {name!r} is neither {named} nor a file. {advice}")
    try:
        with io.TextIOWrapper(io.BytesIO(file.read_bytes()), encoding="utf-8-sig") as text:
            return text.read()
    except (StorageError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: cannot read {name}: {error}. {advice}") from None


def jinja_source(template: str | None, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return the Jinja text of what `read_chat_template` returned; None for the tokenizer's own.

    ChatML closes a turn by <|im_end|>, or by the tokenizer's end-of-sequence token if <|im_end|>
    is none of its tokens: generation ends at a token, not at a text.
    """
    if template != CHATML:
        return template
    end = f"'{_IM_END}'" if _IM_END in tokenizer.get_vocab() else "eos_token"
    return _CHATML_TEXT.replace("END", end)
