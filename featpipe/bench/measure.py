"""Measure contenders in interleaved rounds; report median rates and their ratios."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featpipe.base.hardware import cpu_count
from featpipe.base.progress import Progress, no_progress


@dataclass(frozen=True)
class Contender:
    """One thing to measure.

    Attributes
    ----------
    name : str
        Its name in the report.
    run : callable
        Does the work once and returns its amount in the unit of the report (``None``: 1).
    """

    name: str
    run: Callable[[], float | None]


@dataclass(frozen=True)
class Result:
    """The measured rates of one contender.

    Attributes
    ----------
    name : str
        Name of the contender.
    rates : list of float
        Work per second in each round.
    """

    name: str
    rates: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.rates)


def in_turns(
    contenders: Sequence[Contender],
    rounds: int,
    progress: Progress = no_progress,
    *,
    warm_up: bool = False,
) -> dict[str, Result]:
    """Run every contender once per round, so that noise of the machine affects all alike.

    ``warm_up`` runs each once before, unmeasured.
    """
    results = {contender.name: Result(contender.name) for contender in contenders}
    for contender in contenders if warm_up else ():
        contender.run()
    with progress("bench", rounds * len(contenders)) as bar:
        for _ in range(rounds):
            for contender in contenders:
                started = time.perf_counter()
                done = contender.run()
                seconds = time.perf_counter() - started
                results[contender.name].rates.append((1.0 if done is None else done) / seconds)
                bar.advance()
    return results


@dataclass(frozen=True)
class Report:
    """The figures of one benchmark.

    Attributes
    ----------
    title : str
        Name of the benchmark.
    unit : str
        Unit of the rates.
    results : dict of str to Result
        By name of the contender.
    ratios : list of tuple
        ``(what, ratio, target)``; None means that there is no target.
    notes : list of str
        Conditions of the measurement, as sentences.
    """

    title: str
    unit: str
    results: dict[str, Result]
    ratios: list[tuple[str, float, float | None]]
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The report as the command prints it."""
        return {
            "bench": self.title,
            "unit": self.unit,
            "rates": {
                name: {"median": result.rate, "rounds": result.rates}
                for name, result in self.results.items()
            },
            "ratios": [
                {"what": what, "ratio": ratio, "target": target}
                for what, ratio, target in self.ratios
            ],
            "notes": self.notes,
            "machine": machine(),
        }

    def as_text(self) -> str:
        """Two tables: rates, and ratios with their targets."""
        width = max(len(name) for name in [*self.results, *(what for what, _, _ in self.ratios)])
        lines = [f"{self.title} ({self.unit}; median of {self._rounds} rounds)"]
        for name, result in self.results.items():
            spread = f"{min(result.rates):,.4g} to {max(result.rates):,.4g}"
            lines.append(f"  {name:<{width}}  {result.rate:>10,.4g}   {spread}")
        if self.ratios:
            lines.append("ratios")
        for what, ratio, target in self.ratios:
            verdict = "" if target is None else f"   target {target:g}: {_verdict(ratio, target)}"
            lines.append(f"  {what:<{width}}  {ratio:>10.3g}{verdict}")
        lines += [f"note: {note}" for note in self.notes]
        lines.append("; ".join(f"{name} {value}" for name, value in machine().items()))
        return "\n".join(lines)

    @property
    def _rounds(self) -> int:
        return max(len(result.rates) for result in self.results.values())


def _verdict(ratio: float, target: float) -> str:
    return "reached" if ratio >= target else "missed"


def machine() -> dict[str, str]:
    """Processor, cores and package versions, on which the figures depend."""
    description = {
        "processor": _processor(),
        "cores": str(cpu_count()),
        "python": platform.python_version(),
    }
    for package in (
        "featpipe",
        "numpy",
        "torch",
        "torchvision",
        "openvino",
        "scikit-learn",
        "h5py",
    ):
        try:
            description[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return description


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or os.uname().machine
