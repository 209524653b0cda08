"""The loss and the gradients with a world size of 2 and 4 equal those with 1, in float64."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
from loss_cases import D, columns, draw, square_presets
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmcon.affinity import LabelKernel, MixedLabel, SameLabel, SameSample, TimeKernel
from mmcon.batch import Index, ViewBatch
from mmcon.distributed import collectives
from mmcon.losses import LearnableTemperature, presets
from mmcon.models.predictor import predicted
from mmcon.objective.objective import Block, Objective
from mmcon.objective.queue import Queue
from mmcon.objective.without_negatives import FeatureRegression, Prediction
from mmcon.training.gradient_caching import cached

N, WIDTH = 14, 5
# Unequal shards; one of four has a single row.
SHARDS = {2: [5, 9], 4: [5, 1, 4, 4]}


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(WIDTH, WIDTH, dtype=D), nn.Linear(WIDTH, WIDTH, dtype=D)
        for i, parameter in enumerate(self.parameters()):
            parameter.data = draw(*parameter.shape, seed=i + 50)

    def forward(self, batch):
        embed = {m: nn.functional.normalize(getattr(self, m)(torch.cat(p)), dim=1) for m, p in batch.views.items()}
        return {"joint": embed}


def named_columns(n):
    return Index(columns(n))


def batch_of(rows, modalities):
    table = named_columns(N)
    views = {m: (draw(N, WIDTH, seed=i)[rows],) for i, m in enumerate(modalities)}
    return ViewBatch(views, {m: table.take(rows) for m in modalities})


def filled_queue():
    """A queue with the same rows on every rank."""
    queue = Queue(size=6)
    for seed, modality in enumerate(("image", "text")):
        rows = nn.functional.normalize(draw(6, WIDTH, seed=seed + 70), dim=1)
        queue._store(("joint", modality), rows, Index({"sample": torch.arange(100, 106)}))
    return queue


def objectives():
    """Every preset, by column names, with a learnable temperature, and features of the objective itself."""
    t = lambda: LearnableTemperature(initial=0.3).double()  # noqa: E731
    from loss_cases import TABLE

    named = {
        "supcon_out": presets.supcon_out(temperature=t()),
        "published": presets.supcon_out(temperature=t(), as_published=True),
        "supcon_in": presets.supcon_in(temperature=t()),
        "simclr": presets.simclr(temperature=t()),
        "drop_same_class": presets.drop_same_class(temperature=t()),
        "gist": presets.gist(temperature=t(), margin=0.3),
        "sincere": presets.sincere(temperature=t()),
        "dcl": presets.dcl(temperature=t()),
        "clip": presets.clip(temperature=t()),
        "clip_one_way": presets.clip_one_way(temperature=t()),
        "multiple_negatives": presets.multiple_negatives(temperature=t(), anchors="image", positives="text"),
        "cmc": presets.cmc(temperature=t(), views=("image", "text")),
        "moco": presets.moco(temperature=t(), queue=filled_queue()),
        "multi_label": presets.multi_label(temperature=t()),
        "y_aware": presets.y_aware(temperature=t(), labels="time", width=0.5),
        "x_clr": presets.x_clr(temperature=t()),
        "cwcl": presets.cwcl(temperature=t(), graded="image", other="text"),
        "soft_clt": presets.soft_clt(temperature=t(), width_seconds=0.5),
        "temporal": presets.temporal(temperature=t(), width_seconds=0.5),
        "hierarchical": presets.hierarchical(temperature=t(), table=TABLE),
        "hard_negatives": presets.hard_negatives(temperature=t()),
        "debiased": presets.debiased(temperature=t(), class_prior=0.05),
    }
    assert set(presets.PRESETS) <= set(named)
    made = {name: Objective(**kwargs, backend=backend) for name, kwargs in named.items() for backend in ("dense",)}
    made |= {f"{name} tiled": Objective(**kwargs, backend="tiled") for name, kwargs in named.items()}
    made["union"] = Objective(affinity=SameLabel(), temperature=t(), union=True)
    made["learnable kernel"] = Objective(
        affinity=LabelKernel("time", width=nn.Parameter(torch.tensor(0.5, dtype=D))), temperature=t()
    )
    made["mixed"] = Objective(affinity=MixedLabel(), temperature=t(), backend="dense")
    made["mixed tiled"] = Objective(affinity=MixedLabel(), temperature=t(), backend="tiled")
    weighted = [Block("image", weight=0.3), Block("text", "image", weight=2.0, affinity=SameSample())]
    made["blocks"] = Objective(affinity=TimeKernel(width_seconds=0.4), temperature=t(), blocks=weighted)
    return made


class Predicting(nn.Module):
    """Towers with predictions, without batch norm, whose statistics would be those of a rank."""

    def __init__(self):
        super().__init__()
        self.towers, self.layer = Towers(), nn.Linear(WIDTH, WIDTH, dtype=D)
        self.layer.weight.data, self.layer.bias.data = draw(WIDTH, WIDTH, seed=60), draw(WIDTH, seed=61)

    def forward(self, batch):
        joint = self.towers(batch)["joint"]
        guesses = {m: nn.functional.normalize(self.layer(z), dim=1) for m, z in joint.items()}
        return {"joint": joint, predicted("joint"): guesses}


def step(objective, rows, modalities, wrap, chunk_size=None, model=Towers):
    model = model()
    model = DistributedDataParallel(model, find_unused_parameters=True) if wrap else model
    batch = batch_of(rows, modalities)
    if chunk_size is None:
        loss = objective(model(batch), batch)
    else:
        loss = cached(model, objective, batch, chunk_size=chunk_size)
    loss.backward()
    found = [
        p.grad if p.grad is not None else torch.zeros_like(p) for p in [*model.parameters(), *objective.parameters()]
    ]
    return [loss.detach(), *found]


def with_queue(rows):
    queue = Queue(size=6)
    objective = Objective(affinity=SameLabel(), temperature=0.3, queue=queue)
    model, batch = Towers(), batch_of(rows, ["image"])
    queue.push(model(batch), batch)
    return objective, queue


def all_cases(rows, wrap):
    """The loss and gradients of every case, by name."""
    both = ["image", "text"]
    found = {name: step(objective, rows, both, wrap) for name, objective in objectives().items()}
    found["cached"] = step(objectives()["clip"], rows, both, wrap, chunk_size=2)
    objective, _ = with_queue(rows)
    found["queue"] = step(objective, rows, ["image"], wrap)
    for stop in (True, False):
        objective = Prediction(affinity=SameLabel(), space="joint", stop_gradient=stop)
        found[f"prediction {stop}"] = step(objective, rows, both, wrap, model=Predicting)
    found["regression"] = step(FeatureRegression(target="side", space="joint"), rows, both, wrap)
    return found


def worker(rank, count, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=count)
    start = sum(SHARDS[count][:rank])
    found = all_cases(slice(start, start + SHARDS[count][rank]), wrap=True)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_agree_with_one(count, tmp_path):
    alone = all_cases(slice(0, N), wrap=False)
    torch.multiprocessing.spawn(worker, (count, free_port(), str(tmp_path)), nprocs=count)
    for rank in range(count):
        for name, found in torch.load(tmp_path / f"{rank}.pt").items():
            for ours, theirs in zip(found, alone[name], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_square_presets_are_all_covered():
    names = {name.split(" ")[0] for name in square_presets(columns(8))} - {"hard"}
    assert names <= set(presets.PRESETS)


def one_modality_each(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    modality = ["image", "text"][rank]
    z = draw(4, WIDTH, seed=rank).requires_grad_()
    table = Index({"label": torch.arange(4) % 2, **({"extra": torch.arange(4)} if rank else {})})
    objective = Objective(affinity=SameLabel(), temperature=0.5)
    loss = objective({"joint": {modality: z}}, {modality: table})
    loss.backward()
    torch.save((loss.detach(), z.grad / 2), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_process_may_lack_a_modality(tmp_path):
    torch.multiprocessing.spawn(one_modality_each, (free_port(), str(tmp_path)), nprocs=2)
    z = [draw(4, WIDTH, seed=i).requires_grad_() for i in range(2)]
    table = Index({"label": torch.arange(4) % 2})
    objective = Objective(affinity=SameLabel(), temperature=0.5)
    loss = objective({"joint": {"image": z[0], "text": z[1]}}, {"image": table, "text": table})
    loss.backward()
    for rank in range(2):
        theirs, gradient = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(theirs, loss.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, z[rank].grad, rtol=1e-12, atol=1e-12)


SIZES = ((2, 2), (1, 3), (4, 0))


def reduced_rows(rank, port, folder):
    """The local rows of a sum over ranks, by reduce-scatter and by all-reduce, for even, uneven and missing rows."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for sizes in SIZES:
        values = draw(4, WIDTH, seed=rank)
        scattered = collectives._reduce_scatter(values, list(sizes))
        collectives.REDUCE_SCATTER_BACKENDS = ()
        found[sizes] = scattered, collectives._reduce_scatter(values, list(sizes))
        collectives.REDUCE_SCATTER_BACKENDS = ("gloo",)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_gradients_of_gathered_rows_are_scattered_or_summed_alike(tmp_path):
    torch.multiprocessing.spawn(reduced_rows, (free_port(), str(tmp_path)), nprocs=2)
    expected = draw(4, WIDTH, seed=0) + draw(4, WIDTH, seed=1)
    for rank in range(2):
        for sizes, (scattered, summed) in torch.load(tmp_path / f"{rank}.pt").items():
            assert torch.equal(scattered, expected.split(sizes)[rank])
            assert torch.equal(summed, scattered)
