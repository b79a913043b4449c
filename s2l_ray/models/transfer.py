"""Small arrays on their way to a GPU, which neither waits for the other."""

import numpy as np
import torch


def to_device(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """`values`, which lie on the CPU, on `device`.

    From ordinary memory a GPU copies only once it has done all that it was given before, and the
    program waits for that; meanwhile it could have prepared the next batch.
    """
    tensor = torch.as_tensor(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
