"""Stage: write a head with its backbone, or a data set's features, for people without featpipe."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from featpipe._version import __version__
from featpipe.base.disk import write_atomically
from featpipe.base.errors import DamageError, UsageError
from featpipe.base.numbers import is_finite
from featpipe.base.preprocessing import describe
from featpipe.datasets.files import dataset_path
from featpipe.runs.own_pictures import require_own_pictures
from featpipe.runs.run import Run
from featpipe.specs.export import MODEL_FORMATS, TABLE_FORMATS, ExportSpec
from featpipe.stages.export_table import export_table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from featpipe.exports.documents import CheckDocument
    from featpipe.exports.model_files import ModelFile
    from featpipe.runs.trained_head import TrainedHead
    from featpipe.stages.documents import ModelExportDocument, TableExportDocument


def export(
    what: str | os.PathLike[str], spec: ExportSpec, *, cache: Path
) -> ModelExportDocument | TableExportDocument:
    """Write a head as a network, or features as a table; the format decides which.

    Parameters
    ----------
    what : str or path
        Run folder of a head, or name of a data set.
    spec : ExportSpec
    cache : Path

    Returns
    -------
    dict
        What ``featpipe export --json`` prints.

    Raises
    ------
    NotFoundError, UsageError, DamageError, SpaceMismatchError, WeightsError, StorageError
    MissingPackageError
        A package of the format's extra is not installed.
    CheckError
        The network does not answer as ``predict``.
    """
    name = os.fspath(what)
    _check_kind(name, spec, cache)
    _check_free(spec)
    if spec.is_model:
        return _export_model(Run.at(Path(name)), spec, cache)
    return export_table(name, spec, cache=cache)


def _check_kind(what: str, spec: ExportSpec, cache: Path) -> None:
    """Refuse a head where a data set is meant, and the other way round."""
    # os.path returns False for a name that is too long; pathlib would raise OSError.
    is_head = os.path.exists(Run.at(Path(what)).head_path)
    if not spec.is_model and is_head:
        raise UsageError(
            f"expected a data set for --format {spec.format}, found the head {what}; use --format "
            f"{' or '.join(MODEL_FORMATS)}, or name the data set"
        )
    if spec.is_model and not is_head and _is_dataset(what, cache):
        raise UsageError(
            f"expected the run folder of a head for --format {spec.format}, found the data set "
            f"'{what}'; use --format {' or '.join(TABLE_FORMATS)}, or name a head ('featpipe runs' "
            "lists them)"
        )


def _is_dataset(name: str, cache: Path) -> bool:
    try:
        return os.path.exists(dataset_path(cache, name))
    except UsageError:
        return False


def _check_free(spec: ExportSpec) -> None:
    """Refuse what is no file, and a file that nobody said may be replaced."""
    if os.path.isdir(spec.out):
        raise UsageError(f"expected a file as --out, found the folder {spec.out}; add a name")
    if os.path.exists(spec.out) and not os.path.isfile(spec.out):
        # A rename would put a file in the place of the device itself.
        raise UsageError(
            f"expected a file as --out, found a device, a pipe or a socket at {spec.out}; name "
            "another one"
        )
    if os.path.lexists(spec.out) and not spec.overwrite:
        raise UsageError(
            f"expected a new file as --out, found {spec.out}; name another one, or replace it with "
            "--overwrite"
        )


def _export_model(run: Run, spec: ExportSpec, cache: Path) -> ModelExportDocument:
    """Make the network, compare it with the head, and write it and its card."""
    started = time.perf_counter()
    trained = run.load_head()
    require_own_pictures(trained, f"--format {spec.format}")
    # Not before there is a head: torch takes seconds to import.
    from featpipe.exports.card_file import card_path
    from featpipe.exports.model_card import CardFacts, model_card
    from featpipe.exports.model_files import FILES

    file = FILES[spec.format]
    libraries = file.libraries()
    data, check = _made(trained, file, spec, cache)
    facts = CardFacts(
        file=spec.out.name,
        format=spec.format,
        title=file.title,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        check=check,
        libraries=libraries,
        evaluations=_evaluations(run, trained),
        dense=spec.dense,
    )
    card = card_path(spec.out)
    # The card first: a file that has its final name is whole, and described.
    write_atomically(card, model_card(trained, facts).encode("utf-8"))
    write_atomically(spec.out, data)
    return {
        "format": spec.format,
        "file": str(spec.out),
        "bytes": len(data),
        "sha256": facts.sha256,
        "card": str(card),
        "head": str(run.folder),
        "kind": trained.head.kind,
        "classes": trained.classes_.tolist(),
        "size": trained.space.preprocessing.size,
        "dense": spec.dense,
        "check": check,
        "libraries": libraries,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _made(
    trained: TrainedHead, file: ModelFile, spec: ExportSpec, cache: Path
) -> tuple[bytes, CheckDocument]:
    """The bytes of the network, and how they were compared."""
    import torch

    from featpipe.backbones.catalog import get_backbone
    from featpipe.engine.plan import plan_for_spaces
    from featpipe.exports.classifier import picture_classifier, score_map_classifier
    from featpipe.exports.comparison import compare, compare_larger, sample_of
    from featpipe.exports.model_files import answer_of

    weights = spec.weights or trained.weights_name
    plan = plan_for_spaces(trained.spaces, weights, cache, device="cpu")
    backbone = get_backbone(trained.space.backbone)
    tensors = plan.weights.tensors(list(dict.fromkeys(s.tap for s in trained.spaces)))
    make = score_map_classifier if spec.dense else picture_classifier
    model = make(backbone, tensors, trained.spaces, trained.head)
    sample = sample_of(trained, cache)
    example = torch.from_numpy(sample.larger if spec.dense else sample.two)
    data = file.encode(model, example, _metadata(trained), dense=spec.dense)
    answer = file.open(data)
    check = compare(answer, sample, trained, backbone, tensors, cache)
    if spec.dense:
        compare_larger(answer, answer_of(model), sample)
    return data, check


def _metadata(trained: TrainedHead) -> dict[str, str]:
    """What the file itself says of the head."""
    about = {"version": __version__, "head_sha256": trained.digest}
    return {
        "classes": json.dumps(trained.classes_.tolist()),
        "preprocessing": json.dumps(describe(trained.space.preprocessing)),
        "featpipe": json.dumps(about),
    }


def _evaluations(run: Run, trained: TrainedHead) -> list[Mapping[str, Any]]:
    """The head's evaluations on its own test pictures: the plain one, then the averaged ones."""
    from featpipe.exports.model_card import averaged_words

    plain = _evaluation(run, trained, "")
    found = [] if plain is None else [plain]
    for name in run.evaluations():
        metrics = _evaluation(run, trained, name) if name else None
        if metrics is None or not averaged_words(metrics):
            continue
        if metrics.get("dataset") == trained.dataset["name"] and metrics["split"] == "test":
            found.append(metrics)
    return found


def _evaluation(run: Run, trained: TrainedHead, evaluated: str) -> Mapping[str, Any] | None:
    """An evaluation, if it is this head's; see :meth:`Run.evaluation_name`."""
    from featpipe.exports.model_card import averaged_words

    found = run.load_metrics(evaluated)
    if found is None or found.get("head_sha256") != trained.digest:
        return None
    try:
        low, high = found["accuracy_ci95"]
        if not all(map(is_finite, (low, high, found["n"], found["accuracy"], found["log_loss"]))):
            raise ValueError("scores that are no numbers")
        averaged_words(found)
        return {**found, "split": str(found["split"])}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DamageError(
            f"expected metrics in {run.metrics_path(evaluated)}, found: {error!r}; evaluate the "
            "head again"
        ) from error
