"""Quotas of processor time, read from folders that look like those of control groups."""

import logging

import pytest
import torch

from mmcon.training import environment
from mmcon.training.cpu_quota import quota_cores


@pytest.fixture
def quota(tmp_path):
    """`quota(groups, {file: text})`: the limit that a process in these groups has."""

    def read(groups, files):
        (tmp_path / "groups").write_text(groups)
        for name, text in files.items():
            (tmp_path / "mounted" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "mounted" / name).write_text(text)
        return quota_cores(tmp_path / "groups", tmp_path / "mounted")

    return read


@pytest.mark.parametrize(("groups", "files", "cores"), [
    ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
    ("0::/\n", {"cpu.max": "max 100000\n"}, None),
    ("0::/\n", {}, None),
    # The group of a pod allows less than that of its container.
    ("0::/pod/box\n", {"pod/cpu.max": "100000 100000\n", "pod/box/cpu.max": "400000 100000\n"}, 1.0),
    # The path is that of the host, and the container's own group is mounted as the root.
    ("0::/kubepods/box\n", {"cpu.max": "200000 100000\n"}, 2.0),
    ("4:cpu,cpuacct:/box\n2:memory:/box\n", {"cpu,cpuacct/box/cpu.cfs_quota_us": "50000\n",
     "cpu,cpuacct/box/cpu.cfs_period_us": "100000\n"}, 0.5),
    ("4:cpuacct,cpu:/\n", {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
    ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ("1:memory:/box\n", {"memory/box/cpu.max": "100000 100000\n"}, None),
])  # fmt: skip
def test_the_smallest_limit_of_the_groups_counts(quota, groups, files, cores):
    assert quota(groups, files) == cores


def test_a_quota_that_cannot_be_read_is_reported_and_ignored(quota, caplog):
    with caplog.at_level(logging.WARNING):
        assert quota("0::/\n", {"cpu.max": "many 100000\n"}) is None
    assert "the processor quota in" in caplog.text
    assert "many" in caplog.text


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    assert quota_cores(tmp_path / "none", tmp_path) is None


@pytest.mark.parametrize(("quota", "threads"), [(None, 8), (12.0, 8), (2.5, 2), (1.0, 1), (0.3, 1)])
def test_a_rank_has_no_more_threads_than_its_quota(monkeypatch, quota, threads):
    monkeypatch.setattr(environment, "quota_cores", lambda: quota)
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    before = torch.get_num_threads()
    try:
        assert environment.use_all_threads() == threads
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
