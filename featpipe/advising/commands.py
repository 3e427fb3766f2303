"""Commands to copy: how each advice is carried out on this very data set."""

from __future__ import annotations

from collections.abc import Sequence

from featpipe.advising.command_writer import CommandWriter, Planned
from featpipe.advising.documents import Try
from featpipe.advising.tap_rows import (
    FLAT,
    MEAN,
    STORED,
    TapRows,
    can_be_cut,
    opened,
    retrained_tap,
)
from featpipe.specs.fields import default_of
from featpipe.specs.head_params import SuffixParams


class Commands:
    """The commands of every advice on one data set; making them asks the network for its taps.

    Parameters
    ----------
    write : CommandWriter
    best : TapRows or None
        The rows whose linear head is best; None where there is no network's features.
    measured : sequence of TapRows
    suffix : bool
        Whether views are for a suffix, which needs maps; else for a linear head.
    """

    def __init__(
        self,
        write: CommandWriter,
        best: TapRows | None,
        measured: Sequence[TapRows],
        *,
        suffix: bool,
    ) -> None:
        self._write, self._best, self._measured = write, best, measured
        self._suffix_views = suffix

    def __call__(self, what: Try) -> list[str]:
        """Commands in the order in which they are to be run."""
        write = self._write
        if self._best is None:
            return [write.features()]
        if what == "scratch":
            return write.scratch()
        if what in ("taps", "suffix"):
            maps = suffix_maps(write, self._best, self._measured)
            if what == "taps":
                return [write.extract(maps), f"featpipe advise {write.dataset.name}{write.cache}"]
            train = self._train_suffix(maps, *write.off_views(maps))
            return [*write.extract_missing(maps), train]
        if what == "views":
            return self._views(self._best)
        rows = self._rows(self._best)
        if what == "pictures":
            return [write.more_pictures(), write.extract(rows)]
        if what == "mlp":
            train = write.train("mlp", rows, *write.off_views(rows))
        else:
            train = write.train("logistic", rows)
        return [*write.extract_missing(rows), train]

    def _views(self, best: TapRows) -> list[str]:
        write = self._write
        if not self._suffix_views:
            return self._linear_on_views(self._rows(best))
        maps, rows = suffix_maps(write, best, self._measured), self._rows(best)
        if best.how == FLAT:
            rows = write.planned(best.space, best.weights, pooling="avg")
        return [
            *write.extract_missing(maps),
            *write.extract_views(maps),
            "# the same command as for the suffix, now on views",
            self._train_suffix(maps, *write.on_views(maps)),
            "# where a suffix takes too long: a linear head on views",
            *self._linear_on_views(rows),
        ]

    def _linear_on_views(self, rows: Planned) -> list[str]:
        write = self._write
        train = write.train("linear", rows, *write.on_views(rows))
        return [*write.extract_missing(rows), *write.extract_views(rows), train]

    def _train_suffix(self, maps: Planned, *more: str) -> str:
        return self._write.train("suffix", maps, "--top", "linear", *more)

    def _rows(self, best: TapRows) -> Planned:
        """The rows of the best linear head, as they would be stored."""
        pooling = "avg" if best.how == MEAN else best.space.pooling
        return self._write.planned(best.space, best.weights, pooling=pooling)


def suffix_passes(write: CommandWriter, best: TapRows, measured: Sequence[TapRows]) -> float | None:
    """What training an advised suffix costs, in passes of the whole network over its pictures.

    By multiplications: those behind the map, three times (forward, and backward to weights and to
    inputs), in every epoch. None where the network cannot be asked.
    """
    from featpipe.backbones.tap_table import tap_table

    backbone, _ = opened(best.space.backbone)
    if backbone is None or backbone.graph is None:
        return None
    table = tap_table(backbone, best.space.preprocessing.size)
    costs = {row.name: row.gflops for row in table.taps if row.gflops}
    before = costs.get(suffix_maps(write, best, measured).space.tap)
    if before is None:
        return None
    whole = max(costs.values())
    passes = 3 * default_of(SuffixParams, "epochs") * (whole - before) / whole
    return float(f"{passes:.1g}" if passes < 1 else f"{passes:.0f}")


def suffix_maps(write: CommandWriter, best: TapRows, measured: Sequence[TapRows]) -> Planned:
    """The maps that a suffix is trained on: those of the best tap that has layers behind it.

    That is the best tap itself unless it is the deepest; else the latest earlier tap with maps;
    else one that is not cached, with about the last block behind it; where the network cannot be
    asked for its taps, the deepest one, behind which its own classifier lies.
    """
    mine = [rows for rows in measured if rows.network == best.network]
    deepest = max(rows.depth for rows in mine)
    backbone, _ = opened(best.space.backbone)
    size = best.space.preprocessing.size
    earlier = [rows for rows in mine if rows.depth < deepest]
    # The best tap first, then those that have maps, the latest first.
    earlier.sort(key=lambda rows: (rows is not best, rows.how == STORED, -rows.depth))
    for rows in earlier:
        if rows is not best and rows.how == STORED:
            break
        if backbone is None or can_be_cut(backbone, rows.space.tap, size):
            return write.planned(rows.space, rows.weights, pooling="none")
    tap = None if backbone is None else retrained_tap(backbone, best.space.tap, size)
    return write.planned(best.space, best.weights, tap=tap or best.space.tap, pooling="none")
