"""Without a network the hub is asked once, and its cache looked into."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from huggingface_hub import constants

import sealst as sl
from sealst.models._encoders import network
from sealst.models._encoders.network import hub_or_cache


@pytest.fixture(autouse=True)
def _online(monkeypatch, tmp_path):
    """A machine that is told of no network, with an empty cache and no proxy."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example:8443")
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def refused(monkeypatch):
    """No machine answers; gives what was asked."""
    asked = []

    def connect(address, timeout):
        asked.append(address)
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", connect)
    return asked


@pytest.mark.parametrize("name", ["hf-hub:owner/nothing", "test_vit.r160_in1k"])
def test_a_name_of_the_hub_fails_quickly_and_says_why(name, refused):
    started = time.perf_counter()
    with pytest.raises(sl.WeightsError, match="not on this machine, and the hub cannot be reached.*local-dir:<folder>"):
        sl.models.build_encoder(name)
    assert time.perf_counter() - started < 5
    assert refused == [("hub.example", 8443)]
    assert constants.HF_HUB_OFFLINE is False


def test_a_published_encoder_fails_quickly_too(refused):
    started = time.perf_counter()
    with pytest.raises(sl.WeightsError, match="not on this machine, and the hub cannot be reached"):
        sl.models.build_encoder("uni")
    assert time.perf_counter() - started < 5
    assert len(refused) == 1


def test_a_name_that_is_looked_up_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(network, "_PATIENCE_S", 0.1)

    def hangs(*_):
        threading.Event().wait(3)
        raise OSError("timed out")

    monkeypatch.setattr(socket, "create_connection", hangs)
    started = time.perf_counter()
    with hub_or_cache() as reached:
        assert not reached
        assert constants.HF_HUB_OFFLINE is True
    assert time.perf_counter() - started < 2


def test_where_somebody_answers_nothing_changes(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with hub_or_cache() as reached:
            assert reached
            assert constants.HF_HUB_OFFLINE is False


def test_a_proxy_is_asked_in_place_of_the_hub(monkeypatch, refused):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    with hub_or_cache() as reached:
        assert not reached
    assert refused == [("proxy.example", 3128)]
    monkeypatch.setenv("no_proxy", "hub.example")
    with hub_or_cache():
        pass
    assert refused[1:] == [("hub.example", 8443)]
