"""The arithmetic of runs on many devices: worked by hand, and beside the memory that a small step takes."""

from dataclasses import replace

import pytest
import torch

import mmcon
from mmcon import cli
from mmcon.affinity import SameLabel
from mmcon.batch import Index, ViewBatch
from mmcon.errors import ConfigError
from mmcon.models.encoders import create_encoder
from mmcon.operations.capacity_plan import TABLE_BYTES, TILE, TILES, Plan
from mmcon.operations.memory_budget import peak_bytes
from mmcon.training.optim import create_optimizer

# 1,000 weights, 100 bytes and 10 operations a row; 64 samples in 2 views over 4 processes: 32 rows each, 128 in all.
SMALL = Plan(
    encoder="made up", parameters=1000, row_bytes=100, operations=10, batch_size=64, world_size=4, precision="no"
)


def test_rows_and_candidates():
    assert (SMALL.rows, SMALL.candidates, SMALL.embedded) == (32, 128, 32)
    assert replace(SMALL, queue_rows=1000).candidates == 1128
    assert replace(SMALL, chunk_rows=8).embedded == 8


def test_memory_by_hand():
    # The loss: 128 gathered rows of 128 float32 and their tables, gradients of 128 candidates and 32 anchors, eight
    # numbers for each of these, and four tiles of 32 × 128.
    loss = 128 * (512 + TABLE_BYTES) + 160 * 512 + 160 * 8 * 4 + TILES * 32 * 128 * 4
    assert SMALL.loss_bytes == loss
    # Weights, gradients, one momentum, and DDP's buckets, 4,000 bytes each; no half-precision copy.
    memory = SMALL.memory
    assert (memory.parameters, memory.gradients, memory.optimizer) == (4000, 4000, 4000)
    assert memory.copies == 4000 + loss
    assert memory.total == 4 * 4000 + loss + 32 * 100
    assert replace(SMALL, precision="bf16").memory.copies == memory.copies + 2000
    assert replace(SMALL, momentum_encoder=True).memory.copies == memory.copies + 4000
    # Adam keeps two; four processes keep a quarter each; parts have no buckets.
    parts = replace(SMALL, engine="fsdp2", optimizer="adamw").memory
    assert (parts.parameters, parts.optimizer, parts.copies) == (1000, 2000, loss)


def test_traffic_by_hand():
    # Three of four parts come from elsewhere. A ring that sums for all passes twice, one that gives each its own part
    # once; FSDP2 gathers weights forward and backward.
    traffic = SMALL.traffic
    assert (traffic.rows, traffic.row_gradients) == (96 * (512 + TABLE_BYTES), 96 * 512)
    assert (traffic.gradients, traffic.weights) == (2 * 3000, 0)
    parts = replace(SMALL, engine="fsdp2").traffic
    assert (parts.gradients, parts.weights) == (3000, 6000)
    assert replace(SMALL, world_size=1).traffic.total == 0


def test_tiles_do_not_grow_with_the_batch():
    large = replace(SMALL, batch_size=65_536, world_size=1024)
    assert large.loss_bytes < large.candidates * 1200 + TILES * TILE**2 * 4
    # 128 rows of one of 1,024 processes against 131,072: 64 MiB, if it were written out.
    assert large.dense_loss_bytes == 128 * 131_072 * 4


def test_the_slowest_link_counts():
    near, far = SMALL.network_seconds, replace(SMALL, world_size=16).network_seconds
    assert near == pytest.approx(SMALL.traffic.total / 450e9)
    assert far == pytest.approx(replace(SMALL, world_size=16).traffic.total / 50e9)


@pytest.mark.parametrize(("settings", "told"), [
    ({"batch_size": 65}, "--batch-size 64"),
    ({"batch_size": 3}, "--batch-size 4"),
    ({"optimizer": "adam"}, "sgd, lars, adamw"),
    ({"device": "P100"}, "A100, H100, H200"),
    ({"chunk_rows": 0}, "1 or more"),
])  # fmt: skip
def test_mistakes_are_told(settings, told):
    with pytest.raises(ConfigError, match=told):
        replace(SMALL, **settings)


@pytest.mark.parametrize(("size", "samples"), [(28, 64), (28, 256), (48, 128)])
def test_a_step_takes_the_memory_that_is_foretold(size, samples):
    plan = Plan.measure("mmcon/resnet-tiny", image_size=size, batch_size=samples, precision="no", optimizer="adamw")
    encoder = create_encoder("mmcon/resnet-tiny", image_size=size)
    model = mmcon.ContrastiveModel({"image": encoder}, {"shared": mmcon.SharedSpace(dim=128)})
    objective = mmcon.Objective(affinity=SameLabel(), temperature=0.1)
    optimizer = create_optimizer([model, objective], "adamw", learning_rate=1e-3)
    rows = torch.arange(2 * samples)

    def step():
        views = torch.zeros(2 * samples, 3, size, size) + rows.view(-1, 1, 1, 1) / len(rows)
        batch = ViewBatch({"image": (views,)}, {"image": Index({"label": rows % 7, "sample": rows // 2})}, step=0)
        objective(model(batch), batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()  # the optimizer's state is there from now on
    held = plan.memory.parameters + plan.memory.optimizer
    # What the profiler cannot see, what layers hold for a moment: within an eighth.
    assert peak_bytes(step) == pytest.approx(plan.memory.total - held, rel=1 / 8)


def test_the_command(capsys):
    words = ["plan", "--encoder", "mmcon/resnet-tiny", "--image-size", "32", "--batch-size", "65536", "--gpus", "1024"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "65,536 samples × 2 views over 1,024 H100 by ddp in bf16" in out
    assert "against 131,072 candidates" in out
    assert "gradients of weights" in out
    assert cli.main([*words[:-1], "1000"]) == 2
    assert "a batch size that is divisible by the world size" in capsys.readouterr().err
