"""What processes tell one another, and what is the same for all of them: two of them over gloo, beside arithmetic."""

import os
import socket
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from loss_cases import draw
from torch import nn

from mmcon.batch import Index, ViewBatch
from mmcon.distributed import fsdp
from mmcon.distributed.collectives import (
    any_rank,
    barrier,
    broadcast,
    full_tensor,
    gather_objects,
    group_without_timeout,
)
from mmcon.errors import ConfigError, InputError
from mmcon.models.batch_norm import GlobalBatchNorm
from mmcon.training import run_folder
from mmcon.training.checkpoint import Checkpoints
from mmcon.training.environment import threads_of_rank
from mmcon.training.logging import gather_failures
from mmcon.training.optim import OPTIMIZERS, create_optimizer
from mmcon.training.run_folder import check_shared


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def together(rank, port, folder):
    """Everything that is tested of two processes, in one start of them."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=3))
    found = {
        "all": gather_objects(("process", rank)),
        "any": [any_rank(rank == 1, "cpu"), any_rank(False, "cpu")],
        "failures": gather_failures(Loader({rank: f"unreadable {rank}"})),
    }
    image = torch.arange(24.0).view(1, 4, 2, 3).to(memory_format=torch.channels_last) * (rank + 1)
    broadcast([image, number := torch.tensor(rank + 5)])
    found["shared"] = image, number
    found |= in_parts(rank)
    found["normalised"] = normalised(rank)
    found["optimizers"] = by_optimizer(parts=True)
    found["folder"] = told(lambda: see(os.path.join(folder, str(rank))))
    batch = ViewBatch({"image": (image,)} if rank else {}, {"image": Index({}, n=1)})
    found["modalities"] = told(lambda: fsdp.check_same_modalities(batch))
    patience = group_without_timeout()
    time.sleep(5 * (rank == 0))  # longer than the limit of three seconds
    barrier(patience)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


class Loader:
    def __init__(self, failures):
        self.failures, self.files = failures, {sample: f"file {sample}" for sample in failures}


def told(act):
    try:
        return act()
    except (ConfigError, InputError) as error:
        return str(error)


def in_parts(rank):
    """Weights begun by other numbers in each process, laid out in parts."""
    model = nn.Sequential(nn.Linear(3, 5))
    nn.init.constant_(model[0].weight, rank + 1.0)
    fsdp.shard(model, torch.optim.SGD(model.parameters(), lr=1.0), torch.device("cpu"), 2)
    weights = {"begun": full_tensor(model[0].weight).clone()}
    weights |= {f"keep={keep}": fsdp.full_state(model.state_dict(), keep=keep)["0.weight"] for keep in (True, False)}
    return weights


def normalised(rank):
    """Batch norm over both processes' bfloat16 rows, 1,026 together, which no bfloat16 number can count."""
    norm = GlobalBatchNorm(3)
    rows = ROWS.chunk(2)[rank]
    return norm(rows), norm.running_mean, norm.running_var


ROWS = (torch.randn(1026, 3, generator=torch.Generator().manual_seed(0)) + 3).bfloat16()


def by_optimizer(parts):
    """Weights after three steps of each optimizer, in parts or whole."""
    found = {}
    for name in OPTIMIZERS:
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).double()
        for number, parameter in enumerate(model.parameters()):
            parameter.data = draw(*parameter.shape, seed=number)
        optimizer = create_optimizer(model, name, learning_rate=0.1, weight_decay=1e-3)
        if parts:
            fsdp.shard(model, optimizer, torch.device("cpu"), 2)
        for step in range(3):
            model(draw(4, 6, seed=step)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        found[name] = [full_tensor(parameter).detach().clone() for parameter in model.parameters()]
    return found


def see(folder):
    """Each process has a folder of its own, as on machines that share none."""
    os.makedirs(folder, exist_ok=True)
    run_folder.PATIENCE_SECONDS = 0.1
    places = Checkpoints(Path(folder) / "checkpoints")
    run_folder.open_folder(places, {}, is_main=dist.get_rank() == 0, resume=False, force=False, log=lambda text: None)


@pytest.mark.slow
def test_two_processes(tmp_path):
    alone, norm = by_optimizer(parts=False), nn.BatchNorm1d(3)
    torch.multiprocessing.spawn(together, (free_port(), str(tmp_path)), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["all"] == [("process", 0), ("process", 1)]
        assert found["any"] == [True, False]
        assert found["failures"] == {"file 0": "unreadable 0", "file 1": "unreadable 1"}
        image, number = found["shared"]
        assert torch.equal(image, torch.arange(24.0).view(1, 4, 2, 3))
        assert int(number) == 5
        assert torch.equal(found["begun"], torch.ones(5, 3))
        assert torch.equal(found["keep=True"], torch.ones(5, 3))
        assert found["keep=False"].numel() == 0
        rows, mean, variance = found["normalised"]
        assert rows.dtype == torch.bfloat16
        torch.testing.assert_close(rows.float(), norm(ROWS.float()).chunk(2)[rank], rtol=1e-2, atol=1e-2)
        torch.testing.assert_close([mean, variance], [ROWS.float().mean(0) * 0.1, ROWS.float().var(0) * 0.1 + 0.9])
        for name in OPTIMIZERS:
            torch.testing.assert_close(found["optimizers"][name], alone[name], rtol=1e-12, atol=1e-12)
        assert "which ranks [1] do not see" in found["folder"]
        assert "[(), ('image',)]" in found["modalities"]


# --- what one process can show ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mine", "world_size", "threads"), [
    (range(2), [range(2)], 2),
    (range(8), [range(8)] * 8, 1),
    (range(20), [range(20)] * 8, 2),  # 2.5 each
    (range(2), [range(2)] * 3, 1),  # more processes than cores
    (range(12), [range(12 * i, 12 * i + 12) for i in range(8)], 12),  # tasks tied to cores of their own
    (range(18), [range(18)] * 6, 3),
])  # fmt: skip
def test_cores_are_shared_by_those_who_may_use_them(mine, world_size, threads):
    assert threads_of_rank(mine, world_size) == threads


def test_a_folder_that_is_not_shared_is_refused(tmp_path):
    check_shared(tmp_path, [True, True], ["step-000000004"] * 2)
    with pytest.raises(ConfigError, match=r"rank 0: step-000000004(.|\n)*rank 1: none(.|\n)*same absolute path"):
        check_shared(tmp_path, [True, True], ["step-000000004", ""])
    with pytest.raises(ConfigError, match=r"ranks \[1\] do not see"):
        check_shared(tmp_path, [True, False], ["", ""])


def test_one_process_talks_to_itself():
    assert gather_objects(3) == [3]
    assert any_rank(True, "cpu")
    assert group_without_timeout() is None
    barrier(None)
    assert gather_failures(None) == {}
