"""ROUGE-L and BLEU of completions, as the packages rouge_score and sacrebleu compute them.

Shapes: N items.
"""

from collections.abc import Sequence


def rouge_l(completions: Sequence[str], references: Sequence[str]) -> list[float | None]:
    """Return the F-measure of the longest common subsequence of words, for each pair of texts.

    Words are lower-case runs of letters and digits, and those of more than three characters are
    compared by their Porter stems. The two texts weigh the same.

    Returns:
        (N,), between 0 and 1.

    Source:
        Lin (2004), ROUGE: A Package for Automatic Evaluation of Summaries.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(references, completions, strict=True)
    return [float(scorer.score(reference, said)["rougeL"].fmeasure) for reference, said in pairs]


def sentence_bleu(completions: Sequence[str], references: Sequence[str]) -> list[float | None]:
    """Return BLEU of each text alone, which is not comparable with `corpus_bleu`.

    Orders of n-grams that a text is too short for are left out, and those without a match are
    smoothed exponentially.

    Returns:
        (N,), between 0 and 1: sacrebleu's number over 100.

    Source:
        Chen and Cherry (2014), doi:10.3115/v1/W14-3346; sacrebleu, arXiv:1804.08771.
    """
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(effective_order=True)
    pairs = zip(completions, references, strict=True)
    return [bleu.sentence_score(said, [reference]).score / 100 for said, reference in pairs]


def corpus_bleu(completions: Sequence[str], references: Sequence[str]) -> float:
    """Return BLEU of all texts together, between 0 and 1: sacrebleu's number over 100.

    Source:
        Papineni et al. (2002), doi:10.3115/1073083.1073135; sacrebleu, arXiv:1804.08771.
    """
    from sacrebleu.metrics.bleu import BLEU

    return float(BLEU().corpus_score(list(completions), [list(references)]).score) / 100
