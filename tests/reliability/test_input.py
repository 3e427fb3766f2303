"""Promise 10: whatever is read or typed either works or ends in one line that says what is wrong.

The cases are the same in every run: nothing is drawn by chance.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import datetime
import hashlib
import json
import math
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.command import TINY_FLAGS, Run
from support.runs import JSON_NAME, load_head, save_head
from support.samples import in_splits, small_space, stored_set
from support.tally import NewTally, Scale, Tally

from featpipe.base.errors import FeatpipeError, Reason, UsageError, WeightsError
from featpipe.base.space import FeatureSpace
from featpipe.datasets import files as datasets
from featpipe.datasets.dataset import Status
from featpipe.datasets.files import load_dataset
from featpipe.datasets.spaces import choose_space, require_spaces
from featpipe.integrations.arrays import open_features
from featpipe.sources import open_source
from featpipe.specs.recipe import load_recipe
from featpipe.specs.spaces import SpaceQuery
from featpipe.stages.recipe import check_data
from featpipe.store.feature_store import open_store

PROMISE = "10 Bad input"
CODES = {0, 1, 2, 3, 10, 12, 13, 74}
SECONDS = 20.0
MIB = 768
"""What one case may take, and by how much all of a test may make the process grow: bounds that
only a hang and an allocation of somebody's choosing exceed. A test that runs first in its process
also pays for imports: torch and what reports need are about 500 MiB."""


def try_all(
    t: Tally, strategy: st.SearchStrategy[Any], check: Callable[[Any], None], *, cases: int
) -> None:
    """Check so many values of a strategy, always the same ones; failures are counted."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(value: Any) -> None:
        with t.case(_spelled(value)[-100:]):
            started = time.monotonic()
            check(value)
            assert time.monotonic() - started < SECONDS, "it took too long"

    each()
    with t.case("memory of all of them"):
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < MIB * 1024, f"the process grew by {grown // 1024} MiB"


def _spelled(value: object) -> str:
    # Python spells no whole number beyond a few thousand digits.
    try:
        return ascii(value)[:400]
    except ValueError:
        return "a value with a huge number in it"


def assert_told(error: FeatpipeError) -> None:
    """One printable line: what was expected, and what was found instead."""
    said = str(error)
    assert said.isprintable(), ascii(said)
    assert "expected " in said, said
    assert any(word in said for word in ("found", "but: ", "in_")), said


def refused(call: Callable[[], object]) -> FeatpipeError | None:
    """The error of featpipe's own that a call ends in; None where it works."""
    try:
        call()
    except FeatpipeError as error:
        assert_told(error)
        return error
    return None


WORDS = st.sampled_from(
    ["", " ", "x", "auto", "a/b", "..", "\t", "a\nb", "\x00", "\x1b[31m", "\u202e", "ß😀", "\ufeff"]
)
NUMBERS = st.sampled_from(
    [0, 1, -1, 2**31, 2**63 - 1, 2**63, 10**400, 0.5, -0.0, 1e308]
) | st.sampled_from([math.nan, math.inf, -math.inf])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS | st.just("\ud800") | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)


# Recipes.

DATES = st.sampled_from(
    [datetime.date(1, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59), datetime.time(0, 0)]
)
TOML_VALUES = st.recursive(
    st.booleans()
    | NUMBERS
    | st.booleans().map(lambda _: 1 << 15_000)
    | WORDS
    | DATES
    | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)
KEYS = {
    "dataset": "name data root split max_bad",
    "extract": "backbone weights tap pool size resize precision dtype device batch_size workers "
    "views augment augment_seed views_of",
    "head": "kind tap pool seed val device learning_rate epochs hidden dropout C max_iter "
    "no_views augment augment_seed",
    "evaluate": "on split tta augment augment_seed",
}
FITTING: dict[str, dict[str, Any]] = {
    "dataset": {"name": "x", "data": "photos"},
    "extract": {"weights": "random:0", "tap": "block1_pool", "size": 16},
    "head": {"kind": "linear"},
    "evaluate": {"split": "test"},
}


def toml_value(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(k)} = {toml_value(v)}" for k, v in value.items())
        return "{" + inner + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        # Python writes no decimal number this long; TOML has others.
        return hex(value) if value >= 2**63 else str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """A recipe with up to three values of any kind in it, at any level."""
    document: dict[str, Any] = copy.deepcopy(FITTING)
    for _ in range(draw(st.integers(0, 3))):
        section = draw(st.sampled_from([*KEYS, *KEYS, "x"]))
        if section == "x" or draw(st.integers(0, 9)) == 0:
            document[section] = draw(TOML_VALUES)
        elif isinstance(document[section], dict):
            key = draw(st.sampled_from(KEYS[section].split()) | WORDS)
            document[section][key] = draw(TOML_VALUES)
    # A table by itself is not a list of tables.
    if isinstance(document["head"], dict) and draw(st.integers(0, 9)):
        document["head"] = [document["head"]]
    if draw(st.booleans()):
        document["extract"] = [copy.deepcopy(FITTING["extract"]), document["extract"]]
    return document


def test_any_recipe_is_read_or_refused_in_one_line(
    tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    t = tally(PROMISE, "recipes of known and unknown keys with any value")
    path = tmp_path / "recipe.toml"
    read = 0

    def check(document: dict[str, Any]) -> None:
        nonlocal read
        text = "".join(f"{json.dumps(k)} = {toml_value(v)}\n" for k, v in document.items())
        path.write_text(text, encoding="utf-8")
        error = refused(lambda: load_recipe(path))
        assert error is None or isinstance(error, UsageError)
        if error is None:
            read += 1
            refused(lambda: check_data(load_recipe(path)))

    try_all(t, recipes(), check, cases=scale(50, 2000))
    assert read, "not one was read: the refusals say nothing"


def test_any_bytes_as_a_recipe_are_refused_in_one_line(
    tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    t = tally(PROMISE, "recipes of any bytes")
    path = tmp_path / "recipe.toml"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        assert isinstance(refused(lambda: load_recipe(path)), UsageError)

    pieces = st.sampled_from([*b"[]{}=\"'\\\n\r\t#.,x0-", 0, 0x1B, 0x7F, 0x80, 0xFF])
    try_all(
        t,
        st.binary(max_size=60) | st.lists(pieces, max_size=30).map(bytes),
        check,
        cases=scale(60, 2000),
    )


@pytest.mark.parametrize(
    "text",
    [
        "[dataset]\nname.{} = 1\ndata = 'y'\n".format(".".join(["a"] * 50_000)),
        "dataset = {}1{}\n".format("[" * 50_000, "]" * 50_000),
        "[dataset]\nname.{} = 1\ndata = 'y'\n".format(".".join(["a"] * 1000)),
        "[dataset]\nname = 0x{}\ndata = 'y'\n".format("f" * 3_700),
        "[dataset]\nname = {}\ndata = 'y'\n".format("9" * 50_000),
        "[dataset]\nname = 'x'\ndata = 'y'\nmax_bad = 0x{}\n".format("f" * 3_700),
        "[{}]\n".format("a" * 1_000_000),
        "x = '{}'\n".format("a" * 1_000_000),
        "[dataset]\n" + "".join(f"k{i} = 1\n" for i in range(50_000)),
    ],
    ids=[
        "long dotted",
        "nested",
        "dotted",
        "hex",
        "decimal",
        "share",
        "long key",
        "long text",
        "many keys",
    ],
)
def test_a_recipe_beyond_all_measure_is_refused(tmp_path: Path, text: str, tally: NewTally) -> None:
    t = tally(PROMISE, "recipes beyond all measure")
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    started = time.monotonic()
    with t.case(text[:60]):
        assert isinstance(refused(lambda: load_recipe(path)), UsageError)
        assert time.monotonic() - started < SECONDS


# Lists.

LIST_PIECES = st.sampled_from(
    [
        *["path", "label", "split", "PATH", " path ", "a.png", "b/c.png", "../x", "/etc/passwd"],
        *["train", "val", "TEST", "holdout", "cat", "dog", "", " ", ".", "\u202e", "\x1b[31m"],
        *[",", ",", ",", "\t", "\n", "\n", "\n", "\r", "\r\n", '"', '""', "'", ";", "\0", "ß😀"],
        "\ufeff",
        "x" * 200,
    ]
)
ROWS = st.fixed_dictionaries(
    {}, optional={"path": JSON_VALUES, "label": JSON_VALUES, "split": JSON_VALUES, "x": JSON_VALUES}
)


def list_texts() -> st.SearchStrategy[tuple[str, bytes]]:
    pieces = st.lists(LIST_PIECES, max_size=25).map(lambda p: "".join(p).encode())
    headed = pieces.map(lambda rest: b"path,label,split\n" + rest)
    lines = st.lists(ROWS.map(json.dumps) | JSON_VALUES.map(json.dumps), max_size=4)
    paths = st.lists(
        st.fixed_dictionaries(
            {"path": st.sampled_from(["a", "b", "c\x1b", "\udcff"])},
            optional={"label": st.just("\ud800") | JSON_VALUES, "split": JSON_VALUES},
        ).map(json.dumps),
        min_size=1,
        max_size=3,
    )
    json_lines = (lines | paths).map(lambda found: "\n".join(found).encode())
    return st.one_of(
        st.tuples(st.sampled_from([".csv", ".tsv"]), pieces | headed),
        st.tuples(st.just(".jsonl"), json_lines),
        st.tuples(st.just(".jsonl"), json_lines),
        st.tuples(st.sampled_from([".csv", ".tsv", ".jsonl"]), st.binary(max_size=60)),
    )


def test_any_list_is_read_or_refused_in_one_line(
    tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    t = tally(PROMISE, "lists of any text and any bytes")
    read = 0

    def check(case: tuple[str, bytes]) -> None:
        nonlocal read
        suffix, content = case
        path = tmp_path / f"list{suffix}"
        path.write_bytes(content)
        if refused(lambda: open_source(path)) is None:
            read += 1
            for record in open_source(path).records:
                # What was let in can be opened, shown and written down.
                os.fsencode(record.path)
                assert "\0" not in record.path
                assert record.label is None or (record.label and os.fsencode(record.label))
                assert "\0" not in (record.label or ""), "NumPy would cut it off"

    try_all(t, list_texts(), check, cases=scale(100, 4000))
    assert read > 5, "hardly one was read: the refusals say nothing"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "path\n" + "x" * (csv.field_size_limit() + 1)),
        ("a.csv", 'path\n"' + "x\n" * 100_000),
        ("a.csv", "path" + ",x" * 100_000 + "\n"),
        ("a.csv", ",".join(f"c{i}" for i in range(100_000)) + "\n"),
        ("a.csv", "path,label,path\na,b,c\n"),
        ("a.csv", "path\n" + "a" * 100_000),
        ("a.tsv", "path\n" + '"' * 100_001),
        ("a.jsonl", '{"path": "a", "label": ' + "[" * 100_000),
        ("a.jsonl", '{"path": "a", "label": ' + "9" * 100_000 + "}"),
        ("a.jsonl", '{"path": "a", "label": 1e999}'),
        ("a.jsonl", '{"path": "a", "label": NaN}'),
        ("a.jsonl", '{"path": "a", "split": {"a": ' + "[" * 500 + "]" * 500 + "}}"),
        ("a.jsonl", '{"path": "' + "a" * 1_000_000 + '"}'),
        ("a.jsonl", "[]\n" * 100_000),
        ("a.jsonl", '{"path": "a"' * 10_000),
    ],
)
def test_a_list_beyond_all_measure_is_read_or_refused(
    tmp_path: Path, name: str, content: str, tally: NewTally
) -> None:
    t = tally(PROMISE, "lists beyond all measure")
    (tmp_path / name).write_text(content)
    started = time.monotonic()
    with t.case(content[:60]):
        refused(lambda: open_source(tmp_path / name))
        assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize("data", ["a\0b", "x" * 5000, "a\x1b[31m", "sklearn:\n", "", "\udcff"])
def test_any_name_as_data_is_refused_in_one_line(
    data: str, tmp_path: Path, tally: NewTally
) -> None:
    t = tally(PROMISE, "names of data and of recipes that cannot be")
    for call in (open_source, lambda name: load_recipe(Path(name))):
        with t.case(ascii(data)[:60]):
            found = refused(lambda call=call: call(str(tmp_path / data) if data else "nowhere"))
            assert found is not None
    listed = tmp_path / "list.csv"
    listed.write_text("path\na.png\n")
    with t.case(f"root {ascii(data)[:60]}"):
        refused(lambda: open_source(listed, root=Path(data)))


# Flags.

STRANGE = [
    *["", " ", "-", "-1", "0", "1", "2", "007", "nan", "inf", "-inf", "1e400", "-0.0", "0x10"],
    *["１２", "²", "٣", "\u202e", "\x1b[31m", "a\nb", "\udcff", "ß😀", "a" * 5000, "9" * 5000],
    *["9223372036854775807", "9223372036854775808", "1,1,1", "nan,nan,nan", "1,0,0", ",,", "%s%n"],
    *["auto", "cuda", "cuda:99999999999999999999", "cuda:²", "mps", "mps:1", "cpu:0", "random:"],
    *["random:99999999999", "random:-1", "x.safetensors", "photos.h5", "run/head.safetensors"],
    *["1/0", "2/1", "9999999/9999999", "1/2", "100%", "-0%", "101%", "True", "null", "[]", "{}"],
    *["colours", "colours.shard-1-of-2", "run", "photos", "list.csv", "recipe.toml", "/dev/null"],
    *["linear", "mlp", "logistic", "test", "all", "none", "avg", "block1_pool", "block5_pool"],
]
CACHES = ["cache", "nowhere", "photos", "list.csv", "list.csv/x", "/dev/null", "a" * 300, "", "\n"]
COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "extract": (
        ["extract", "photos", "--name", "colours", *TINY_FLAGS],
        "backbone weights tap pool size resize precision dtype device batch-size workers "
        "max-pixels split root max-bad shard name".split(),
    ),
    "extract --dry-run": (
        ["extract", "photos", "--name", "colours", "--dry-run", *TINY_FLAGS],
        "backbone weights tap pool device cache name root size".split(),
    ),
    "extract list": (
        ["extract", "list.csv", "--name", "listed", "--dry-run", *TINY_FLAGS],
        "root split max-bad cache".split(),
    ),
    "train-head": (
        ["train-head", "colours", "--epochs", "2", "--out", "new", "--overwrite"],
        "head tap pool learning-rate weight-decay batch-size epochs patience hidden dropout C "
        "max-iter seed val device cache space class-weight folds seeds n-shot tries k "
        "vote-temperature augment augment-seed".split(),
    ),
    "train-head mlp": (
        ["train-head", "colours", "--head", "mlp", "--epochs", "1", "--out", "new", "--overwrite"],
        "learning-rate weight-decay batch-size patience dropout seed val".split(),
    ),
    "train-head knn": (
        ["train-head", "colours", "--head", "knn", "--out", "new", "--overwrite"],
        "k vote-temperature class-weight n-shot tries val".split(),
    ),
    "evaluate": (["evaluate", "run"], "on split cache augment".split()),
    "evaluate --tta": (["evaluate", "run", "--tta"], "on split augment augment-seed".split()),
    "evaluate --scales": (
        ["evaluate", "run", "--scales", "16"],
        "frame weights device batch-size workers on split".split(),
    ),
    "compare": (["compare", "run", "again", "--out", "compared"], "on split cache".split()),
    "runs": (["runs", "."], ["sort"]),
    "advise": (["advise", "colours"], "val seed max-pictures allow-code cache".split()),
    "audit": (
        ["audit", "colours", "--out", "audited", "--overwrite"],
        "distance max-pairs folds seed max-outliers min-class tap space cache".split(),
    ),
    "relabel": (["relabel", "colours", "fixes.csv", "--overwrite"], "name out cache".split()),
    "export": (
        ["export", "colours", "--format", "npz", "--out", "x.npz", "--overwrite"],
        "format out tap pool weights size space view cache".split(),
    ),
    "export a head": (
        ["export", "run", "--format", "torch", "--out", "x.pt2", "--overwrite"],
        "format out weights pool cache".split(),
    ),
    "predict": (
        ["predict", "run", "photos/red/00.png"],
        "weights device batch-size workers maps cache".split(),
    ),
    "run": (["run", "recipe.toml", "--check"], "data out device cache".split()),
    "backbones": (["backbones", "vgg16"], ["size"]),
    "doctor": (["doctor"], ["cache"]),
    "cache list": (["cache", "list"], ["cache"]),
    "cache info": (["cache", "info", "colours"], ["cache"]),
    "cache verify": (["cache", "verify", "--quick"], ["cache"]),
    "cache repair": (["cache", "repair"], ["cache"]),
    "cache gc": (["cache", "gc", "--dry-run"], ["grace", "cache"]),
    "cache remove": (["cache", "remove", "colours"], ["cache"]),
    "weights list": (["weights", "list"], ["cache"]),
    "weights fetch": (["weights", "fetch"], "backbone cache".split()),
}
ARGUMENTS = {
    "extract": 1,
    "train-head": 1,
    "evaluate": 1,
    "compare": 2,
    "runs": 1,
    "advise": 1,
    "audit": 1,
    "relabel": 2,
    "export": 1,
    "export a head": 1,
    "predict": 2,
    "run": 1,
    "backbones": 1,
    "cache info": 2,
    "cache remove": 2,
    "weights fetch": 2,
}
"""Commands with an argument, and where it stands."""


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command that works, with one or two of its options set to anything."""
    key = draw(st.sampled_from(list(COMMANDS)))
    words, options = list(COMMANDS[key][0]), COMMANDS[key][1]
    if key in ARGUMENTS and draw(st.integers(0, 3)) == 0:
        # To the right of --, so that it is an argument however it begins.
        place = ARGUMENTS[key]
        del words[place : place + 1]
        return [*words, "--", draw(st.sampled_from(STRANGE))]
    for option in draw(st.lists(st.sampled_from(options), min_size=1, max_size=2, unique=True)):
        pool = CACHES if option == "cache" else STRANGE
        if option == "workers":
            # As many processes as one asks for are started: see the limits in the docs.
            pool = [word for word in STRANGE if not word.isdecimal() or len(word) < 3]
        words.append(f"--{option}={draw(st.sampled_from(pool))}")
    return words


def assert_tidy(code: int, said: str) -> None:
    """An exit code that is documented; on stderr only notes and, at the end, one error."""
    assert code in CODES, (code, said)
    if said.startswith("Usage: "):
        assert code == 2, code
        assert said.count("\nError: ") == 1, said
        return
    lines = said.split("\n")
    assert lines.pop() == "", said
    assert all(line.isprintable() for line in lines), ascii(said)
    errors = [number for number, line in enumerate(lines) if line.startswith("Error: ")]
    if code in (0, 3):
        assert not errors, said
    elif errors or code != 13:
        # Only 'cache verify' ends with a code of its own and without an error.
        assert errors == [len(lines) - 1], said
        assert lines[-1].startswith("Error: expected "), said


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No provider has weights."""

    def nothing(*_: object) -> Path:
        raise WeightsError("expected weights from some provider, found none")

    monkeypatch.setattr("featpipe.weights.resolve.fetch_named", nothing)
    yield


def test_any_command_line_works_or_says_why_in_one_line(
    own_workspace: Path, inside: Run, offline: None, tally: NewTally, scale: Scale
) -> None:
    t = tally(PROMISE, "command lines with any value of any option")
    shutil.copytree(own_workspace / "photos", own_workspace / "spare")
    shutil.copytree(own_workspace / "run", own_workspace / "again")
    (own_workspace / "fixes.csv").write_text("path,label\nred/00.png,blue\n")
    (own_workspace / "list.csv").write_text("path,label\nphotos/red/00.png,a\n")
    (own_workspace / "recipe.toml").write_text(
        "[dataset]\nname = 'colours'\ndata = 'photos'\n[[head]]\nkind = 'linear'\n"
    )
    codes = set()

    def check(words: list[str]) -> None:
        done = inside(*words)
        codes.add(done.returncode)
        assert_tidy(done.returncode, done.stderr)
        assert done.returncode in (0, 3, 13) or not done.stdout, done.stdout

    try_all(t, command_lines(), check, cases=scale(20, 500))
    assert {0, 2, 10} <= codes, f"only {codes}: the commands say nothing"


@pytest.mark.parametrize(
    "command",
    [
        ["cache", "list", "--cache=@"],
        ["cache", "info", "x", "--cache=@"],
        ["train-head", "colours", "--cache=@"],
        ["evaluate", "@"],
        ["compare", "@", "run"],
        ["runs", "@"],
        ["relabel", "colours", "@"],
        ["advise", "colours", "--cache=@"],
        ["audit", "colours", "--cache=@"],
        ["export", "@", "--format", "torch", "--out", "x"],
        ["run", "@"],
        ["extract", "@", "--name", "x", *TINY_FLAGS],
        ["extract", "photos", "--name", "x", *TINY_FLAGS, "--weights", "@.safetensors"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_name_that_would_steer_the_terminal_is_spelled_out(
    command: list[str], workspace: Path, inside: Run, tally: NewTally
) -> None:
    t = tally(PROMISE, "names that would steer the terminal or end the line")
    for name in ("no\x1b[31m", "no\nwhere", "no\x9b2J", "no\u2028where", "no\udcff"):
        with t.case(f"{command[:2]} {name!a}"):
            done = inside(*(word.replace("@", name) for word in command), cwd=workspace)
            assert done.returncode in (1, 10)
            assert_tidy(done.returncode, done.stderr)


# JSON and data sets whose digests are right but whose content is anything.


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a document."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*here, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*here, key))


def mutations(document: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The document with one value replaced by another, taken away, or added."""
    ways = list(places(document))

    def mutate(choice: tuple[tuple[Any, ...], int, Any]) -> dict[str, Any]:
        way, what, value = choice
        changed = copy.deepcopy(document)
        inner: Any = changed
        for key in way[:-1]:
            inner = inner[key]
        if what == 0:
            del inner[way[-1]]
        elif what == 1 and isinstance(inner, dict):
            inner["x"] = value
        else:
            inner[way[-1]] = value
        return changed

    return st.tuples(st.sampled_from(ways), st.integers(0, 7), JSON_VALUES).map(mutate)


def same(one: object, other: object) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def without(document: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in keys}


def test_any_head_json_is_read_as_written_or_refused_in_one_line(
    own_workspace: Path, inside: Run, tally: NewTally, scale: Scale
) -> None:
    t = tally(PROMISE, "head.json with any value changed, digest right")
    path = own_workspace / "run" / JSON_NAME
    whole = json.loads(path.read_text())
    used = 0

    def check(document: dict[str, Any]) -> None:
        nonlocal used
        if isinstance(document.get("feature_space"), dict):
            text = json.dumps(document["feature_space"], sort_keys=True, separators=(",", ":"))
            document["feature_space_id"] = hashlib.sha256(text.encode()).hexdigest()
        rest = json.dumps(without(document, "sha256"), sort_keys=True)
        document["sha256"] = hashlib.sha256(rest.encode()).hexdigest()
        path.write_text(json.dumps(document))
        if refused(lambda: load_head(own_workspace / "run")) is not None:
            return
        # Texts are what these two are read as, whatever they are.
        document["weights"] = str(document["weights"])
        document["classes"] = np.array(list(document["classes"]), dtype=str).tolist()
        document["history"].pop("x", None)  # what nobody knows is not kept
        trained = load_head(own_workspace / "run")
        save_head(own_workspace / "again", trained)
        again = json.loads((own_workspace / "again" / JSON_NAME).read_text())
        assert any(
            same(without(again, "sha256", "x"), without(one, "sha256", "x"))
            for one in (document, whole)
        ), "it was read as something else"
        # What was let in can be worked with.
        used += 1
        if used <= limit:
            predict = ["predict", "run", "photos/red/00.png"]
            for command in (["evaluate", "run"], predict, ["runs", "."]):
                done = inside(*command)
                assert_tidy(done.returncode, done.stderr)

    # What later commands would trip over.
    for key, value in {
        "history": {**whole["history"], "rows": []},
        "dataset": {**whole["dataset"], "name": 1},
        "info": [],
        "metrics": None,
        "format": 99,
    }.items():
        with t.case(f"{key} = {value!r}"):
            document = {**whole, key: value}
            text = json.dumps(without(document, "sha256"), sort_keys=True)
            document["sha256"] = hashlib.sha256(text.encode()).hexdigest()
            path.write_text(json.dumps(document))
            assert refused(lambda: load_head(own_workspace / "run")) is not None
    limit = scale(1, 20)
    try_all(t, mutations(whole), check, cases=scale(40, 1500))
    assert used, "not one was read: the refusals say nothing"


def test_any_space_json_is_read_as_written_or_refused_in_one_line(
    own_workspace: Path, tally: NewTally, scale: Scale
) -> None:
    t = tally(PROMISE, "space.json with any value changed, in the folder it names")
    (folder,) = (own_workspace / "cache" / "spaces").iterdir()
    whole = json.loads((folder / "space.json").read_text())
    spaces = own_workspace / "other" / "spaces"
    read = 0

    def check(document: dict[str, Any]) -> None:
        nonlocal read
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        own = hashlib.sha256(text.encode()).hexdigest()[:12]
        name = f"{document.get('backbone')}-{document.get('tap')}-{own}"
        # A name that cannot be one lies in another's folder, as whoever wrote it would find.
        name = name if name.isprintable() and "/" not in name and len(name) < 200 else folder.name
        (spaces / name).mkdir(parents=True, exist_ok=True)
        (spaces / name / "space.json").write_text(json.dumps(document))
        if refused(lambda: open_store(spaces / name)) is None:
            read += 1
            store = open_store(spaces / name)
            assert same(json.loads(store.space.canonical_json), document)
            assert store.space == FeatureSpace.from_json(store.space.canonical_json)
            # What was let in can be worked with.
            refused(lambda: len(store.index.ids))
            refused(lambda: store.space.differences(small_space()))
            refused(lambda: store.rows(np.zeros((0, 32), np.uint8)))

    try_all(t, st.just(whole) | mutations(whole), check, cases=scale(50, 1500))
    assert read, "not one was read: the refusals say nothing"


@st.composite
def headers(draw: st.DrawFn) -> dict[str, Any]:
    """What a data set's header may be made to say: one or two fields of it."""
    fields = "name source classes reasons spaces info".split()
    changed: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(fields), min_size=1, max_size=2, unique=True)):
        # Another file's own name is shown as it stands: see the data set names of the folders.
        inner = draw(JSON_VALUES if name != "name" else st.sampled_from(["", "a/b", 1, None, []]))
        keys = {
            "source": ["kind", "spec", "root"],
            "info": ["decoder", "split", "weights", "list", "covers"],
            "reasons": ["0", "-1", "99", "x"],
        }
        if name in keys and draw(st.integers(0, 3)):
            inner = {draw(st.sampled_from(keys[name])): inner}
        elif name in ("classes", "spaces") and draw(st.integers(0, 3)):
            inner = draw(st.lists(WORDS | JSON_VALUES, max_size=4))
        changed[name] = inner
    return changed


def test_a_data_set_whose_header_says_anything_is_refused_or_can_be_used(
    tmp_path: Path, tally: NewTally, scale: Scale, inside: Run
) -> None:
    t = tally(PROMISE, "data set headers that say anything, digest right")
    cache = tmp_path / "cache"
    samples = in_splits(train=3, val=2, test=2)
    stored_set(cache, samples)
    path = cache / "datasets" / "set.h5"
    read = 0

    def check(changes: dict[str, Any]) -> None:
        nonlocal read
        header = copy.deepcopy(datasets._header(whole))
        for name, value in changes.items():
            both = isinstance(header[name], dict) and isinstance(value, dict) and name != "reasons"
            header[name] = {**header[name], **value} if both else value
        path.write_bytes(datasets._pack(header, datasets._columns(whole)))
        if refused(lambda: load_dataset(cache, "set")) is not None:
            return
        read += 1
        found = load_dataset(cache, "set")
        refused(found.describe)
        refused(lambda: choose_space(found, SpaceQuery()))
        refused(lambda: require_spaces(found, [small_space()], "random:0"))
        refused(lambda: open_features("set", "all", cache=cache))
        if read <= limit:
            for command in (
                ["cache", "info", "set"],
                ["extract", "photos", "--name", "set", "--dry-run", *TINY_FLAGS],
                ["train-head", "set", "--epochs", "1", "--out", "new", "--overwrite"],
            ):
                done = inside(*command)
                assert_tidy(done.returncode, done.stderr)

    whole = load_dataset(cache, "set")
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "photos" / name).write_bytes(b"")
    # One file of the data set is there again, unchanged: what the last run saw of it is used.
    status = os.stat(tmp_path / "photos" / "a.png")
    root = str((tmp_path / "photos").resolve())
    whole.source = dataclasses.replace(whole.source, spec="photos", root=root)
    whole.paths[0], whole.status[0] = "a.png", Status.QUARANTINED
    whole.stat[0] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    whole.reasons = {0: Reason("open", "no picture")}
    whole.info.decoder = "another"
    limit = scale(3, 40)
    try_all(t, headers(), check, cases=scale(30, 1500))
    assert read, "not one was read: the refusals say nothing"
