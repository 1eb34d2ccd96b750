"""The environment of a training on CUDA, and whether networks can be compiled."""

import os
from types import SimpleNamespace

import pytest

from workers import devices


@pytest.fixture
def folder(configure, monkeypatch, tmp_path):
    """Of compiled networks, in a new data folder."""
    for name in ("CUBLAS_WORKSPACE_CONFIG", "TORCHINDUCTOR_CACHE_DIR", "CC"):
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    configure(ANAMORPH_DATA_DIR=tmp_path)
    devices.prepare_cuda()
    return tmp_path / "compiled"


def test_compiled_networks_are_kept_in_the_data_folder_and_products_can_be_deterministic(folder):
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_compiling_needs_a_compiler_and_a_folder_for_executables(folder, monkeypatch):
    found = {"cc": "/usr/bin/cc"}
    monkeypatch.setattr(devices.shutil, "which", found.get)
    assert devices.can_compile() and folder.is_dir()
    monkeypatch.setattr(devices.os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOEXEC))
    assert not devices.can_compile()
    monkeypatch.setattr(devices.os, "statvfs", lambda path: SimpleNamespace(f_flag=0))
    assert devices.can_compile()
    found.clear()
    assert not devices.can_compile()
