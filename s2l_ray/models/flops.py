"""Floating-point operations of causal language models, counted from the sizes of their matrices.

Only products of matrices are counted: norms, activations and softmax are small beside them. A
product and the sum that it goes into are two operations.

Sources: for weights Kaplan et al. (2020), arXiv:2001.08361, section 2.1; for attention Chowdhery et
al. (2022), arXiv:2204.02311, appendix B.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """What of a model its operations are counted from.

    Attributes:
        body: weights of all matrices but embeddings (which are looked up) and the output layer; of
            experts those of the ones that a token is sent to.
        output: weights of the output layer, vocabulary x hidden size.
        attention: layers x heads x size of a head.
        width: hidden size.
    """

    body: int
    output: int
    attention: int
    width: int


def forward(shape: Shape, *, tokens: float, logits: float, context: float) -> float:
    """Operations of one forward pass over `tokens` tokens.

    Args:
        logits: positions that the output layer is applied to.
        context: tokens that a token meets in attention. Over a whole row that is the row's length:
            the half that the causal mask hides is counted, too, as in the source.
    """
    weights = shape.body * tokens + shape.output * logits
    return 2 * weights + 4 * shape.attention * context * tokens


def answers(shape: Shape, *, rows: float, prompt: float, new_tokens: float) -> float:
    """Operations of `rows` answers: every prompt in one pass, then token by token.

    What came before a token is in a cache; on average half of the answer is there already.

    Args:
        prompt: tokens of a prompt.
        new_tokens: tokens of an answer.
    """
    read = forward(shape, tokens=rows * prompt, logits=rows, context=prompt)
    new = rows * new_tokens
    return read + forward(shape, tokens=new, logits=new, context=prompt + new_tokens / 2)


def training_passes(*, recomputed: bool = False, frozen: bool = False) -> int:
    """What an optimizer step costs, in forward passes.

    The backward pass is two: gradients of the inputs and gradients of the weights.

    Args:
        recomputed: activations are computed again in the backward pass.
        frozen: only small adapters are trained, and the weights themselves need no gradients.
    """
    return 3 + recomputed - frozen
