"""Items of workers in shared memory: the same values and layouts, in memory that is used again once it is free."""

import os

import pytest
import torch

from mmcon.batch import Index, ViewBatch
from mmcon.loading.lost_workers import TrackedDataset, iterate_items
from mmcon.loading.shared_items import BLOCKS, LARGE, ItemPacker, ItemReceiver


@pytest.fixture
def ends():
    """A receiver and the packer of its one worker, in one process."""
    receiver = ItemReceiver(1)
    return receiver, ItemPacker(receiver.number, receiver.in_use, 0)


def large(value, dtype=torch.float32):
    return torch.full((LARGE // dtype.itemsize,), value, dtype=dtype)


@pytest.mark.parametrize("count", [6, 60_000])
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int64, torch.bool, torch.bfloat16, torch.float64, torch.complex64]
)
def test_small_and_large_tensors_keep_their_numbers(ends, dtype, count):
    x = torch.arange(count).remainder(200).to(dtype)
    item = {"x": x, "of": [x[:2], x.view(2, -1).T, x[0], x[:0], x[:1].expand(3), x.view(2, -1)[:1, 1]]}
    message = ends[1].pack(item)
    found = message.unpack()
    assert bool(message.layouts) == (x.nbytes >= LARGE and dtype != torch.complex64)
    assert all(map(torch.equal, [found["x"], *found["of"]], [item["x"], *item["of"]]))
    assert found["x"].dtype == dtype
    found["x"].zero_()  # writable
    if message.layouts:
        assert found["x"].untyped_storage().nbytes() == x.nbytes  # torch.save writes no more than the tensor


def test_layouts_of_images_and_tensors_that_occur_twice_are_kept(ends):
    images = torch.rand(2, 3, 80, 90).contiguous(memory_format=torch.channels_last)
    message = ends[1].pack((images, images))
    assert len(message.layouts) == 1
    found, again = message.unpack()
    assert torch.equal(found, images)
    assert found.stride() == images.stride()
    assert found is again


class OfATensor:
    """Its state is a tensor that nothing else holds, and that is not in one piece."""

    def __init__(self, value=0.0):
        self.value = value

    def __reduce__(self):
        return OfATensor, (), torch.full((LARGE, 2), self.value).T

    def __setstate__(self, state):
        self.value = float(state[0, 0])


def test_tensors_of_a_moment_are_not_taken_for_one_another(ends):
    found = ends[1].pack([OfATensor(float(i)) for i in range(6)]).unpack()
    assert [of.value for of in found] == [0, 1, 2, 3, 4, 5]


def test_a_block_is_freed_outside_of_the_inference_that_began_the_workers(monkeypatch):
    problems = []
    monkeypatch.setattr("sys.unraisablehook", problems.append)
    with torch.inference_mode():
        receiver = ItemReceiver(1)
        found = ItemPacker(receiver.number, receiver.in_use, 0).pack(large(1.0)).unpack()
        assert receiver.in_use.sum() == 1
    del found
    assert receiver.in_use.sum() == 0
    assert not problems


def test_a_batch_arrives_as_it_was(ends):
    index = Index({"sample": torch.arange(4), "label": torch.tensor([0, 1, 0, 1])})
    batch = ViewBatch({"image": (torch.rand(4, 3, 64, 64),)}, {"image": index}, {"image": ({"p": index["label"]},)}, 7)
    found = ends[1].pack(batch).unpack()
    assert torch.equal(found.views["image"][0], batch.views["image"][0])
    assert found.index["image"]["label"].tolist() == found.params["image"][0]["p"].tolist() == [0, 1, 0, 1]
    assert found.step == 7


def test_a_block_is_used_again_after_its_last_large_tensor_and_not_before(ends):
    receiver, packer = ends
    first = packer.pack({"a": large(1.0), "b": large(2.0), "label": torch.tensor(3)})
    assert first.memory is not None
    item, kept = first.unpack(), []
    part, label = item["b"][10:20], item["label"]
    del item, first
    second = packer.pack([large(4.0), large(5.0)])
    assert (second.block, part.tolist()) == (1, [2.0] * 10)
    del part
    assert receiver.in_use[0, :2].tolist() == [0, 1]
    third = packer.pack(large(6.0))
    assert (third.block, third.memory, label.item()) == (0, None, 3)  # a small tensor holds no block
    kept += [third.unpack(), second.unpack()]
    larger = packer.pack(torch.ones(3 * LARGE))
    kept.append(larger.unpack())
    assert larger.block == 2
    del kept
    for _ in range(3):  # the receiver maps a block once
        message = packer.pack(torch.ones(3 * LARGE))
        assert (message.block, message.memory, float(message.unpack().sum())) == (2, None, 3 * LARGE)


def test_items_beyond_the_blocks_have_memory_of_their_own(ends):
    receiver, packer = ends
    kept = [packer.pack(large(float(number))).unpack() for number in range(BLOCKS + 3)]
    assert [float(x[0]) for x in kept] == list(range(BLOCKS + 3))
    assert receiver.in_use[0].tolist() == [1] * BLOCKS
    del kept
    assert receiver.in_use[0].tolist() == [0] * BLOCKS


def test_the_end_of_a_batch_in_a_fork_frees_nothing(ends):
    receiver, packer = ends
    kept = packer.pack(large(1.0)).unpack()
    if not (child := os.fork()):
        del kept
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert receiver.in_use[0, 0] == 1


def test_kept_batches_of_worker_processes_do_not_change():
    stream = iterate_items(TrackedDataset(lambda item: large(float(item)), 2), range(40), workers=2)
    kept = [x for number, x in enumerate(stream) if number % 3 == 0]
    assert [x.unique().tolist() for x in kept] == [[float(number)] for number in range(0, 40, 3)]
