"""What a checkpoint holds of what is trained, and where it goes when it comes back."""

import copy
from collections import Counter, OrderedDict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmcon.errors import CheckpointError
from mmcon.training.checkpoint import Checkpoints, load_checkpoint
from mmcon.training.state import TrainingState


class Memory:
    """Something with a state that is no module, and tells what becomes of it."""

    def __init__(self):
        self.told = []

    def state_dict(self):
        return {"rows": torch.ones(2)}

    def load_state_dict(self, state):
        self.told.append(("loaded", float(state["rows"].sum())))

    def to(self, device):
        self.told.append(("moved", str(device)))


def test_everything_comes_back_and_onto_the_device():
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scaler, memory = torch.amp.GradScaler("cpu", init_scale=8.0), Memory()
    trained = TrainingState(layer, optimizer, schedule, scaler, {"memory": memory})
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule.step()
    saved = copy.deepcopy(trained.state_dict(keep=True))
    before = copy.deepcopy(layer.state_dict())
    optimizer.step()
    schedule.step()
    scaler.load_state_dict(torch.amp.GradScaler("cpu", init_scale=2.0).state_dict())
    trained.load_state_dict(saved, torch.device("cpu"))
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    assert schedule.last_epoch == 1
    assert scaler.state_dict()["scale"] == 8.0
    assert memory.told == [("loaded", 2.0), ("moved", "cpu")]
    assert all(torch.equal(state["momentum_buffer"], torch.ones_like(p)) for p, state in optimizer.state.items())


@pytest.mark.parametrize(
    ("now", "tracked", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), {}, r"Missing key\(s\)(.|\n)*--projection-head"),
        (nn.Linear(2, 3), {}, r"size mismatch(.|\n)*--encoder"),
        (nn.Linear(2, 2), {"memory": Memory()}, r"KeyError: 'memory'"),
    ],
)
def test_a_state_of_another_model_is_refused_with_one_error(now, tracked, message):
    def state(model, tracked):
        return TrainingState(model, torch.optim.SGD(model.parameters(), lr=1.0), None, None, tracked)

    saved = state(nn.Linear(2, 2), {}).state_dict(keep=True)
    with pytest.raises(CheckpointError, match=message):
        state(now, tracked).load_state_dict(saved, torch.device("cpu"))


@pytest.mark.parametrize("value", [np.float64(3), deque([1]), nn.Linear(1, 1), lambda: 3, np.ones(2)])
def test_a_state_that_could_not_be_read_again_is_refused_before_the_first_step(value):
    memory = Memory()
    memory.state_dict = lambda: {"rows": [torch.ones(2), {"own": value}]}
    with pytest.raises(CheckpointError, match=rf"state of memory\.rows\.1\.own: (.|\n)*{type(value).__name__}"):
        TrainingState(nn.Linear(1, 1), None, None, None, {"memory": memory})


@pytest.mark.parametrize("key", [np.int64(3), Path("a"), (1, np.int64(3))])
def test_a_key_that_could_not_be_read_again_is_refused_too(key):
    memory = Memory()
    memory.state_dict = lambda: {"rows": {key: torch.ones(2)}}
    with pytest.raises(CheckpointError, match=r"state of memory\.rows, key (.|\n)*(int64|Path)"):
        TrainingState(nn.Linear(1, 1), None, None, None, {"memory": memory})


def test_states_that_torch_reads_are_accepted(tmp_path):
    own = {"a": torch.Size([2]), "b": torch.float32, "c": Counter([3]), "d": OrderedDict(x=nn.Parameter(torch.ones(1)))}
    memory = Memory()
    memory.state_dict = lambda: {**own, "e": (1, 2.5, True, None, "text", b"bytes", {4})}
    state = TrainingState(nn.Linear(1, 1), None, None, None, {"memory": memory})
    saved = Checkpoints(tmp_path).save(1, {"step": 1, "tracked": state.tracked["memory"].state_dict()})
    assert load_checkpoint(saved)["tracked"] == memory.state_dict()
