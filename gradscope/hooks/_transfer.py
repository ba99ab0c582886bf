"""Small tensors of a step on their way to the host: one copy a device, for which nobody waits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sent(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same values on the host, in float64 where they came from elsewhere; to be read once an event tells.

    The copies are complete when an event that is recorded after this call, on the current stream, is.
    """
    found: list[Tensor] = list(tensors)
    by_device: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        if tensor.device.type != "cpu":
            by_device.setdefault(tensor.device, []).append(i)
    for device, indices in by_device.items():
        flat = torch.cat([tensors[i].detach().reshape(-1).double() for i in indices])
        host = torch.empty(flat.shape, dtype=flat.dtype, device="cpu", pin_memory=device.type == "cuda")
        host.copy_(flat, non_blocking=True)
        parts = host.split([tensors[i].numel() for i in indices])
        for i, part in zip(indices, parts, strict=True):
            found[i] = part.view(tensors[i].shape)
    return found
