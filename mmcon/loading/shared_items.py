"""Items of worker processes as one message and one block of shared memory each.

torch shares each tensor of an item as a file of its own, for which the training process asks the worker over a socket;
the worker answers between two of its own operations, and a batch of views has some thirty tensors. Here small tensors
are part of the message. Large ones are in a block of memory that the training process maps once, and that the worker
uses again after the large tensors of the item have been freed in the training process.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import pickle
import weakref
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import torch
from jaxtyping import Int, Shaped, UInt8
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

#: Tensors from this many bytes on are in shared memory.
LARGE = 1 << 16
#: The number of blocks that a worker uses in turn. If the training process keeps more items, each gets its own memory.
BLOCKS = 8

_ALIGNMENT = 64
_OWN_MEMORY = -1
_PLAIN = frozenset({
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool, torch.float16, torch.bfloat16,
    torch.float32, torch.float64,
})  # fmt: skip
_numbers = itertools.count()
# By number: the pinning thread of a DataLoader receives items without the stream that they belong to.
_receivers: weakref.WeakValueDictionary[int, ItemReceiver] = weakref.WeakValueDictionary()


class _Layout(NamedTuple):
    """Where a tensor is in a block."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class PackedItem:
    """An item on its way from a worker.

    Attributes:
        receiver: the number of its receiver.
        worker: the number of the worker.
        block: the number of the block with its large tensors; -1: memory of its own.
        memory: the block, if the receiver does not have it yet.
        layouts: where each large tensor is.
        content: the pickled rest.
    """

    receiver: int
    worker: int
    block: int
    memory: UInt8[Tensor, " bytes"] | None
    layouts: list[_Layout]
    content: bytes

    def unpack(self) -> Any:
        """The item. Its large tensors are in shared memory."""
        return _receivers[self.receiver].unpack(self)

    def pin_memory(self) -> Any:
        """The item with its tensors in page-locked memory; called by DataLoader."""
        return pin_memory(self.unpack())


class ItemReceiver:
    """The training process's side of the shared memory of a number of workers.

    Attributes:
        number: identifies it in the items.
        in_use: for each worker and block, in shared memory, whether an item is in it.
    """

    def __init__(self, workers: int) -> None:
        self.number = next(_numbers)
        with torch.inference_mode(False):  # an evaluation begins in it, and its last items may end outside
            self.in_use: Int[Tensor, "workers blocks"] = torch.zeros(workers, BLOCKS, dtype=torch.int64)
            self.in_use.share_memory_()
        self._blocks: dict[tuple[int, int], Tensor] = {}
        _receivers[self.number] = self

    def unpack(self, item: PackedItem) -> Any:
        """The item of a message."""
        tensors: list[Tensor] = []
        if item.layouts:
            key = item.worker, item.block
            memory = self._blocks[key] if item.memory is None else item.memory
            # All large tensors of the item hold this array, so that it ends with the last of them.
            array = memory.numpy()
            if item.block != _OWN_MEMORY:
                self._blocks[key] = memory
                weakref.finalize(array, _free, self.in_use, key, os.getpid()).atexit = False
            for layout in item.layouts:
                part = torch.from_numpy(array[layout.offset : layout.end])
                tensors.append(part.view(layout.dtype).as_strided(layout.shape, layout.stride))
        return _Unpickler(item.content, tensors).load()


class ItemPacker:
    """A worker's side.

    Args:
        receiver: the number of the receiver.
        in_use: that of the receiver.
        worker: the number of the worker.
    """

    def __init__(self, receiver: int, in_use: Int[Tensor, "workers blocks"], worker: int) -> None:
        self._receiver, self._in_use, self._worker = receiver, in_use[worker], worker
        self._blocks: dict[int, Tensor] = {}

    def pack(self, item: Any) -> PackedItem:
        """The message of an item, whose large tensors are copied to shared memory."""
        file = io.BytesIO()
        pickler = _Pickler(file)
        pickler.dump(item)
        layouts, end = [], 0
        for tensor in pickler.large:
            layouts.append(_Layout(end, tensor.dtype, tuple(tensor.shape), tensor.stride()))
            end = -(-layouts[-1].end // _ALIGNMENT) * _ALIGNMENT
        block, memory, is_new = self._room(end)
        for tensor, layout in zip(pickler.large, layouts, strict=True):
            part = memory[layout.offset : layout.end].view(layout.dtype)
            part.as_strided(layout.shape, layout.stride).copy_(tensor)
        sent = memory if is_new else None
        return PackedItem(self._receiver, self._worker, block, sent, layouts, file.getvalue())

    def _room(self, size: int) -> tuple[int, Tensor, bool]:
        """A block of at least this many bytes that no item is in, its number, and whether the receiver lacks it."""
        if not size:
            return _OWN_MEMORY, torch.empty(0, dtype=torch.uint8), False
        free = [block for block, in_use in enumerate(self._in_use.tolist()) if not in_use]
        fitting = [block for block in free if block in self._blocks and len(self._blocks[block]) >= size]
        if not free:
            return _OWN_MEMORY, _shared_memory(size), True
        block = fitting[0] if fitting else free[0]
        if not fitting:
            self._blocks[block] = _shared_memory(size)
        self._in_use[block] = 1
        return block, self._blocks[block], not fitting


class _Pickler(ForkingPickler):
    """Pickles tensors of the CPU into the message; large ones are collected, and replaced by their index."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.large: list[Tensor] = []
        # With the tensor, so that no other object gets its id.
        self._index: dict[int, tuple[int, Tensor]] = {}

    def persistent_id(self, obj: Any) -> int | None:
        if not _is_plain(obj) or obj.numel() * obj.element_size() < LARGE:
            return None
        if id(obj) not in self._index:
            self._index[id(obj)] = len(self.large), obj
            self.large.append(_dense(obj))
        return self._index[id(obj)][0]

    def reducer_override(self, obj: Any) -> Any:
        if not _is_plain(obj):
            return NotImplemented
        # A copy: of one number, `contiguous` may keep the stride of a column, which has no view as bytes.
        content = obj.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8).numpy().tobytes()
        return _small_tensor, (content, obj.dtype, tuple(obj.shape))


class _Unpickler(pickle.Unpickler):
    """Reads the message of an item, with its large tensors."""

    def __init__(self, content: bytes, large: list[Tensor]) -> None:
        super().__init__(io.BytesIO(content))
        self._large = large

    def persistent_load(self, pid: Any) -> Shaped[Tensor, "..."]:
        return self._large[pid]


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor whose numbers are all that there is to it."""
    return (
        type(value) is Tensor
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and value.dtype in _PLAIN
        and not value.requires_grad
    )


def _dense(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The tensor in one piece of memory, in a layout that torch has a name for."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def _small_tensor(content: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Shaped[Tensor, "..."]:
    if not content:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=dtype).view(shape)


def _shared_memory(size: int) -> UInt8[Tensor, " bytes"]:
    return torch.empty(size, dtype=torch.uint8).share_memory_()


def _free(in_use: Int[Tensor, "workers blocks"], block: tuple[int, int], process: int) -> None:
    """Let the worker use a block again. The end of an array in a fork of the training process does not count."""
    if os.getpid() == process:
        in_use[block] = 0
