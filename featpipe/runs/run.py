"""The run folder: the one object that knows its file names.

======================================  ================================================
``head.json``, ``head.safetensors``     the head
``head.safetensors.old``                the tensors of a head that is being replaced
``sweep.json``                          every combination of the sweep the head comes from
``n-shot.json``                         every head of a few pictures per class it was chosen from
``metrics.json``, ``report.html``,      the evaluation that needs no option: of the own test
``predictions.csv``                     split, or of val where there is no test
``metrics-NAME-SPLIT.json``, …          every other evaluation
``metrics-tta.json``, …                 those that average over views; ``-tta`` ends their names
``metrics-scales-180-224.json``, …      those of pictures of several sizes; it ends their names
======================================  ================================================
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featpipe.base.disk import keep_as, names_in, read_regular, remove_file, write_atomically
from featpipe.base.errors import (
    DamageError,
    FeatpipeError,
    NotFoundError,
    OwnCodeError,
    StorageError,
)
from featpipe.base.tensor_files import StoredTensors, file_sha256, read_tensors, write_tensors
from featpipe.runs.numbered import next_free
from featpipe.runs.trained_head import (
    DESCRIPTION_NAME,
    TENSORS_NAME,
    HeadDescription,
    TrainedHead,
    decode_description,
    decode_head,
    encode_description,
    stored_tensors,
    tensors_digest,
)

DEFAULT_RUNS = Path("runs")
"""Folder in which runs are made that nobody names a folder for."""
METRICS_SCHEMA = 1
SWEEP_SCHEMA = 1
N_SHOT_SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """One run folder; it need not exist yet.

    Attributes
    ----------
    folder : Path
    """

    folder: Path

    @classmethod
    def at(cls, path: Path) -> Run:
        """The run of a folder, or of one of the two files of the head in it."""
        run = cls(path.parent)
        return run if path in (run.head_path, run.tensors_path) else cls(path)

    @classmethod
    def next_free(cls, stem: str) -> Run:
        """Make the next free ``runs/<stem>-<number>``; two processes never get the same.

        Raises
        ------
        StorageError
        """
        return cls(next_free(DEFAULT_RUNS, stem, what="run folder"))

    @property
    def head_path(self) -> Path:
        """The description of the head; it is written last and makes the head complete."""
        return self.folder / DESCRIPTION_NAME

    @property
    def tensors_path(self) -> Path:
        """The numbers of the head."""
        return self.folder / TENSORS_NAME

    @property
    def old_tensors_path(self) -> Path:
        """The tensors of the head that is being replaced, until the description is new."""
        return self.folder / f"{TENSORS_NAME}.old"

    @property
    def sweep_path(self) -> Path:
        """The table of the sweep that the head was chosen from."""
        return self.folder / "sweep.json"

    @property
    def n_shot_path(self) -> Path:
        """The table of heads of a few pictures per class that the head was chosen from."""
        return self.folder / "n-shot.json"

    def metrics_path(self, evaluated: str = "") -> Path:
        """Metrics of an evaluation; see :meth:`evaluation_name`."""
        return self.folder / f"metrics{evaluated}.json"

    def report_path(self, evaluated: str = "") -> Path:
        """Page of an evaluation; see :meth:`evaluation_name`."""
        return self.folder / f"report{evaluated}.html"

    def predictions_path(self, evaluated: str = "") -> Path:
        """Every prediction of an evaluation; see :meth:`evaluation_name`."""
        return self.folder / f"predictions{evaluated}.csv"

    @staticmethod
    def evaluation_name(
        on: str | None,
        dataset: str,
        split: str,
        *,
        is_fallback: bool = False,
        averages_views: bool = False,
        sizes: Sequence[int] = (),
        frame: str = "own",
    ) -> str:
        """What the files of an evaluation are told apart by.

        Empty for the own test split, and for what is evaluated in its place where nobody asked
        for a split and there is no test.

        Parameters
        ----------
        on : str or None
            The data set that was asked for; None where nobody asked for one.
        dataset, split : str
            What is evaluated.
        is_fallback : bool
            Whether the split is evaluated because there is no test split.
        averages_views : bool
            Whether probabilities are averaged over views.
        sizes : sequence of int
            Sizes of the pictures; empty for that of training alone.
        frame : {"own", "whole"}
            What pictures of those sizes show.
        """
        is_own = on is None and (split == "test" or is_fallback)
        name = "" if is_own else f"-{dataset}-{split}"
        if sizes:
            name += f"-scales-{'-'.join(map(str, sizes))}{'-whole' * (frame == 'whole')}"
        return name + "-tta" * averages_views

    def evaluations(self) -> list[str]:
        """The names of the evaluations whose metrics are there, sorted; see
        :meth:`evaluation_name`."""
        names = [name for name in names_in(self.folder) if name.startswith("metrics")]
        return sorted(
            name.removeprefix("metrics").removesuffix(".json")
            for name in names
            if name.endswith(".json")
        )

    @property
    def has_head(self) -> bool:
        """Whether the folder holds a complete head."""
        return self.head_path.exists()

    def head_bytes(self) -> int:
        """Size of the head's files."""
        return self.head_path.stat().st_size + self.tensors_path.stat().st_size

    def save_head(self, trained: TrainedHead) -> None:
        """Write a head; until its last file is there, an older head answers.

        Raises
        ------
        StorageError
        """
        if self._is_whole():
            # Old tensors that are there although the head is not whole belong to a head whose
            # replacement was cut short: they stay.
            keep_as(self.tensors_path, self.old_tensors_path)
        digest = write_tensors(self.tensors_path, stored_tensors(trained))
        write_atomically(self.head_path, encode_description(trained, tensors_sha256=digest))
        remove_file(self.old_tensors_path)

    def _is_whole(self) -> bool:
        """Whether the tensors are those that the description names."""
        try:
            named = tensors_digest(read_regular(self.head_path))
            return named is not None and named == file_sha256(self.tensors_path)
        except OSError:
            return False

    def load_head(self) -> TrainedHead:
        """Read the head.

        Raises
        ------
        NotFoundError
            There is none.
        DamageError
            Its files are not whole, do not belong together, or have a newer format.
        StorageError
            They cannot be read.
        """
        try:
            text = read_regular(self.head_path)
            with self._naming_damage():
                stored = self._tensors_of(text)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(
                f"expected a head ({self.head_path.name} and {self.tensors_path.name}) in "
                f"{self.folder}, found none; train one with 'featpipe train-head NAME', it prints "
                "its folder"
            ) from None
        except OSError as error:
            raise StorageError(f"expected to read {self.folder}, but: {error.strerror}") from error
        with self._naming_damage():
            return decode_head(text, stored)

    def _tensors_of(self, text: bytes) -> StoredTensors:
        """The tensors that a description names; if there are none, those that lie in their place.

        Raises
        ------
        OSError
        ValueError
            What lies there is no file of tensors.
        """
        path, named = self.tensors_path, tensors_digest(text)
        if (
            self.old_tensors_path.exists()
            and file_sha256(path) != named
            and file_sha256(self.old_tensors_path) == named
        ):
            # A replacement ended between its two files: the old head still stands.
            path = self.old_tensors_path
        return read_tensors(path)

    def load_description(self) -> HeadDescription:
        """Read what the head's description says; its tensors are not looked at.

        Raises
        ------
        DamageError
            It is not whole, or has a newer format.
        StorageError
            It cannot be read.
        """
        try:
            text = read_regular(self.head_path)
        except OSError as error:
            raise StorageError(f"expected to read {self.folder}, but: {error.strerror}") from error
        with self._naming_damage():
            return decode_description(text)

    @contextlib.contextmanager
    def _naming_damage(self) -> Iterator[None]:
        """Say of which run folder the files inside are not those of a head."""
        try:
            yield
        except OwnCodeError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, FeatpipeError) and not isinstance(error, ValueError):
                raise
            found = str(error).splitlines()[0] if str(error) else repr(error)
            raise self._damaged(found) from error
        except DamageError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, found: str) -> DamageError:
        return DamageError(
            f"expected a whole head in {self.folder}, found: {found}; train it again (seconds), "
            "or restore both files from one copy"
        )

    def save_sweep(self, table: Mapping[str, Any]) -> str:
        """Write the table of a sweep; returns the SHA-256 (hex) of its bytes."""
        data = _as_json({"schema": SWEEP_SCHEMA, **table})
        write_atomically(self.sweep_path, data)
        return hashlib.sha256(data).hexdigest()

    def remove_sweep(self) -> None:
        """Delete the table of a sweep whose head was replaced."""
        remove_file(self.sweep_path)

    def save_n_shot(self, table: Mapping[str, Any]) -> str:
        """Write the table of heads of a few pictures; returns the SHA-256 (hex) of its bytes."""
        data = _as_json({"schema": N_SHOT_SCHEMA, **table})
        write_atomically(self.n_shot_path, data)
        return hashlib.sha256(data).hexdigest()

    def remove_n_shot(self) -> None:
        """Delete the table of heads of a few pictures whose head was replaced."""
        remove_file(self.n_shot_path)

    def save_metrics(self, evaluated: str, document: Mapping[str, Any], *, head: str) -> None:
        """Write the metrics of an evaluation; see :meth:`evaluation_name`.

        Parameters
        ----------
        evaluated : str
        document : mapping
        head : str
            Digest of the evaluated head: a head that replaces it has not these metrics.
        """
        data = _as_json({"schema": METRICS_SCHEMA, "head_sha256": head, **document})
        write_atomically(self.metrics_path(evaluated), data)

    def load_metrics(self, evaluated: str = "") -> dict[str, Any] | None:
        """Read the metrics of an evaluation; None where there are none.

        Raises
        ------
        DamageError
            They are not whole.
        StorageError
            They cannot be read.
        """
        path = self.metrics_path(evaluated)
        try:
            document = json.loads(read_regular(path))
            if not isinstance(document, dict):
                raise ValueError("no table")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"expected to read {path}, but: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise DamageError(
                f"expected metrics in {path}, found: {error}; evaluate the head again"
            ) from error
        return document


def _as_json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=True) + "\n").encode("ascii")
