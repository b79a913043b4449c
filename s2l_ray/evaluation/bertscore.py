"""BERTScore of completions, as the package bert_score computes it.

Shapes: N items.
"""

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from s2l_ray.config.sections import BertScoreConfig
from s2l_ray.errors import ConfigError, one_line
from s2l_ray.models.origins import opened_source


def f1(
    completions: Sequence[str], references: Sequence[str], config: BertScoreConfig, device: str
) -> list[float | None]:
    """Return BERTScore's F1 for each pair of texts; 0 where one of them holds nothing.

    Numbers are not rescaled with a baseline, and rare words weigh no more than others.

    Returns:
        (N,), mostly between 0 and 1.

    Source:
        arXiv:1904.09675.
    """
    pairs = zip(completions, references, strict=True)
    told = [i for i, (said, wanted) in enumerate(pairs) if said.strip() and wanted.strip()]
    scores: list[float | None] = [0.0] * len(completions)
    if told:
        scorer = _scorer(config, device)
        _, _, f1_N = scorer.score([completions[i] for i in told], [references[i] for i in told])
        for i, score in zip(told, f1_N.tolist(), strict=True):
            scores[i] = score
    return scores


def check(config: BertScoreConfig) -> None:
    """Refuse to begin without the package or the model.

    Raises:
        ConfigError: bert_score is not installed, the model cannot be read here, or it is none that
            the package has a layer for and `layer` is not given.
    """
    if importlib.util.find_spec("bert_score") is None:
        raise ConfigError(
            "evaluation.metrics: bertscore needs the package bert_score: "
            "pip install 's2l-ray[bertscore]'"
        )
    from transformers import AutoConfig, AutoTokenizer

    try:
        with opened_source(config.model) as (path, options):
            num_layers = AutoConfig.from_pretrained(path, **options).num_hidden_layers
            AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"evaluation.bertscore.model: {config.model} cannot be read here "
            f"({one_line(error)[:200]}). Give a directory that holds the model, or run once where "
            "the hub answers."
        ) from None
    layer = _layer(config)
    if layer > num_layers:
        raise ConfigError(
            f"evaluation.bertscore.layer: {config.model} has {num_layers} layers, not {layer}"
        )


@lru_cache(maxsize=1)
def _scorer(config: BertScoreConfig, device: str) -> Any:
    from bert_score import BERTScorer

    with opened_source(config.model) as (path, _):
        return BERTScorer(model_type=path, num_layers=_layer(config), device=device, nthreads=0)


def _layer(config: BertScoreConfig) -> int:
    """Return the layer whose states are compared."""
    from bert_score.utils import model2layers

    layer = config.layer or model2layers.get(config.model.partition("@")[0])
    if layer is None:
        raise ConfigError(
            f"evaluation.bertscore.layer: bert_score recommends no layer of {config.model}; give "
            "its number, from 1 on"
        )
    return int(layer)
