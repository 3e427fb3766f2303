"""Who relies on rows and who takes them away exclude each other."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.faulty_disk import FaultyDisk
from support.library import extract

import featpipe
from featpipe import CachedFeatures
from featpipe.base.disk import use_disk
from featpipe.base.errors import InUseError, StorageError
from featpipe.integrations import sklearn as transformer
from featpipe.specs.garbage import GarbageSpec
from featpipe.specs.predict import PredictSpec
from featpipe.stages import extract as extraction
from featpipe.stages.maintain import collect_garbage
from featpipe.stages.predict import predict
from featpipe.store.lease import LOCK_NAME, shared_lease, sole_lease

AT_ONCE = GarbageSpec(grace=0.0)


def test_many_rely_on_rows_at_once_and_nobody_takes_any_meanwhile(cache: Path) -> None:
    cache.mkdir()
    with shared_lease(cache), shared_lease(cache):
        with pytest.raises(InUseError, match=r"expected nobody to be using .*, found a process"):
            sole_lease(cache).__enter__()
    with sole_lease(cache), pytest.raises(InUseError), sole_lease(cache):
        pass
    with sole_lease(cache):
        pass


def test_a_lease_ends_with_its_process(cache: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from featpipe.store.lease import shared_lease\n"
        "with shared_lease(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(cache)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(InUseError):
            sole_lease(cache).__enter__()
        process.kill()
        process.wait()
    with sole_lease(cache):
        pass


def test_an_extraction_waits_until_rows_have_been_taken_away(
    photo_folder: Path, cache: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "featpipe")
    cache.mkdir()
    done = threading.Event()

    def run() -> None:
        extract(photo_folder, name="set", cache=cache, **tiny)
        done.set()

    thread = threading.Thread(target=run)
    with sole_lease(cache):
        thread.start()
        assert not done.wait(1.0)
        assert "waiting until a 'featpipe cache gc'" in caplog.text
    thread.join()
    assert done.is_set()


@pytest.mark.parametrize("step", ["load_before", "look_up", "save_dataset"])
def test_an_extraction_holds_its_lease_from_the_first_look_until_its_list_is_saved(
    step: str,
    photo_folder: Path,
    cache: Path,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extract(photo_folder, name="before", cache=cache, **tiny)
    real: Callable[..., Any] = getattr(extraction, step)

    def beside(*args: Any, **options: Any) -> Any:
        with pytest.raises(InUseError):
            collect_garbage(cache, AT_ONCE)
        found = real(*args, **options)
        with pytest.raises(InUseError):
            collect_garbage(cache, AT_ONCE)
        return found

    monkeypatch.setattr(extraction, step, beside)
    extract(photo_folder, name="set", cache=cache, **tiny)
    assert [found.rows for found in collect_garbage(cache, AT_ONCE)] == [0]


def test_a_prediction_keeps_its_rows_until_it_ends(workspace: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    photos = [str(path) for path in sorted((workspace / "photos" / "red").iterdir())[:2]]
    lines = predict(workspace / "run", photos, PredictSpec(device="cpu", workers=1), cache=cache)
    next(lines)
    with pytest.raises(InUseError):
        collect_garbage(cache, AT_ONCE)
    assert len(list(lines)) == 1
    # No data set names what a prediction computed; nobody else loses anything by that.
    assert [found.rows for found in collect_garbage(cache, AT_ONCE)] == [2]
    again = featpipe.predict(workspace / "run", photos, cache=cache, device="cpu", workers=1)
    assert [line.error for line in again] == [None, None]


def test_a_transformer_keeps_its_rows_until_they_are_read(
    photo_folder: Path, cache: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = transformer.FeatureStore.rows

    def beside(*args: Any) -> Any:
        with pytest.raises(InUseError):
            collect_garbage(cache, AT_ONCE)
        return real(*args)

    monkeypatch.setattr(transformer.FeatureStore, "rows", beside)
    model = CachedFeatures(cache=cache, **{**tiny, "tap": "block1_pool"})
    assert len(model.transform([photo_folder / "red" / "00.png"])) == 1


def test_where_there_are_no_locks_rows_are_used_but_never_taken_away(cache: Path) -> None:
    cache.mkdir()

    class Lockless(FaultyDisk):
        def lock(self, fd: int) -> None:
            raise OSError(95, os.strerror(95))

        def share_lock(self, fd: int, *, wait: bool) -> None:
            raise OSError(95, os.strerror(95))

    with use_disk(Lockless()):
        with shared_lease(cache):
            pass
        with pytest.raises(StorageError, match="expected a file system with locks below"):
            sole_lease(cache).__enter__()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("elsewhere", path)])
@pytest.mark.timeout(60)
def test_a_lock_that_is_no_file_is_refused_and_never_waited_for(
    make: Callable[[Path], None], cache: Path
) -> None:
    cache.mkdir()
    make(cache / LOCK_NAME)
    if make is os.mkfifo:
        with shared_lease(cache):
            pass
    else:
        with pytest.raises(StorageError, match=r"expected to write .*\.lock"):
            shared_lease(cache).__enter__()
