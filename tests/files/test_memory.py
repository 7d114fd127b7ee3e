"""What is left of memory, by control groups of either version."""

import psutil
import pytest

from amnesia.files import memory

STAT = {
    2: "anon 700\nfile 250\nactive_file 150\ninactive_file 50\n",
    1: "cache 250\nactive_file 1\ntotal_active_file 150\ntotal_inactive_file 50\n",
}


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Make a control group; the process is in the one that was made last."""
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "_OWN", tmp_path / "own")

    def make(version, path, limit, use):
        folder = tmp_path / "groups" / ("memory" if version == 1 else "") / path
        folder.mkdir(parents=True, exist_ok=True)
        names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
        for name, content in zip((*names, "memory.stat"), (f"{limit}\n", f"{use}\n", STAT[version]), strict=True):
            (folder / name).write_text(content)
        line = f"9:cpu,memory:/{path}\n" if version == 1 else f"0::/{path}\n"
        (tmp_path / "own").write_text(f"4:freezer:/\n{line}")

    return make


@pytest.mark.parametrize("version", [1, 2])
def test_the_smallest_of_machine_and_groups_is_left_and_files_make_room(group, version):
    group(version, "", 9000, 500)
    group(version, "a/b", 1000, 900)
    assert memory.available_memory() == 1000 - 900 + 200
    group(version, "a", 950, 920)  # A group around it; the process stays where it is.
    (memory._OWN).write_text("3:memory:/a/b\n0::/a/b\n")
    assert memory.available_memory() == 950 - 920 + 200
    group(version, "a/b", 2**62, 900)
    group(version, "a", 10, 300)
    assert memory.available_memory() == 0


def test_where_no_group_has_a_limit_the_machine_has(group, monkeypatch):
    group(2, "a", "max", 900)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Machine", (), {"available": 12345})())
    assert memory.available_memory() == 12345
    memory._OWN.unlink()
    assert memory.available_memory() == 12345


def test_in_a_container_the_group_is_the_topmost_that_can_be_seen(group):
    group(2, "", 700, 600)
    memory._OWN.write_text("0::/system.slice/docker-0123.scope\n")
    assert memory.available_memory() == 300
