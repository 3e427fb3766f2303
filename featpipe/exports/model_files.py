"""A torch module as the bytes of a file, and back to something that answers."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.fx.experimental._config
from numpy.typing import NDArray
from torch import nn

from featpipe.base.errors import UsageError
from featpipe.base.packages import needing
from featpipe.base.text import one_line

INPUT = "image"
OUTPUTS = ("logits", "probabilities")
DENSE_OUTPUTS = ("score_map", "probabilities")
"""Of pictures of any height and width."""
_ONNX_BYTES = 2**31 - 2**25
"""Size of the tensors that fit one ONNX file; the format allows 2 GiB for all of it."""
Answer = Callable[[NDArray[np.float32]], list[np.ndarray]]
"""Pictures (n, 3, height, width) of 0..1 → the outputs."""


class ModelFile(ABC):
    """A format of files that hold networks.

    Attributes
    ----------
    title : str
        What it is, for people.
    """

    title: ClassVar[str]

    @abstractmethod
    def libraries(self) -> dict[str, str]:
        """Versions of the libraries that write it, by name.

        Raises
        ------
        MissingPackageError
        """

    @abstractmethod
    def encode(
        self, model: nn.Module, example: torch.Tensor, facts: Mapping[str, str], *, dense: bool
    ) -> bytes:
        """The bytes of a file.

        Parameters
        ----------
        model : nn.Module
            Pictures → one tensor for each output.
        example : Tensor of float32, shape (2, 3, height, width)
        facts : mapping of str to str
            Texts that the file holds besides.
        dense : bool
            Whether height and width of the pictures are free, as their number always is.

        Raises
        ------
        UsageError
            The network cannot be written in this format.
        """

    @abstractmethod
    def open(self, data: bytes) -> Answer:
        """What a file's bytes answer."""


class OnnxFile(ModelFile):
    """One ONNX file."""

    title = "ONNX file"

    def libraries(self) -> dict[str, str]:
        """See :meth:`ModelFile.libraries`."""
        found = {"torch": str(torch.__version__)}
        for package in ("onnx", "onnxscript", "onnxruntime"):
            with needing(package, "--format onnx", "onnx"):
                found[package] = importlib.metadata.version(package)
        return found

    def encode(
        self, model: nn.Module, example: torch.Tensor, facts: Mapping[str, str], *, dense: bool
    ) -> bytes:
        """See :meth:`ModelFile.encode`."""
        _check_size(model)
        program = _traced(model, example, dense=dense)
        axes = {0: "batch", **({2: "height", 3: "width"} if dense else {})}
        outputs = DENSE_OUTPUTS if dense else OUTPUTS
        try:
            with _quiet():
                made = torch.onnx.export(
                    program,
                    dynamo=True,
                    input_names=[INPUT],
                    output_names=list(outputs),
                    dynamic_shapes={INPUT: axes},
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as error:
            raise UsageError(
                f"expected a network that ONNX has operators for, found: {one_line(error)}; use "
                "--format torch"
            ) from error
        assert made is not None
        proto = made.model_proto
        for key, value in facts.items():
            proto.metadata_props.add(key=key, value=value)
        return bytes(proto.SerializeToString())

    def open(self, data: bytes) -> Answer:
        """See :meth:`ModelFile.open`."""
        import onnxruntime

        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        return lambda image: list(session.run(None, {INPUT: image}))


class TorchFile(ModelFile):
    """A program of ``torch.export``."""

    title = "torch.export program"

    def libraries(self) -> dict[str, str]:
        """See :meth:`ModelFile.libraries`."""
        return {"torch": str(torch.__version__)}

    def encode(
        self, model: nn.Module, example: torch.Tensor, facts: Mapping[str, str], *, dense: bool
    ) -> bytes:
        """See :meth:`ModelFile.encode`."""
        program = _traced(model, example, dense=dense)
        stream = io.BytesIO()
        with _quiet():
            torch.export.save(program, stream, extra_files=dict(facts))
        return stream.getvalue()

    def open(self, data: bytes) -> Answer:
        """See :meth:`ModelFile.open`."""
        with _quiet():
            return answer_of(torch.export.load(io.BytesIO(data)).module())


def answer_of(module: nn.Module) -> Answer:
    """What a torch module answers."""

    def answer(image: NDArray[np.float32]) -> list[np.ndarray]:
        with torch.inference_mode():
            return [found.numpy() for found in module(torch.from_numpy(image))]

    return answer


FILES: dict[str, ModelFile] = {"onnx": OnnxFile(), "torch": TorchFile()}
"""Every format of a network by the name that people choose it by."""


def _traced(
    model: nn.Module, example: torch.Tensor, *, dense: bool
) -> torch.export.ExportedProgram:
    axes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if dense:
        axes |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    try:
        # Else a size that gives a map of one place would be refused: tracing tells 1 from others.
        free = torch.fx.experimental._config.patch(  # type: ignore[attr-defined]
            backed_size_oblivious=dense
        )
        with _quiet(), torch.no_grad(), free:
            return torch.export.export(model, (example,), dynamic_shapes={INPUT: axes})
    # The network may be anybody's code.
    except Exception as error:
        raise UsageError(
            f"expected a network that torch.export can trace, found: {one_line(error)}; export a "
            "head on another backbone"
        ) from error


def _check_size(model: nn.Module) -> None:
    tensors = [*model.parameters(), *model.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > _ONNX_BYTES:
        raise UsageError(
            f"expected tensors of less than 2 GiB for one ONNX file, found {size / 2**30:.1f} GiB; "
            "use --format torch"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' own remarks, which are for their developers."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
