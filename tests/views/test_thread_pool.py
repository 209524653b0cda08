"""Parts of a batch in several threads."""

import os
import threading

import pytest
import torch
from PIL import Image

import mmcon
from mmcon.errors import InputError
from mmcon.media import ImageHandle
from mmcon.views import map_parts


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_parts_run_in_threads_of_one_intra_op_thread_each_and_the_caller_keeps_its_own(two_threads):
    waiting = threading.Barrier(2, timeout=60)  # breaks unless two parts run at a time

    def part(number):
        waiting.wait()
        return number, torch.get_num_threads(), threading.current_thread().name.startswith("mmcon-views")

    assert map_parts(part, [3, 4]) == [(3, 1, True), (4, 1, True)]
    assert torch.get_num_threads() == 2
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]


def test_one_part_runs_in_the_thread_of_the_caller_with_one_intra_op_thread(two_threads):
    (found,) = map_parts(lambda _: (torch.get_num_threads(), threading.current_thread()), [0])
    assert found == (1, threading.current_thread())
    assert torch.get_num_threads() == 2


def test_the_modes_of_the_caller_hold_and_the_first_error_is_raised_after_all_parts(two_threads):
    with torch.inference_mode():
        assert map_parts(lambda _: torch.ones(1).is_inference(), range(2)) == [True, True]
    with torch.no_grad():
        assert map_parts(lambda _: torch.is_grad_enabled(), range(2)) == [False, False]
    ended = []

    def part(number):
        ended.append(number)
        if number in (1, 2):
            raise ValueError(f"part {number}")

    with pytest.raises(ValueError, match="part 1"):
        map_parts(part, range(4))
    assert sorted(ended) == [0, 1, 2, 3]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_has_threads_of_its_own(two_threads):
    assert map_parts(lambda part: part + 1, [1, 2]) == [2, 3]
    child = os.fork()
    if not child:
        os._exit(0 if map_parts(lambda part: part + 1, [1, 2]) == [2, 3] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def photos(tmp_path, count):
    for number in range(count):
        pixels = torch.randint(0, 256, (90, 120, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{number}.png")
    return [ImageHandle(tmp_path / f"{number}.png") for number in range(count)]


def test_views_of_files_have_the_same_bits_with_two_threads(two_threads, tmp_path):
    handles, table = photos(tmp_path, 12), mmcon.keys(seed=0, sample=torch.arange(12))
    view = mmcon.create_view("image/simclr", size=80)
    views = view(handles, table)
    torch.set_num_threads(1)
    assert torch.equal(views, view(handles, table))


def test_a_file_is_decoded_once_for_all_its_views(two_threads, tmp_path, monkeypatch):
    handles = photos(tmp_path, 3)
    view = mmcon.create_view("image/simclr", size=80)
    table = mmcon.keys(seed=0, sample=torch.arange(3).repeat(2), view=torch.arange(2).repeat_interleave(3))
    alone = torch.cat([view(handles, table[:3]), view(photos(tmp_path, 3), table[3:])])
    opened, decode = [], ImageHandle.decode_regions
    monkeypatch.setattr(ImageHandle, "decode_regions", lambda self, own: opened.append(self.id) or decode(self, own))
    # As a loader opens them: anew for each view.
    assert torch.equal(view([*handles, *photos(tmp_path, 3)], table), alone)
    assert len(opened) == 3


def test_an_image_of_other_channels_is_named_by_its_own_name(two_threads, tmp_path):
    handles = photos(tmp_path, 12)
    handles[7] = ImageHandle(tmp_path / "7.png", channels=1)
    with pytest.raises(InputError, match=r"3 channels(.|\n)*got 1 in sample .*7\.png"):
        mmcon.create_view("image/simclr", size=80)(handles, mmcon.keys(seed=0, sample=torch.arange(12)))


def test_functions_that_use_global_random_states_run_one_at_a_time(two_threads):
    """A plain function in a chain, in the batched stage: its random state is the process's."""
    running = []

    def noisy(x):
        running.append(threading.current_thread())
        return (x + torch.rand(())).clamp(0, 1)

    view = mmcon.Chain(mmcon.create_view("image/flip"), mmcon.views.FunctionView(noisy, modality="image"))
    samples = torch.rand(64, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    table = mmcon.keys(seed=0, sample=torch.arange(64))
    views = view(samples, table)
    assert set(running) == {threading.current_thread()}
    torch.set_num_threads(1)
    assert torch.equal(views, view(samples, table))


def test_parameters_are_drawn_by_one_intra_op_thread(two_threads):
    """A square root of a few numbers is a parallel region too, whose threads wait for each other."""
    seen = []

    class Counting(mmcon.ViewGenerator):
        def draw(self, keys, meta):
            seen.append(torch.get_num_threads())
            return {}

        def apply(self, batch, params):
            seen.append(torch.get_num_threads())
            return batch

    source = mmcon.TensorSource(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    sampler = mmcon.create_sampler("sampler/uniform", labels=torch.zeros(4, dtype=torch.int64), batch_size=4, seed=0)
    next(iter(mmcon.ViewLoader(source, {"image": [Counting()]}, sampler, seed=0)))
    assert seen == [1, 2]
    Counting()(source.values, mmcon.keys(sample=torch.arange(4)))
    assert seen == [1, 2] * 2
