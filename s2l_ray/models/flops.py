"""Floating-point operations of causal language models, counted from the sizes of their matrices.

Only products of matrices are counted: norms, activations and softmax are small beside them. A
product and the sum that it goes into are two operations.

Sources: for weights Kaplan et al. (2020), arXiv:2001.08361, section 2.1; for attention Chowdhery et
al. (2022), arXiv:2204.02311, appendix B.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The sizes of a model from which its operations are counted.

    Attributes:
        body: weights of all matrices except embeddings (which are looked up) and the output layer;
            from a layer of experts, the weights of as many as process one token.
        output: weights of the output layer, vocabulary x hidden size.
        attention: layers x heads x size of a head.
        width: hidden size.
    """

    body: int
    output: int
    attention: int
    width: int


def forward(shape: Shape, *, tokens: float, logits: float, context: float) -> float:
    """Count the operations of one forward pass over `tokens` tokens.

    Args:
        logits: positions to which the output layer is applied.
        context: tokens that attention compares with each token. For a whole row this is the length
            of the row: the half that the causal mask hides counts too, as in the source.
    """
    weights = shape.body * tokens + shape.output * logits
    return 2 * weights + 4 * shape.attention * context * tokens


def answers(shape: Shape, *, rows: float, prompt: float, new_tokens: float) -> float:
    """Count the operations of `rows` answers: every prompt in one pass, then token by token.

    The tokens before each new one are in a cache: the prompt, and on average half of the answer.

    Args:
        prompt: tokens of a prompt.
        new_tokens: tokens of an answer.
    """
    read = forward(shape, tokens=rows * prompt, logits=rows, context=prompt)
    new = rows * new_tokens
    return read + forward(shape, tokens=new, logits=new, context=prompt + new_tokens / 2)


def training_passes(*, recomputed: bool = False, frozen: bool = False) -> int:
    """Return the cost of an optimizer step, in forward passes.

    The backward pass costs two: gradients of the inputs and gradients of the weights.

    Args:
        recomputed: activations are computed again in the backward pass.
        frozen: only small adapters are trained, and the weights themselves need no gradients.
    """
    return 3 + recomputed - frozen
