"""Locks between processes and requests to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import sealst as sl
from sealst._process import locks
from sealst._process.locks import hold
from sealst._process.signals import STOPS, deferred, exit_code, raised

HOLDER = """
import sys, time
from pathlib import Path
from sealst._process.locks import hold
with hold(Path(sys.argv[1]), "It"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds a lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "x.lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


# -- locks ------------------------------------------------------------------------------------------------------------
def test_who_holds_a_lock_is_said_and_a_killed_process_holds_none(tmp_path, holder):
    file = tmp_path / "x.lock"
    before = signal.getsignal(signal.SIGINT)
    with (
        pytest.raises(sl.InUseError, match=rf"^It is in use by process {holder.pid} on '.+' since 20.*\. Wait\.$"),
        hold(file, "It", wait=False, advice="Wait."),
    ):
        pass
    assert signal.getsignal(signal.SIGINT) is before
    holder.kill()
    holder.wait()
    # What it wrote of itself is left, and does not count.
    assert (tmp_path / "x.lock.json").exists()
    with hold(file, "It", wait=False):
        assert f'"pid": {os.getpid()}' in (tmp_path / "x.lock.json").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["x.lock"]


def test_waiting_ends_when_the_other_is_done(tmp_path, caplog):
    file, events = tmp_path / "x.lock", []
    held = threading.Event()

    def other() -> None:
        with hold(file, "It"):
            held.set()
            time.sleep(0.2)
            events.append("other")

    thread = threading.Thread(target=other)
    thread.start()
    assert held.wait(10)
    with caplog.at_level("INFO", logger="sealst"), hold(file, "It"):
        events.append("own")
    thread.join()
    assert events == ["other", "own"]
    assert f"It is in use by process {os.getpid()} on" in caplog.text
    assert caplog.text.rstrip().endswith("; waiting.")


def test_what_lies_beside_a_lock_is_never_trusted(tmp_path):
    file = tmp_path / "x.lock"
    with hold(file, "It"):
        for told in ("", "[]", '{"pid": "rm", "host": 1, "since": 0}', '{"pid": 1, "host": "h", "since": 1e99}'):
            (tmp_path / "x.lock.json").write_text(told)
            with pytest.raises(sl.InUseError, match="^It is in use by another process"), hold(file, "It", wait=False):
                pass


@pytest.mark.parametrize("error", [NotImplementedError("flock"), OSError(37, "No locks available")])
def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, error):
    def refuse(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(locks.FileLock, "acquire", refuse)
    with pytest.warns(sl.SealstWarning, match="without locks"), hold(tmp_path / "x.lock", "It"):
        pass


def test_a_folder_that_may_not_be_written_is_no_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(locks.FileLock, "acquire", refuse)
    with pytest.raises(PermissionError), hold(tmp_path / "x.lock", "It"):
        pass


# -- requests to stop -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("signum", STOPS)
def test_a_request_to_stop_raises_and_is_remembered(signum):
    before, came = signal.getsignal(signum), []
    with pytest.raises((KeyboardInterrupt, SystemExit)) as found, raised(came):
        signal.raise_signal(signum)
    assert came == [signum]
    if signum != signal.SIGINT:
        assert found.value.code == 128 + signum == exit_code(signum)
    assert signal.getsignal(signum) is before


def test_a_request_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        came = []
        with raised(came), deferred():
            signal.raise_signal(signal.SIGHUP)
        assert came == []
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_request_waits_for_what_is_soon_finished():
    done, came = [], []

    def work() -> None:
        with deferred():
            signal.raise_signal(signal.SIGTERM)
            assert came == []
            done.append("written")
        done.append("never")

    with pytest.raises(SystemExit), raised(came):
        work()
    assert (done, came) == (["written"], [signal.SIGTERM])


def test_a_handler_that_calls_ours_decides_when_to_stop():
    came, seen = [], []
    with raised(came):
        ours = signal.getsignal(signal.SIGTERM)

        def composed(*args):
            seen.append("flag")
            ours(*args)

        signal.signal(signal.SIGTERM, composed)
        signal.raise_signal(signal.SIGTERM)
    assert (came, seen) == ([signal.SIGTERM], ["flag"])


def test_other_threads_are_left_alone():
    found = []

    def work() -> None:
        with raised([]), deferred():
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_dies_of_the_signal():
    code = """
import os, signal, time
from sealst._process.signals import raised
came = []
with raised(came):
    there, here = os.pipe()
    child = os.fork()
    if not child:
        # Python forgets signals that come before this.
        os.write(here, b"x")
        time.sleep(30)
        os._exit(0)
    os.read(there, 1)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), came)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{-signal.SIGTERM} []\n"


COMMAND = """
import signal, sys, time
import click
from sealst.cli import _main
from sealst.cli._common import Answer, SealstCommand
from sealst._errors import CheckpointError

@click.command(cls=SealstCommand)
@click.argument("how")
def toy(how):
    print("ready", flush=True, file=sys.stderr)
    try:
        time.sleep(30)
    except BaseException:
        if how == "turned":
            raise CheckpointError("make room")
        if how == "lost":
            return Answer({}, "as if all were done")
        raise
    return Answer({}, "done")

_main.cli.add_command(toy)
sys.argv = ["sealst", "toy", sys.argv[1]]
_main.main()
"""


@pytest.mark.parametrize("how", ["plain", "turned", "lost"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stopped_command_never_looks_finished(how, name):
    """Whether the exception arrives, is turned into another one, or is lost."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=30)
    assert process.returncode == {"SIGINT": 130, "SIGTERM": 143}[name]
    assert said.strip().splitlines()[-1] == f"Stopped ({name})."
    assert "Traceback" not in said
    assert "make room" not in said


def test_ctrl_c_while_the_command_line_loads_is_no_traceback(tmp_path):
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from sealst.cli import main; main()"
    root = str(Path(sl.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root}
    )
    assert (done.returncode, done.stderr) == (130, "Stopped (SIGINT).\n")
