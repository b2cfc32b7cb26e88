"""Small random models in the published layout, and no network."""

from pathlib import Path

import pytest

from tests.tiny import random_tensors, write_encoder


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    # The library reads the environment when it is imported, which may have been earlier.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def tiny_model(tmp_path):
    """Returns a function that writes a model's folder; keywords change the published files."""

    def write(name="model", **changes) -> Path:
        return write_encoder(tmp_path / name, **changes)

    return write


@pytest.fixture
def make_tensors():
    return random_tensors
