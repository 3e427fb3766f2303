"""The commands as functions: the same names, the same options, the same defaults."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featpipe.advising.documents import AdviseDocument
from featpipe.base.cache import default_cache
from featpipe.base.own_code import permitted
from featpipe.base.progress import Progress
from featpipe.base.progress_bars import as_progress
from featpipe.reports.documents import AuditDocument
from featpipe.runs.run import Run
from featpipe.runs.trained_head import TrainedHead
from featpipe.specs.advise import AdviseSpec
from featpipe.specs.audit import AuditSpec, RelabelSpec
from featpipe.specs.code import AllowCode
from featpipe.specs.compare import CompareSpec, RunsSpec
from featpipe.specs.evaluate import EvaluateSpec
from featpipe.specs.export import ExportSpec
from featpipe.specs.extract import ExtractSpec
from featpipe.specs.heads import HeadSpec
from featpipe.specs.predict import PredictSpec
from featpipe.specs.recipe import load_recipe
from featpipe.specs.shipped_recipes import find_recipe
from featpipe.stages import advise as advising
from featpipe.stages import audit as auditing
from featpipe.stages import compare as comparison
from featpipe.stages import evaluate as evaluation
from featpipe.stages import export as exporting
from featpipe.stages import extract as extraction
from featpipe.stages import list_runs as runs
from featpipe.stages import predict as prediction
from featpipe.stages import recipe as recipes
from featpipe.stages import relabel as relabelling
from featpipe.stages import train as training
from featpipe.stages.compare import Comparison
from featpipe.stages.evaluate import Evaluation
from featpipe.stages.extract_result import ExtractResult
from featpipe.stages.list_runs import ListedRuns
from featpipe.stages.predict import Prediction
from featpipe.stages.recipe import RecipeResult
from featpipe.stages.relabel import RelabelResult
from featpipe.stages.train_result import TrainResult

if TYPE_CHECKING:
    from featpipe.stages.documents import ModelExportDocument, TableExportDocument

PathLike = str | os.PathLike[str]


def extract(
    data: PathLike,
    *,
    name: str,
    cache: PathLike | None = None,
    progress: Progress | bool = False,
    **options: Any,
) -> ExtractResult:
    """Compute what is missing of the features of DATA and freeze its list as a data set.

    Parameters
    ----------
    data : str or path
        An image folder, a folder of idx files, a ``.csv``, ``.tsv`` or ``.jsonl`` list, or
        ``sklearn:digits``.
    name : str
        Name of the data set.
    cache : path, optional
        Default: ``$FEATPIPE_CACHE``, else ``./cache``.
    progress : bool or Progress
        True shows a bar on a terminal and in a notebook, elsewhere a line every 30 s; or a
        callable that opens a bar. Default: none.
    **options
        As in ``featpipe extract``; see :class:`featpipe.specs.extract.ExtractSpec`. A ``backbone``
        of ``package.module:factory`` is code of your own, which is run.

    Raises
    ------
    FeatpipeError
        See the classes in :mod:`featpipe.base.errors`. Rows computed before are kept.
    """
    with permitted([options.get("backbone")]):
        spec = ExtractSpec.from_options({"name": name, **options})
        return extraction.extract(data, spec, cache=_root(cache), progress=as_progress(progress))


def train_head(
    name: str,
    *,
    cache: PathLike | None = None,
    progress: Progress | bool = False,
    **options: Any,
) -> TrainResult:
    """Train a head on a data set's cached features.

    Parameters
    ----------
    name : str
        Data set.
    cache : path, optional
        Default: ``$FEATPIPE_CACHE``, else ``./cache``.
    progress : bool or Progress
        True shows a bar on a terminal and in a notebook, elsewhere a line every 30 s; or a
        callable that opens a bar. Default: none.
    **options
        As in ``featpipe train-head``: ``head``, its hyper-parameters such as ``hidden=512`` for
        ``mlp`` or ``C=0.01`` for ``logistic``, which feature space (``tap``, ``size``, …), and the
        rest of :class:`featpipe.specs.heads.HeadSpec`. A ``head`` of ``package.module:factory``
        is code of your own, which is run. With ``sweep=True``, hyper-parameters that
        are given are not varied.

    Raises
    ------
    NotFoundError, UsageError, DataError, DamageError, StorageError
    """
    spec = HeadSpec.from_options(options)
    with permitted(spec.own_code):
        return training.train_head(name, spec, cache=_root(cache), progress=as_progress(progress))


def evaluate(
    head: PathLike,
    *,
    cache: PathLike | None = None,
    progress: Progress | bool = False,
    **options: Any,
) -> Evaluation:
    """Score a head on a split; write metrics, predictions and a report into its run folder.

    Parameters
    ----------
    head : path
        Run folder.
    cache : path, optional
        Default: ``$FEATPIPE_CACHE``, else ``./cache``.
    progress : bool or Progress
        True shows a bar on a terminal and in a notebook, elsewhere a line every 30 s; or a
        callable that opens a bar. Default: none.
    **options
        As in ``featpipe evaluate``; see :class:`featpipe.specs.evaluate.EvaluateSpec`.

    Raises
    ------
    NotFoundError, SpaceMismatchError, DataError, DamageError, StorageError
        With ``scales`` or ``maps`` also UsageError and WeightsError.
    """
    spec = EvaluateSpec.from_options(options)
    with permitted(spec.allow_code):
        return evaluation.evaluate(
            Path(head), spec, cache=_root(cache), progress=as_progress(progress)
        )


def load_head(head: PathLike, **options: Any) -> TrainedHead:
    """Read a trained head, to use it on features that are there.

    Parameters
    ----------
    head : path
        Run folder.
    **options
        ``allow_code``; see :class:`featpipe.specs.code.AllowCode`.

    Returns
    -------
    TrainedHead
        ``predict_proba(X)`` and ``predict(X)`` take rows of its feature space ``space``, such as
        those of :func:`featpipe.open_features`; ``classes_`` names the columns.

    Raises
    ------
    NotFoundError, DamageError, StorageError, OwnCodeError
    """
    with permitted(AllowCode.from_options(options).allow_code):
        return Run.at(Path(head)).load_head()


def predict(
    head: PathLike,
    paths: Sequence[PathLike] | PathLike,
    *,
    cache: PathLike | None = None,
    progress: Progress | bool = False,
    **options: Any,
) -> list[Prediction]:
    """Classify files, and all pictures below folders, in the order given.

    Parameters
    ----------
    head : path
        Run folder.
    paths : path or sequence of path
    cache : path, optional
        Default: ``$FEATPIPE_CACHE``, else ``./cache``.
    progress : bool or Progress
        True shows a bar on a terminal and in a notebook, elsewhere a line every 30 s; or a
        callable that opens a bar. Default: none.
    **options
        ``weights``, ``device``, ``batch_size``, ``workers``, ``max_pixels`` and ``allow_code``;
        see :class:`featpipe.specs.predict.PredictSpec`.

    Raises
    ------
    NotFoundError, SpaceMismatchError, WeightsError, StorageError
        An unreadable picture raises nothing: its prediction carries the error.
    """
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    spec = PredictSpec.from_options(options)
    with permitted(spec.allow_code):
        return list(
            prediction.predict(
                Path(head), several, spec, cache=_root(cache), progress=as_progress(progress)
            )
        )


def list_runs(folder: PathLike = "runs", **options: Any) -> ListedRuns:
    """Find every run in a folder and below it, with its options and scores.

    Parameters
    ----------
    folder : path
    **options
        ``sort``; see :class:`featpipe.specs.compare.RunsSpec`.

    Raises
    ------
    NotFoundError
    """
    return runs.list_runs(Path(folder), RunsSpec.from_options(options))


def compare(
    heads: Sequence[PathLike], *, cache: PathLike | None = None, **options: Any
) -> Comparison:
    """Score heads on the very same pictures, and test each two of them.

    Parameters
    ----------
    heads : sequence of path
        At least two run folders.
    cache : path, optional
        Default: ``$FEATPIPE_CACHE``, else ``./cache``.
    **options
        ``on``, ``split``, ``out`` and ``allow_code``; see
        :class:`featpipe.specs.compare.CompareSpec`.

    Raises
    ------
    UsageError, DataError, NotFoundError, SpaceMismatchError, DamageError, StorageError
    """
    spec = CompareSpec.from_options(options)
    with permitted(spec.allow_code):
        return comparison.compare([Path(head) for head in heads], spec, cache=_root(cache))


def export(
    what: PathLike, *, cache: PathLike | None = None, **options: Any
) -> ModelExportDocument | TableExportDocument:
    """Write a head with its backbone as one network, or a data set's features as one file.

    Parameters
    ----------
    what : path or str
        Run folder of a head, or name of a data set.
    cache : path, optional
        Default: ``$FEATPIPE_CACHE``, else ``./cache``.
    **options
        ``format`` and ``out``, which must be given, and the rest of
        :class:`featpipe.specs.export.ExportSpec`.

    Returns
    -------
    dict
        What ``featpipe export --json`` prints.

    Raises
    ------
    FeatpipeError
        See the classes in :mod:`featpipe.base.errors`; there is no new file then.
    """
    spec = ExportSpec.from_options(options)
    with permitted(spec.allow_code):
        return exporting.export(what, spec, cache=_root(cache))


def audit(
    name: str,
    *,
    cache: PathLike | None = None,
    progress: Progress | bool = False,
    **options: Any,
) -> AuditDocument:
    """Search a data set for duplicates, probable label errors, outliers and tiny classes.

    Parameters
    ----------
    name : str
        Data set.
    cache : path, optional
        Default: ``$FEATPIPE_CACHE``, else ``./cache``.
    progress : bool or Progress
        True shows a bar on a terminal and in a notebook, elsewhere a line every 30 s; or a
        callable that opens a bar. Default: none.
    **options
        As in ``featpipe audit``; see :class:`featpipe.specs.audit.AuditSpec`.

    Returns
    -------
    dict
        What ``featpipe audit --json`` prints. The page, the CSV and this document lie in the
        folder ``out``.

    Raises
    ------
    NotFoundError, UsageError, DataError, DamageError, StorageError
    """
    spec = AuditSpec.from_options(options)
    return auditing.audit(name, spec, cache=_root(cache), progress=as_progress(progress))


def advise(
    name: str,
    *,
    cache: PathLike | None = None,
    progress: Progress | bool = False,
    **options: Any,
) -> AdviseDocument:
    """Measure linear heads on every cached tap, and say from these facts what to try next.

    Parameters
    ----------
    name : str
        Data set.
    cache : path, optional
        Default: ``$FEATPIPE_CACHE``, else ``./cache``.
    progress : bool or Progress
        True shows a bar on a terminal and in a notebook, elsewhere a line every 30 s; or a
        callable that opens a bar. Default: none.
    **options
        As in ``featpipe advise``; see :class:`featpipe.specs.advise.AdviseSpec`.

    Returns
    -------
    dict
        What ``featpipe advise --json`` prints: ``facts``, ``advice`` with commands to copy, and
        ``not_advised``. Nothing is written.

    Raises
    ------
    NotFoundError, UsageError, DataError, DamageError, StorageError
    """
    spec = AdviseSpec.from_options(options)
    with permitted(spec.allow_code):
        return advising.advise(name, spec, cache=_root(cache), progress=as_progress(progress))


def relabel(
    data_set: str, fixes: PathLike, *, cache: PathLike | None = None, **options: Any
) -> RelabelResult:
    """Give a data set other labels under another name; nothing is computed.

    Parameters
    ----------
    data_set : str
        Name of the data set; it stays as it is.
    fixes : path
        CSV of ``path,label``; see :func:`featpipe.datasets.fixes.read_fixes`.
    cache : path, optional
        Default: ``$FEATPIPE_CACHE``, else ``./cache``.
    **options
        ``name``, ``out`` and ``overwrite``; see :class:`featpipe.specs.audit.RelabelSpec`.

    Raises
    ------
    NotFoundError, UsageError, DataError, DamageError, StorageError
    """
    spec = RelabelSpec.from_options(options)
    return relabelling.relabel(data_set, Path(fixes), spec, cache=_root(cache))


def run_recipe(
    recipe: PathLike,
    *,
    data: PathLike | None = None,
    cache: PathLike | None = None,
    out: PathLike | None = None,
    device: str | None = None,
    overwrite: bool = False,
    progress: Progress | bool = False,
    allow_code: str | Sequence[str] | None = None,
) -> RecipeResult:
    """Extract, train and evaluate as a recipe says.

    Parameters
    ----------
    recipe : path or str
        A TOML file, or the name of a recipe that comes with featpipe, such as ``quickstart``.
    data : path, optional
        Instead of the recipe's data.
    cache : path, optional
        Default: ``$FEATPIPE_CACHE``, else ``./cache``.
    out : path, optional
        Folder for the run folders; default: ``runs``.
    device : str, optional
        Instead of the recipe's.
    overwrite : bool
        Replace heads that ``out`` already holds.
    progress : bool or Progress
        True shows a bar on a terminal and in a notebook, elsewhere a line every 30 s; or a
        callable that opens a bar. Default: none.
    allow_code : str or sequence of str, optional
        Code that the recipe names, as ``package.module:factory``, and that may be run.

    Raises
    ------
    FeatpipeError
        See the classes in :mod:`featpipe.base.errors`.
    """
    code = AllowCode.from_options({"allow_code": allow_code})
    with permitted(code.allow_code):
        return recipes.run_recipe(
            load_recipe(find_recipe(recipe)),
            cache=_root(cache),
            data=None if data is None else os.fspath(data),
            out=None if out is None else Path(out),
            device=device,
            overwrite=overwrite,
            progress=as_progress(progress),
        )


def _root(cache: PathLike | None) -> Path:
    return default_cache() if cache is None else Path(cache)
