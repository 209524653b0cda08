"""Several modalities in several spaces: gathered, queued and cached batches equal one rank with the whole batch."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mmcon.affinity import SameLabel, SameSample
from mmcon.batch import Index, ViewBatch
from mmcon.models.contrastive_model import ContrastiveModel
from mmcon.models.shared_spaces import SharedSpace
from mmcon.objective.objective import Block, Objective
from mmcon.objective.queue import Queue
from mmcon.training.gradient_caching import cached

STEPS, N, WIDTH = 3, 8, 3
# Sounds are missing in most samples, and in all of the second half's first step.
HEARD = [torch.tensor([0, 1, 3]), torch.tensor([2, 5, 6]), torch.tensor([1, 2])]
# In the last step no sample of the second half can be read: its views have no rows.
READABLE = [N, N, N // 2]


class Tower(nn.Module):
    feature_dim = 4

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, 4)

    def forward(self, views):
        return torch.tanh(self.layer(views))


def batch_of(step, rows):
    def part(seed, samples):
        values = torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        table = {"sample": samples + N * step, "label": samples % 3, "view": torch.zeros_like(samples)}
        table |= {"epoch": torch.zeros_like(samples), "occurrence": torch.zeros_like(samples)}
        return values[samples], Index(table)

    mine = torch.arange(N)[rows]
    mine = mine[mine < READABLE[step]]
    heard = HEARD[step][torch.isin(HEARD[step], mine)]
    parts = {"image": part(10 + step, mine), "text": part(20 + step, mine)}
    if len(heard):
        parts["audio"] = part(30 + step, heard)
    return ViewBatch({m: (x,) for m, (x, _) in parts.items()}, {m: t for m, (_, t) in parts.items()}, step=step)


def train(rows, *, large, wrap=False):
    """Losses and final weights of a few steps with a queue."""
    torch.manual_seed(0)
    spaces = {"identity": SharedSpace(dim=5), "class": SharedSpace(dim=3, modalities=("image", "audio"))}
    model = ContrastiveModel({m: Tower() for m in ("image", "text", "audio")}, spaces).double()
    network = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True) if wrap else model
    blocks = [
        Block("image", "text", space="identity", weight=0.5),
        Block("text", "image", space="identity", weight=0.5),
        Block("text", "audio", space="identity", negative_weights=~SameLabel()),
        Block(("image", "audio"), space="class", affinity=SameLabel(), temperature=0.3),
    ]
    queue = Queue(size=6)
    options = {"queue": queue, "truncate": (2,), "truncate_weights": (0.5,)}
    objective = Objective(affinity=SameSample(), temperature=0.2, blocks=blocks, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    losses = []
    for step in range(STEPS):
        batch = batch_of(step, rows)
        loss = cached(network, objective, batch, chunk_size=2) if large else objective(network(batch), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            queue.push(model(batch), batch)
        losses.append(loss.detach())
    return torch.stack(losses), [p.detach().clone() for p in model.parameters()]


def without_any_pair(rows, wrap=False):
    """Loss and gradients of a batch in which no block has both its sides, after names were found to be right."""
    torch.manual_seed(0)
    model = ContrastiveModel({m: Tower() for m in ("image", "text")}, {"shared": SharedSpace(dim=3)}).double()
    objective = Objective(affinity=SameSample(), temperature=0.2, blocks=[Block("image", "text")])
    objective.check(model.modalities_by_space())
    batch = batch_of(0, rows)
    alone = ViewBatch({"image": batch.views["image"]}, {"image": batch.index["image"]})
    network = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True) if wrap else model
    loss = objective(network(alone), alone)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def worker(rank, port, folder, large):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = train(slice(4 * rank, 4 * rank + 4), large=large, wrap=True)
    loss, gradients = without_any_pair(slice(4 * rank, 4 * rank + 4), wrap=True)
    assert float(loss) == 0
    assert not any(bool(g.any()) for g in gradients)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_a_batch_without_any_pair_has_a_gradient_of_nothing():
    loss, gradients = without_any_pair(slice(0, N))
    assert float(loss) == 0
    assert gradients
    assert not any(bool(g.any()) for g in gradients)


def test_gradient_caching_is_exact_in_all_spaces():
    plain, chunked = (train(slice(0, N), large=large) for large in (False, True))
    torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True])
def test_two_processes_train_as_one(tmp_path, large):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    alone = train(slice(0, N), large=large)
    torch.multiprocessing.spawn(worker, (port, str(tmp_path), large), nprocs=2)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone, rtol=1e-10, atol=1e-12)
