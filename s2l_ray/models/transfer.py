"""Copies of small arrays to a GPU for which the program does not wait."""

import numpy as np
import torch


def to_device(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return `values`, which are on the CPU, on `device`.

    They are copied from pinned memory. From ordinary memory a GPU copies only after all its earlier
    work, and the program would wait for that instead of preparing the next batch.
    """
    tensor = torch.as_tensor(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
