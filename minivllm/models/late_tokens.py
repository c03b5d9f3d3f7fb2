"""Tokens that have been sampled and are not known to Python yet.

With async scheduling a step is laid out while the one before it runs. A token id that is missing
then has a stand-in, and is put in on the device, where it was sampled.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from minivllm.models.memory import to_device


class LateTokens:
    """The latest token of each running request, on the device.

    Args:
        num_rows: most running requests; each has a row.
    """

    def __init__(self, num_rows: int, device: str) -> None:
        self.device = device
        self._latest = torch.zeros(num_rows, dtype=torch.long, device=device)

    def keep(self, rows: list[int], token_ids: Tensor) -> None:
        """Note the tokens [len(rows)] that requests have just been given."""
        self._latest.index_copy_(0, to_device(np.array(rows), self.device), token_ids)

    @staticmethod
    def stand_in(row: int) -> int:
        """What to write where a token id is not known: no token, and it names the row."""
        return -1 - row

    def to_device(self, token_ids: np.ndarray) -> Tensor:
        """Token ids [T], laid out by Python, on the device and filled in."""
        tokens = to_device(token_ids, self.device)
        return self.fill_in(tokens) if token_ids.min() < 0 else tokens

    def fill_in(self, token_ids: Tensor) -> Tensor:
        """Token ids [T] with the tokens instead of their stand-ins."""
        rows = (-1 - token_ids).clamp_min(0)
        return torch.where(token_ids < 0, self._latest[rows], token_ids)
