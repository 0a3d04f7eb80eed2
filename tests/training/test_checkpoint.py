# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or absent; random states that go round."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from pydet import _files
from pydet._files import atomic_path, remove_leftovers
from pydet.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    rng_state,
    save_checkpoint,
    seed_everything,
    set_rng_state,
)


def _state(value: float) -> dict:
    return {"position": 3, "model": {"weight": torch.full((100, 100), value)}}


def _draw() -> tuple:
    numbers = np.random.random(3).tolist()  # noqa: NPY002 - the global generator is meant
    return torch.rand(3).tolist(), numbers, random.random(), random.gauss(0, 1)


def test_checkpoint_goes_round_and_the_one_before_is_kept(tmp_path: Path):
    for value in (1.0, 2.0, 3.0):
        save_checkpoint(tmp_path, _state(value))
    last = load_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(last["model"]["weight"], torch.full((100, 100), 3.0))
    previous = load_checkpoint(tmp_path / "previous.ckpt")
    assert torch.equal(previous["model"]["weight"], torch.full((100, 100), 2.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_without_hard_links_the_one_before_is_kept_too(tmp_path: Path, monkeypatch):
    def refuse(*_):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", refuse)
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path, _state(value))
    assert load_checkpoint(tmp_path / "previous.ckpt")["model"]["weight"][0, 0] == 1
    assert load_checkpoint(tmp_path / "last.ckpt")["model"]["weight"][0, 0] == 2


def test_every_damaged_byte_of_a_tensor_and_every_cut_is_noticed(tmp_path: Path):
    save_checkpoint(tmp_path, _state(1.0))
    save_checkpoint(tmp_path, _state(2.0))
    path = tmp_path / "last.ckpt"
    whole = path.read_bytes()
    place = whole.index(torch.full((16,), 2.0).numpy().tobytes())
    for index in (place, place + 20_001, place + 39_999):
        damaged = bytearray(whole)
        damaged[index] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(
            CheckpointError,
            match=r"last.ckpt: the checkpoint is damaged.*--resume-from .*previous.ckpt",
        ):
            load_checkpoint(path)
    for length in (0, 1, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="is damaged"):
            load_checkpoint(path)
    assert load_checkpoint(tmp_path / "previous.ckpt")["model"]["weight"][0, 0] == 1


def test_other_files_are_no_checkpoints(tmp_path: Path):
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        load_checkpoint(tmp_path / "last.ckpt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="no checkpoint of a training"):
        load_checkpoint(tmp_path / "weights.pt")
    torch.save({"format": 99, "position": 0}, tmp_path / "future.pt")
    with pytest.raises(CheckpointError, match="layout 99, this pydet reads 1"):
        load_checkpoint(tmp_path / "future.pt")


def test_loading_runs_no_code_of_the_file(tmp_path: Path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'harm'}",)

    torch.save({"format": 1, "position": 0, "harm": Attack()}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "harm").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch):
    """Order of the system calls: sync of the file, rename, sync of the folder."""
    calls = []
    replace, sync = os.replace, _files._sync
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    monkeypatch.setattr(_files, "_sync", lambda p: (calls.append(p.is_dir()), sync(p)))
    with atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("x")
    assert calls == [False, "rename", True]


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path):
    save_checkpoint(tmp_path, _state(1.0))
    (tmp_path / ".last.tmp-123.ckpt").write_bytes(b"half")
    (tmp_path / ".previous.ckpt.tmp-123").write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_random_states_go_round_through_a_file(tmp_path: Path):
    seed_everything(5)
    random.gauss(0, 1)  # Python keeps a second normal number for the next call
    save_checkpoint(tmp_path, {"position": 0, "rng": rng_state()})
    expected = _draw()
    seed_everything(6)
    assert _draw() != expected
    set_rng_state(load_checkpoint(tmp_path / "last.ckpt")["rng"])
    assert _draw() == expected
