"""Files that go bad during a run: quarantine.jsonl names them, the next run leaves them out, resume is exact."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mmcon
from mmcon.affinity import SameSample
from mmcon.objective.objective import Objective
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.factory import create_source
from mmcon.training.logging import QUARANTINE, MetricsLog
from mmcon.training.run import Run, RunSettings


class Network(nn.Module):
    """16 × 16 pixels to a unit embedding of 4."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(768, 4)).double()

    def forward(self, batch):
        pixels = torch.cat(batch.views["image"]).double()
        return {"shared": {"image": nn.functional.normalize(self.layers(pixels), dim=1)}}


def train(data, output, *, go_bad=(), resume=False, max_steps=None, **more):
    """Two epochs of three steps with a quarantine file; return losses, samples and the size of the source."""
    settings = RunSettings(epochs=2, log_every=1, max_steps=max_steps, **more)
    run = Run(output, seed=0, settings=settings, resume=resume, cpu=True)
    source = create_source(data, split="all", quarantine=run.folder / QUARANTINE, max_failures=0.1)
    for file in go_bad:
        file.write_text("<html>404 Not Found</html>")
    view = mmcon.create_view("image/crop-flip", size=16)
    loader = run.loader(source, {"image": [view, view]}, UniformSampler(source.ids, batch_size=4, seed=0))
    model, objective = Network(), Objective(affinity=SameSample(), temperature=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=6)
    network = run.prepare(model, optimizer, schedule, objective=objective)
    steps = []
    for batch in run.batches(loader):
        loss = objective(network(batch), batch)
        run.step(loss)
        steps.append((loss.item(), batch.index["image"]["sample"].tolist()))
    if max_steps is None:
        run.finish({})
    else:
        run.close()
    return steps, len(source)


@pytest.fixture
def data(tmp_path):
    for number in range(12):
        file = tmp_path / "data" / "ab"[number % 2] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(file)
    return tmp_path / "data"


def listed(folder):
    return [json.loads(line)["file"] for line in (folder / QUARANTINE).read_text().splitlines()]


def test_a_file_that_goes_bad_in_a_run_is_named_by_path_and_left_out_of_the_next(data, tmp_path, capsys):
    bad = data / "a" / "04.png"
    good = bad.read_bytes()
    steps, size = train(data, tmp_path / "run", go_bad=[bad])
    assert (len(steps), size) == (6, 12)
    assert listed(tmp_path / "run") == [str(bad)]
    assert f"1 unreadable samples were left out, listed in {tmp_path / 'run' / QUARANTINE}:\n  {bad}" in (
        capsys.readouterr().out
    )
    bad.write_bytes(good)  # also if it is repaired: the file lists it
    assert len(create_source(data, split="all", quarantine=tmp_path / "run" / QUARANTINE, max_failures=0.1)) == 11


def test_a_run_with_a_bad_file_resumes_exactly(data, tmp_path):
    bad = data / "a" / "04.png"
    good = bad.read_bytes()
    whole, _ = train(data, tmp_path / "whole", go_bad=[bad])
    for at in (2, 5):
        bad.write_bytes(good)
        output = tmp_path / str(at)
        before, _ = train(data, output, go_bad=[bad], max_steps=at)
        bad.write_bytes(good)
        rest, size = train(data, output, go_bad=[bad], resume=True)
        assert before + rest == whole
        assert size == 12
        assert listed(output) == [str(bad)]
    # Resuming a finished run changes nothing, although its quarantine file lists the file.
    bad.write_bytes(good)
    assert train(data, output, go_bad=[bad], resume=True) == ([], 12)
    assert listed(output) == [str(bad)]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_without_a_readable_sample_is_passed_over_and_counted(accumulate, data, tmp_path):
    """The step number, the schedule and the batches stay those of a run in which it is readable; resume is exact."""
    whole, _ = train(data, tmp_path / "whole", accumulate=accumulate)
    source = create_source(data, split="all")
    bad = [source.file(source.ids.tolist().index(sample)) for sample in set(whole[1][1])]
    good = [file.read_bytes() for file in bad]

    def train_with_bad_files(output, **options):
        for file, content in zip(bad, good, strict=True):
            file.write_bytes(content)
        return train(data, tmp_path / output, go_bad=bad, accumulate=accumulate, **options)[0]

    steps = train_with_bad_files("run")
    assert [samples for _, samples in steps[:2]] == [whole[0][1], whole[2][1]]
    lines, before = (MetricsLog(tmp_path / name / "metrics.jsonl").lines() for name in ("run", "whole"))
    assert [line["step"] for line in lines] == [1, 3, 4, 5, 6]
    rates = {line["step"]: line["learning_rate"] for line in before}
    assert all(line["learning_rate"] == rates[line["step"]] for line in lines)
    assert [*train_with_bad_files("resumed", max_steps=3), *train_with_bad_files("resumed", resume=True)] == steps
