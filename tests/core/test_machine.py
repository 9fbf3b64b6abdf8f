"""Processors and memory: the machine's, and a container's limits in either version of control groups."""

import os

import pytest

from fastlmm_core.core import Control, machine

GIB = 2**30


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A function that lays out /proc and /sys/fs/cgroup as a container shows them."""

    def lay_out(files):
        for name, text in {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {8 * 2**20} kB\n", **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
        monkeypatch.setattr(machine, "GROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
        monkeypatch.setattr(machine, "FORKED", [])
        machine.processor_quotas.cache_clear()
        machine.memory_limits.cache_clear()

    yield lay_out
    machine.processor_quotas.cache_clear()
    machine.memory_limits.cache_clear()


def test_without_groups_it_is_the_machine(container):
    container({})
    assert machine.available_memory() == 8 * GIB
    assert machine.default_threads() == 16


def test_version_2(container):
    container(
        {
            "proc/self/cgroup": "0::/\n",
            "cgroup/memory.max": f"{2 * GIB}\n",
            "cgroup/memory.current": f"{GIB}\n",
            "cgroup/memory.stat": f"anon {GIB // 2}\ninactive_file {GIB // 2}\n",
            "cgroup/cpu.max": "250000 100000\n",
        }
    )
    assert machine.available_memory() == 2 * GIB - GIB // 2
    assert machine.default_threads() == Control().n_threads == 3
    assert Control().n_bytes == 2 * GIB - GIB // 2


def test_version_2_without_limits(container):
    container(
        {
            "proc/self/cgroup": "0::/a/b\n",
            "cgroup/a/b/memory.max": "max\n",
            "cgroup/a/b/memory.current": f"{GIB}\n",
            "cgroup/a/b/cpu.max": "max 100000\n",
        }
    )
    assert machine.available_memory() == 8 * GIB
    assert machine.default_threads() == 16


def test_the_narrowest_of_the_groups_above_binds(container):
    container(
        {
            "proc/self/cgroup": "0::/a/b\n",
            "cgroup/a/b/memory.max": f"{4 * GIB}\n",
            "cgroup/a/b/memory.current": "0\n",
            "cgroup/a/memory.max": f"{3 * GIB}\n",
            "cgroup/a/memory.current": f"{GIB}\n",
            "cgroup/a/b/cpu.max": "max 100000\n",
            "cgroup/a/cpu.max": "50000 100000\n",
        }
    )
    assert machine.available_memory() == 2 * GIB
    assert machine.default_threads() == 1


def test_version_1(container):
    """The path is the host's, and the container's own group is what is mounted."""
    container(
        {
            "proc/self/cgroup": "5:memory:/docker/1234\n4:cpu,cpuacct:/docker/1234\n1:name=systemd:/x\n",
            "cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
            "cgroup/memory/memory.usage_in_bytes": f"{GIB // 4}\n",
            "cgroup/memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB // 8}\n",
            "cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
            "cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        }
    )
    assert machine.available_memory() == GIB - GIB // 8
    assert machine.default_threads() == 4


def test_version_1_without_limits(container):
    container(
        {
            "proc/self/cgroup": "5:memory:/\n4:cpu,cpuacct:/\n",
            "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
            "cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "cgroup/cpu/cpu.cfs_period_us": "100000\n",
        }
    )
    assert machine.available_memory() == 8 * GIB
    assert machine.default_threads() == 16


def test_what_is_used_up_leaves_something_to_say(container):
    container(
        {
            "proc/self/cgroup": "0::/\n",
            "cgroup/memory.max": f"{GIB}\n",
            "cgroup/memory.current": f"{2 * GIB}\n",
        }
    )
    assert machine.available_memory() == 1


def test_this_machine():
    assert 2**20 < machine.available_memory() <= 2**62
    assert machine.default_threads() >= 1
