"""The library that draws the charts: Vega-Lite, from the package vl-convert-python."""

from functools import cache

import vl_convert

SNIPPET = "window.vegaEmbed = vegaEmbed;"


@cache
def script() -> str:
    """Return Vega, Vega-Lite and Vega-Embed; it takes some seconds the first time."""
    return str(vl_convert.javascript_bundle(SNIPPET))
