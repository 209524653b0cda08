"""The size of a block of similarities and the copy of the candidates, which must not change a result."""

import pytest

from mmcon.evaluation import similarity_blocks


@pytest.fixture(
    params=[(similarity_blocks.BLOCK_SIZE, None), (300, None), (1, None), (300, 7)],
    ids=["whole", "chunked", "row by row", "tiles without a copy"],
)
def block(request, monkeypatch):
    """Similarities in memory at once (1 is fewer than a row has); candidates of a tile of a set that is not copied."""
    size, tile = request.param
    monkeypatch.setattr(similarity_blocks, "BLOCK_SIZE", size)
    if tile is not None:
        monkeypatch.setattr(similarity_blocks, "TILE_ROWS", tile)
        monkeypatch.setattr(similarity_blocks, "COPIED", 0)
