"""Imports point down only, and rooms of one level do not import each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import featpipe

PACKAGE = Path(featpipe.__file__).parent

LAYERS = [
    ["_version"],
    ["base"],
    ["backbones"],
    ["specs"],
    ["sources", "decoding", "heads"],
    ["weights", "datasets", "runs", "auditing"],
    ["store", "reports"],
    ["engine", "exports", "advising"],
    ["stages", "integrations"],
    ["api"],
    ["bench"],
    ["cli"],
    # What users import and start; no module of the package imports it.
    ["__init__", "__main__"],
]
"""The rooms (folders of the package) and its few modules, from low to high. Rooms of one layer do
not know each other. One that is not named here fails a test: decide where it belongs."""

STRANGERS = {
    "store": {"torch", "torchvision"},
    "sources": {"torch", "torchvision"},
    "datasets": {"torch", "torchvision"},
    "reports": {"torch", "torchvision"},
    "heads": {"h5py"},
    "auditing": {"torch", "torchvision", "h5py"},
    "advising": {"torch", "torchvision", "h5py"},
}
"""Libraries a room does without, so that it can be used and tested without them."""

UNSAFE = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal"}

LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}

MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    """``featpipe/store/rows.py`` → ``store.rows``; a package by its folder's name."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    if len(parts) > 1 and parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def imports(source: str) -> set[str]:
    """Everything a module imports, also inside functions: ``from a import b`` is ``a.b``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are spelt in full, so that this test can read them"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            # importlib.import_module("x") and __import__("x") are imports too.
            found |= {
                argument.value
                for argument in node.args
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            }
    return found


def room(name: str) -> str | None:
    """Which module or folder of the package an imported name is in; None for others'."""
    parts = name.split(".")
    if parts[0] != "featpipe":
        return None
    if len(parts) == 1:
        return "__init__"
    here = PACKAGE / parts[1]
    if here.is_dir() or here.with_suffix(".py").exists():
        return parts[1]
    return "__init__"


def imported(path: Path) -> set[str]:
    return imports(path.read_text(encoding="utf-8"))


def test_the_reader_of_imports_sees_them_all() -> None:
    source = """
import os.path, h5py as h
from torch.nn import functional
def f():
    import featpipe.store.rows
    if TYPE_CHECKING:
        from featpipe import heads
    importlib.import_module("pickle")
"""
    found = imports(source)
    assert found == {
        "os.path",
        "h5py",
        "torch.nn.functional",
        "featpipe.store.rows",
        "featpipe.heads",
        "pickle",
    }
    assert {room(name) for name in found} == {None, "store", "heads"}
    assert room("featpipe.open_features") == "__init__"


def test_every_module_has_its_layer() -> None:
    rooms = {dotted(path).split(".")[0] for path in MODULES}
    assert rooms - set(LAYER_OF) == set(), "name their layers in tests/test_layers.py"
    assert {"base", "store", "stages"} <= rooms, "the package was not found"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_point_down(path: Path) -> None:
    mine = dotted(path).split(".")[0]
    if mine not in LAYER_OF:
        pytest.fail(f"{mine} has no layer")
    rooms = {room(name) for name in imported(path)} - {None, mine}
    upwards = {other for other in rooms if LAYER_OF[other] > LAYER_OF[mine]}
    assert not upwards, f"{dotted(path)} imports from above: {upwards}"
    sideways = {other for other in rooms if LAYER_OF[other] == LAYER_OF[mine]}
    assert not sideways, f"{dotted(path)} imports from beside: {sideways}"


def test_stages_meet_only_through_files() -> None:
    # A recipe chains the others; those that score heads share how it is done.
    allowed = {("recipe", stage) for stage in ("extract", "train", "evaluate", "compare")}
    allowed |= {(stage, "scoring") for stage in ("evaluate", "compare", "scales")}
    allowed |= {(stage, "scales") for stage in ("recipe", "evaluate")}
    allowed |= {("evaluate", "view_sheet"), ("view_sheet", "scoring")}
    allowed |= {(stage, "score_maps") for stage in ("predict", "evaluate")}
    # What is known beforehand, for the extraction and for its plan.
    allowed |= {(stage, "known_pictures") for stage in ("extract", "dry_run")}
    # Parts of an extraction: its second pass, and which spaces a data set lists then.
    allowed |= {("extract", part) for part in ("extract_result", "held_spaces", "views")}
    allowed |= {("views", part) for part in ("extract_result", "held_spaces")}
    allowed |= {("dry_run", "views"), ("recipe", "extract_result")}
    # Parts of training, which is more than one module can hold.
    parts = ("calibration", "n_shot", "starting_tensors", "sweep_result", "training_views")
    allowed |= {("train", part) for part in parts} | {("scoring", "averaged_views")}
    allowed |= {("train_result", part) for part in ("n_shot", "sweep_result")}
    # An export is one of a head or one of a data set.
    allowed |= {("export", "export_table")}
    allowed |= {(stage, "train_result") for stage in ("train", "recipe")}
    stages = [path for path in MODULES if dotted(path).startswith("stages.")]
    edges = {
        (path.stem, name.split(".")[2])
        for path in stages
        for name in imported(path)
        if name.startswith("featpipe.stages.") and not name.startswith("featpipe.stages.documents")
    }
    assert edges == allowed


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_parts_do_without_the_libraries_they_should(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imported(path)}
    assert not libraries & STRANGERS.get(dotted(path).split(".")[0], set())


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_nothing_is_pickled_but_for_one_restricted_reader(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unsafe = {name for name in imported(path) if name.split(".")[0] in UNSAFE}
    if dotted(path) == "weights.readers":
        assert unsafe == {"pickle"}, "the one reader, or this exception, is gone"
    else:
        assert not unsafe
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        options = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert options.get("allow_pickle", "False") == "False", f"line {call.lineno}"
        assert name not in {"joblib.load", "joblib.dump", "torch.save"}, f"line {call.lineno}"
        # Both read pickles unless told not to; they are told so in the open.
        if name == "torch.load":
            assert options.get("weights_only") == "True", f"line {call.lineno}"
        if name in {"np.load", "numpy.load"}:
            assert options.get("allow_pickle") == "False", f"line {call.lineno}"
        # pickle's own loads would run what it reads; only a subclass can refuse.
        assert name not in {"pickle.load", "pickle.loads", "pickle.Unpickler"}, f"{call.lineno}"


@pytest.mark.parametrize(
    ("modules", "library"),
    [
        ("featpipe.sources, featpipe.store.feature_store, featpipe.datasets.files", "torch"),
        ("featpipe.stages.extract, featpipe.engine.extractor, featpipe.datasets.splits", "torch"),
        ("featpipe.sources, featpipe.store.feature_store, featpipe.stages.extract", "sklearn"),
        ("featpipe", "torch"),
        ("featpipe", "sklearn"),
        # Every command pays for these, also `featpipe --help`.
        ("featpipe.cli.app", "numpy"),
        ("featpipe.cli.app", "featpipe.specs"),
        ("featpipe.cli.commands.train_head", "numpy"),
        # No picture is opened and no page is drawn in training.
        ("featpipe.stages.train", "PIL"),
        ("featpipe.stages.train", "matplotlib"),
        ("featpipe.stages.advise", "PIL"),
        ("featpipe.stages.advise", "torch"),
    ],
)
def test_importing_does_not_load_heavy_libraries(modules: str, library: str) -> None:
    # What the source says of each module alone, proved for all they pull in.
    code = f"import sys, {modules}; sys.exit({library!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
