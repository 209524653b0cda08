"""Queue, bank and momentum encoder: contents, candidates, and checkpoints."""

import copy
import math

import pytest
import torch
from loss_cases import D, unit
from torch import nn

from mmcon.affinity import SameLabel, SameSample
from mmcon.batch import Index
from mmcon.errors import CheckpointError, InputError
from mmcon.losses import weighted_supcon
from mmcon.models.ema import MomentumEncoder
from mmcon.objective.objective import Objective
from mmcon.objective.queue import Bank, Queue


def table(first, n):
    rows = torch.arange(first, first + n)
    return Index({"sample": rows, "label": rows % 3})


def pushed(memory, *sizes):
    first = 0
    for n in sizes:
        memory.push({"joint": {"image": unit(n, 4, seed=first)}}, {"image": table(first, n)})
        first += n
    return memory


def test_queue_keeps_the_newest_rows_with_their_labels():
    queue = pushed(Queue(size=5), 3, 3, 2)
    rows, index = queue.rows("joint", "image")
    assert sorted(index["sample"].tolist()) == [3, 4, 5, 6, 7]
    everything = torch.cat([unit(3, 4, seed=0), unit(3, 4, seed=3), unit(2, 4, seed=6)])
    assert torch.equal(rows, everything[index["sample"]])
    assert queue.rows("joint", "text") is None


def test_a_push_larger_than_the_queue_keeps_its_end():
    assert sorted(pushed(Queue(size=2), 5).rows("joint", "image")[1]["sample"].tolist()) == [3, 4]


@pytest.mark.parametrize("make", [lambda: Queue(size=5), lambda: Bank(samples=torch.arange(20), momentum=0.5)])
def test_a_checkpoint_brings_it_back(make):
    memory, back = pushed(make(), 3, 3), make()
    back.load_state_dict(copy.deepcopy(memory.state_dict()))
    for one in (memory, back):
        one.push({"joint": {"image": unit(4, 4, seed=9)}}, {"image": table(4, 4)})
    ours, theirs = memory.rows("joint", "image"), back.rows("joint", "image")
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1]["sample"], theirs[1]["sample"])
    with pytest.raises(CheckpointError, match="7 rows"):
        Queue(size=7).load_state_dict(memory.state_dict())


@pytest.mark.parametrize("make", [lambda: Queue(size=5), lambda: Bank(samples=torch.arange(20))])
def test_what_a_checkpoint_brings_back_moves_to_the_device(make):
    """Checkpoints are read onto the CPU; the meta device stands in for a GPU."""
    memory = pushed(make(), 3)
    store = memory.to("meta")._stores["joint", "image"]
    assert {name: tensor.device.type for name, tensor in store.items() if name != "pushed"} == dict.fromkeys(
        (name for name in store if name != "pushed"), "meta"
    )
    assert all(tensor.device.type == "cpu" for name, tensor in store.items() if name == "pushed")


def test_bank_averages_views_and_moves_by_momentum():
    bank = Bank(samples=torch.tensor([7, 5]), momentum=0.5)
    x, y = torch.eye(2, dtype=D)
    both_views = torch.stack([x, y])
    bank.push({"joint": {"image": both_views}}, {"image": Index({"sample": torch.tensor([5, 5])})})
    rows, index = bank.rows("joint", "image")
    half = (x + y) / math.sqrt(2)
    assert index["sample"].tolist() == [5]
    torch.testing.assert_close(rows[0], half)
    bank.push({"joint": {"image": x[None]}}, {"image": Index({"sample": torch.tensor([5])})})
    torch.testing.assert_close(bank.rows("joint", "image")[0][0], nn.functional.normalize(half + x, dim=0))
    with pytest.raises(InputError, match="sample 6"):
        bank.push({"joint": {"image": x[None]}}, {"image": Index({"sample": torch.tensor([6])})})


@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_queue_rows_are_candidates_and_never_anchors(backend):
    queue, z, here = pushed(Queue(size=5), 5), unit(4, 4, seed=42).requires_grad_(), table(20, 4)
    objective = Objective(affinity=SameLabel(), temperature=0.2, queue=queue, backend=backend)
    loss = objective({"joint": {"image": z}}, {"image": here})
    rows, index = queue.rows("joint", "image")
    affinity = SameLabel(here["label"], torch.cat([here["label"], index["label"]]))
    pool = torch.cat([z, rows])
    expected = weighted_supcon(z, pool, affinity, temperature=0.2, self_index=torch.arange(4))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(loss, z), torch.autograd.grad(expected, z), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_push_leaves_a_pending_backward_pass_alone():
    queue, z = pushed(Queue(size=4), 4), unit(4, 4).requires_grad_()
    objective = Objective(affinity=SameLabel(), temperature=0.2, queue=queue)
    loss = objective({"joint": {"image": z}}, {"image": table(20, 4)})
    pushed(queue, 4)
    loss.backward()
    assert torch.isfinite(z.grad).all()


def test_momentum_candidates_leave_out_the_row_itself():
    online, momentum = unit(6, 4).requires_grad_(), unit(6, 4, seed=1)
    index = Index({"sample": torch.arange(6) % 3})
    objective = Objective(affinity=SameSample(), temperature=0.2)
    loss = objective({"joint": {"image": online}}, {"image": index}, {"joint": {"image": momentum}})
    affinity = SameSample(index["sample"], index["sample"])
    expected = weighted_supcon(online, momentum, affinity, temperature=0.2, self_index=torch.arange(6))
    torch.testing.assert_close(loss, expected)


def test_momentum_encoder_averages_parameters_and_buffers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    encoder = MomentumEncoder(model, momentum=0.9)
    before = encoder.model[0].weight.clone()
    with torch.no_grad():
        model[0].weight.add_(1)
        model[1].running_mean.fill_(2)
        model[1].num_batches_tracked.fill_(7)
    encoder.update(model)
    torch.testing.assert_close(encoder.model[0].weight, before + 0.1)
    torch.testing.assert_close(encoder.model[1].running_mean, torch.full((3,), 0.2))
    assert int(encoder.model[1].num_batches_tracked) == 7
    assert not encoder(torch.ones(2, 3)).requires_grad


def test_momentum_rises_along_a_cosine_and_its_position_is_kept():
    model = nn.Linear(2, 2)
    encoder = MomentumEncoder(model, momentum=0.9, total_steps=4)
    seen = []
    for _ in range(3):
        seen.append(encoder.current_momentum())
        encoder.update(model)
    assert seen == pytest.approx([0.9, 1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2, 0.95])
    back = MomentumEncoder(model, momentum=0.9, total_steps=4)
    back.load_state_dict(encoder.state_dict())
    assert back.current_momentum() == encoder.current_momentum()
    with pytest.raises(InputError, match="momentum in"):
        MomentumEncoder(model, momentum=1.0)
