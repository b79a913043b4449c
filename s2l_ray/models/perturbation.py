"""Random perturbations of a model's weight matrices, for trajectories without a training.

Source: losses at perturbed copies of a pretrained model as trajectories, TEMP, arXiv:2606.26797.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from s2l_ray import hashing


@dataclass(frozen=True)
class Noise:
    """The noise that makes one perturbed copy of a model.

    Attributes:
        scale: the standard deviation of the noise, as a share of that of the weights of a matrix.
        seed: the seed of the run.
        number: the number of the copy, from 1.
    """

    scale: float
    seed: int
    number: int


def perturb(model: nn.Module, noise: Noise) -> None:
    """Add normal noise to every weight matrix of a model on the CPU.

    W becomes W + scale * s * Z, with s the standard deviation of the elements of W, and Z from
    torch's generator of the CPU, matrix by matrix in the order of the model's parameters. Weights
    that two layers share are drawn for once. Biases, norms and all else with one dimension stay.
    The sum is taken in float32 and has the type of the weights. The same noise and the same version
    of torch make the same weights on any worker.
    """
    key = hashing.mixed(np.array([noise.number], np.uint64), noise.seed)
    generator = torch.Generator().manual_seed(int(key[0] >> np.uint64(1)))
    for parameter in model.parameters():
        if parameter.ndim < 2:
            continue
        weight = parameter.data.float()
        # In float32 no trace is left of the order in which threads add up.
        deviation = weight.double().std(correction=0).float()
        drawn = torch.randn(weight.shape, generator=generator)
        parameter.data = (weight + noise.scale * deviation * drawn).to(parameter.dtype)
