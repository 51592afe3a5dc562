"""Pictures: what is laid out in a row is read back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gapkd.images import tile, untile


@pytest.mark.parametrize("resolution", [8, 32, 64])
def test_a_row_is_read_back(resolution):
    images = torch.randint(0, 256, (5, 3, resolution, resolution), generator=torch.Generator().manual_seed(0))
    row = torch.from_numpy(np.array(tile(images / 127.5 - 1, columns=5))).permute(2, 0, 1)
    assert torch.equal(untile(row).long(), images)
