"""The size of a block of similarities, which must not change a result."""

import pytest

from mmcon.evaluation import similarity_blocks


@pytest.fixture(params=[similarity_blocks.BLOCK_SIZE, 300, 1], ids=["whole", "chunked", "row by row"])
def block(request, monkeypatch):
    """Similarities in memory at once; 1 is fewer than a row has."""
    monkeypatch.setattr(similarity_blocks, "BLOCK_SIZE", request.param)
