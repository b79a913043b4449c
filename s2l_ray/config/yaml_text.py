"""YAML text as values: safe, and with numbers as YAML 1.2 reads them."""

import re
from typing import Any

import yaml

from s2l_ray.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads `2e-5` as a number, as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.inf|\.nan)$",
        re.IGNORECASE,
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str, origin: str) -> Any:
    """The value that `text` holds; `origin` is named when it is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not YAML: {' '.join(str(error).split())}") from None
