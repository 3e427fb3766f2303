"""Exported files as people use them who do not have featpipe."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def need_onnx() -> Any:
    """ONNX Runtime; the test is skipped, loudly, where the extra is not installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        found = pytest.importorskip(
            package, reason="NO ONNX: needs the extra 'onnx': pip install -e '.[onnx]'"
        )
    return found


def answers(file: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    """What ONNX Runtime says of pictures."""
    session = need_onnx().InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": image}), strict=True))


def program_of(card: Path) -> str:
    """The program in a model card."""
    return card.read_text("utf-8").partition("```python\n")[2].partition("```")[0]


def run_card(card: Path, pictures: Sequence[Path]) -> list[tuple[str, float]]:
    """Label and probability of each picture, printed by the card's program without featpipe.

    The program is saved beside the exported file and run from another folder.
    """
    program, elsewhere = card.parent / "classify.py", card.parent / "elsewhere"
    assert "Save this program as `classify.py` beside" in card.read_text("utf-8")
    program.write_text(program_of(card))
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-I", str(program), *map(str, pictures)],
        capture_output=True,
        text=True,
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.rsplit(" ", 2) for line in done.stdout.splitlines()]
    return [(label, float(probability)) for _, label, probability in lines]
