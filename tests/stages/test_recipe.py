"""Recipes: what is wrong in one is said before anything runs; a right one runs from end to end."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.command import Run, json_of
from support.heads import known
from support.recipes import GOOD, changed, refusal, toml, toml_value, write

from featpipe.base.errors import NotFoundError, StorageError, UsageError
from featpipe.engine.plan import plan_features
from featpipe.specs.evaluate import EvaluateSpec
from featpipe.specs.extract import ExtractSpec
from featpipe.specs.heads import HeadSpec
from featpipe.specs.recipe import Recipe, load_recipe
from featpipe.stages.recipe import run_recipe

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


SHIPPED = [pytest.param(path, id=path.name) for path in sorted(PIPELINES.glob("*.toml"))]
NAMES = "batch_size cats_dogs fine_tune mnist quickstart scratch_vs_cached taps".split()


@pytest.mark.parametrize("path", SHIPPED)
def test_a_shipped_recipe_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.heads
    for extract in recipe.extracts:
        plan_features(extract, Path("cache"))


def test_there_are_shipped_recipes() -> None:
    assert {path.stem for path in PIPELINES.glob("*.toml")} == set(NAMES)


def test_a_recipe_is_read_as_written(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, changed(evaluate={"split": "val"})))
    dataset = GOOD["dataset"]
    assert recipe.data == os.path.normpath(tmp_path / dataset["data"])
    named = {name: value for name, value in dataset.items() if name != "data"}
    assert recipe.extracts == (ExtractSpec.from_options({**named, **GOOD["extract"]}),)
    assert recipe.heads == (
        HeadSpec(head="linear", device="cpu", params={"epochs": 20}),
        HeadSpec(head="logistic", seed=3, params={"C": 0.01}),
    )
    assert recipe.evaluate == EvaluateSpec(split="val")


def test_a_recipe_needs_no_extract_table(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, changed(extract=None)))
    named = {name: value for name, value in GOOD["dataset"].items() if name != "data"}
    assert recipe.extracts == (ExtractSpec.from_options(named),)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ("photos", "{folder}/photos"),
        ("../photos", "{folder}/../photos"),
        ("/absolute/photos", "/absolute/photos"),
        ("sklearn:digits", "sklearn:digits"),
    ],
)
def test_relative_data_counts_from_the_folder_of_the_recipe(
    tmp_path: Path, data: str, found: str
) -> None:
    recipe = load_recipe(write(tmp_path, changed(dataset={"name": "x", "data": data})))
    assert os.path.normpath(recipe.data) == os.path.normpath(found.format(folder=tmp_path))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            {"datset": {}},
            "expected a known section, found 'datset'; did you mean 'dataset'?",
        ),
        (
            changed(heads=[]),
            "expected a known section, found 'heads'; did you mean 'head'?",
        ),
        (
            changed(dataset={"nam": "x"}),
            "expected a known key of [dataset], found 'nam'; did you mean 'name'?",
        ),
        (
            changed(dataset={"name": "x", "data": "y", "max-bad": 0.1}),
            "expected a known key of [dataset], found 'max-bad'; did you mean 'max_bad'?",
        ),
        (
            changed(extract={"taps": ["block1_pool"]}),
            "expected a known key of [extract], found 'taps'; did you mean 'tap'?",
        ),
        (
            changed(head=[{"kind": "mlp", "hiden": 3}]),
            f"expected hyper-parameters of 'mlp' ({known('mlp')}), found 'hiden'; did you mean "
            "'hidden'?",
        ),
        (
            # hidden is an option of another kind of head.
            changed(head=[{"kind": "logistic", "max-iter": 3}]),
            f"expected hyper-parameters of 'logistic' ({known('logistic')}), found 'max-iter'; did "
            "you mean 'max_iter'?",
        ),
        (
            changed(evaluate={"splt": "test"}),
            "expected a known key of [evaluate], found 'splt'; did you mean 'split'?",
        ),
    ],
)
def test_an_unknown_key_is_refused_at_every_level_and_the_nearest_named(
    tmp_path: Path, document: dict[str, Any], message: str
) -> None:
    assert refusal(tmp_path, document) == message


def test_the_parameter_of_another_kind_of_head_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, changed(head=[{"kind": "logistic", "hidden": 3}]))
    assert said == (
        f"expected hyper-parameters of 'logistic' ({known('logistic')}), found 'hidden'; it is for "
        "'mlp'"
    )


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (changed(dataset="x"), "expected a table [dataset], found 'x'"),
        (changed(dataset=[{"name": "x"}]), "expected a table [dataset], found [{'name': 'x'}]"),
        (changed(extract=3), "expected a table [extract], found 3"),
        (changed(evaluate=True), "expected a table [evaluate], found True"),
        (
            changed(dataset={"name": 5, "data": "y"}),
            "expected a text for 'name' in [dataset], found 5",
        ),
        (
            changed(dataset={"name": "x", "data": ["y"]}),
            "expected a text for 'data' in [dataset], found ['y']",
        ),
        (
            changed(dataset={"name": "x", "data": "y", "max_bad": "10%"}),
            "expected a number for 'max_bad' in [dataset], found '10%'",
        ),
        (
            changed(dataset={"name": "x", "data": "y", "split": "0.7,0.15,0.15"}),
            "expected a list of numbers for 'split' in [dataset], found '0.7,0.15,0.15'",
        ),
        (
            changed(dataset={"name": "x", "data": "y", "split": [0.5, "0.5"]}),
            "expected a list of numbers for 'split' in [dataset], found [0.5, '0.5']",
        ),
        (
            changed(extract={"size": "big"}),
            "expected a whole number for 'size' in [extract], found 'big'",
        ),
        (
            changed(extract={"batch_size": 0}),
            "expected 'batch_size' in [extract] of at least 1, found 0",
        ),
        (
            changed(head=[{"kind": "linear", "seed": 1.5}]),
            "expected a whole number for 'seed' in [[head]], found 1.5",
        ),
        (
            changed(head=[{"kind": "linear", "seed": True}]),
            "expected a whole number for 'seed' in [[head]], found True",
        ),
        (
            changed(head=[{"kind": "linear", "epochs": "many"}]),
            "expected a whole number for 'epochs' in [[head]], found 'many'",
        ),
        (
            changed(head=[{"kind": "linear", "epochs": True}]),
            "expected a whole number for 'epochs' in [[head]], found True",
        ),
        (
            changed(head=[{"kind": "linear", "epochs": 0}]),
            "expected 'epochs' in [[head]] of at least 1, found 0",
        ),
        (
            changed(head=[{"kind": "mlp", "dropout": 1.0}]),
            "expected 'dropout' in [[head]] of 0 to below 1, found 1.0",
        ),
        (changed(evaluate={"split": 1}), "expected a text for 'split' in [evaluate], found 1"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(
    tmp_path: Path, document: dict[str, Any], message: str
) -> None:
    # A message may go on with what to do; what it says of the value is exact.
    assert refusal(tmp_path, document).startswith(message)


@pytest.mark.parametrize("kind", ["linaer", 5, ["linear"], None])
def test_an_unknown_kind_of_head_is_refused_and_the_known_named(tmp_path: Path, kind: Any) -> None:
    head = {} if kind is None else {"kind": kind}
    assert refusal(tmp_path, changed(head=[head])).startswith(
        "expected 'kind' in [[head]] to be one of linear, mlp, logistic, knn, lenet, lenet3x3, "
        f"mnist-cnn, simplecnn, suffix or package.module:factory, found {kind!r}"
    )


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"kindd": "mlp"}, "expected a known key of [[head]], found 'kindd'; did you mean 'kind'?"),
        ({"hidden": 3, "Kind": "mlp"}, "found 'Kind'; did you mean 'kind'?"),
        ({"head": "mlp"}, "expected 'kind' in [[head]], found 'head'; call it 'kind'"),
    ],
)
def test_a_misspelt_kind_of_head_is_named_with_the_key_that_is_meant(
    tmp_path: Path, head: dict[str, Any], message: str
) -> None:
    assert refusal(tmp_path, changed(head=[head])).endswith(message)


@pytest.mark.parametrize("head", [None, [], "linear", {"kind": "linear"}, ["linear"]])
def test_a_recipe_without_a_list_of_heads_is_refused(tmp_path: Path, head: Any) -> None:
    assert refusal(tmp_path, changed(head=head)).startswith("expected at least one [[head]] table")


@pytest.mark.parametrize("key", ["name", "data"])
def test_a_data_set_without_name_or_data_is_refused(tmp_path: Path, key: str) -> None:
    dataset = {k: v for k, v in GOOD["dataset"].items() if k != key}
    said = refusal(tmp_path, changed(dataset=dataset))
    assert said.startswith(f"expected '{key}' in [dataset], found none")


def test_an_empty_recipe_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, "").startswith("expected 'name' in [dataset], found none")


def test_what_is_not_toml_is_refused_with_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    assert refusal(tmp_path, "[dataset]\nname =\n") == (
        f"expected TOML in {path}, found: Invalid value (at line 2, column 7)"
    )


def test_what_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    said = refusal(tmp_path, b'[dataset]\nname = "caf\xe9"\n')
    assert said.startswith(f"expected UTF-8 text in {path}, found: ")


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    assert "expected TOML" in refusal(tmp_path, "a = " + "[" * 100_000)


def test_a_number_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path, "size = " + "9" * 5000)


def test_a_number_for_tap_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path, changed(extract={"tap": 5}))


def test_a_hyper_parameter_beyond_all_measure_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path, changed(head=[{"kind": "linear", "epochs": 10**20}]))


@pytest.mark.parametrize("key", ["hidden", "epochs", "batch_size", "patience"])
def test_a_fraction_is_refused_where_only_whole_numbers_make_sense(
    tmp_path: Path, key: str
) -> None:
    refusal(tmp_path, changed(head=[{"kind": "mlp", key: 2.5}]))


@pytest.mark.parametrize(
    "document",
    [
        changed(extract={"tap": "block9_pool"}),
        changed(extract={"pool": "mean"}),
        changed(extract={"size": 0}),
        changed(extract={"backbone": "resnet50"}),
        changed(dataset={"name": "../x", "data": "y"}),
        changed(dataset={"name": "x", "data": "y", "split": [0.5, 0.5]}),
        changed(dataset={"name": "x", "data": "y", "split": [0.9, 0.9, 0.9]}),
        changed(dataset={"name": "x", "data": "y", "max_bad": 10}),
        changed(head=[{"kind": "linear", "seed": -1}]),
        changed(head=[{"kind": "linear", "val": 7.0}]),
        changed(evaluate={"split": "tset"}),
    ],
    ids=lambda d: next(
        toml_value(table)[:40] for name, table in d.items() if table != GOOD.get(name)
    ),
)
def test_a_value_that_cannot_be_meant_is_refused_before_anything_runs(
    tmp_path: Path, document: dict[str, Any]
) -> None:
    refusal(tmp_path, document)


def test_a_missing_recipe_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        load_recipe(tmp_path / "no.toml")
    assert str(caught.value) == (
        f"expected a recipe at {tmp_path}/no.toml, found none; 'featpipe run --list' names "
        "those that come with featpipe"
    )


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"^expected a recipe at "):
        load_recipe(tmp_path)


def test_a_recipe_that_cannot_be_read_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="too long"):
        load_recipe(tmp_path / ("x" * 300))


_WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)
_SCALARS = st.one_of(
    st.booleans(), st.integers(-(2**40), 2**40), st.floats(), _WORDS, st.just("auto")
)
_ANYTHING = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=3),
    max_leaves=6,
)
# A number for tap or pool and fractions have their own tests above.
_EXTRACT_KEYS = ["size", "weights", "backbone", "batch_size", "device", "dtype", "resize"]
_HEAD_KEYS = ["kind", "epochs", "hidden", "dropout", "C", "seed", "val", "tap", "learning_rate"]


def _table(keys: list[str]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(keys) | _WORDS, _ANYTHING, max_size=4)


@st.composite
def _broken_recipes(draw: st.DrawFn) -> dict[str, Any]:
    """The good recipe with something replaced, at any level, by anything."""
    document: dict[str, Any] = {
        name: dict(t) if isinstance(t, dict) else t for name, t in GOOD.items()
    }
    for _ in range(draw(st.integers(1, 3))):
        match draw(st.integers(0, 5)):
            case 0:
                name = draw(st.sampled_from([*GOOD, "evaluate"]) | _WORDS)
                document[name] = draw(_ANYTHING)
            case 1:
                document.pop(draw(st.sampled_from(list(GOOD))), None)
            case 2:
                table = draw(_table(["name", "data", "split", "max_bad", "root"]))
                document["dataset"] = {**GOOD["dataset"], **table}
            case 3:
                document["extract"] = draw(_table(_EXTRACT_KEYS))
            case 4:
                document["head"] = [draw(st.just(GOOD["head"][0]) | _table(_HEAD_KEYS))]
            case 5:
                document["evaluate"] = draw(_table(["on", "split"]))
    return document


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(_broken_recipes())
def test_a_broken_recipe_gives_nothing_but_a_usage_error(
    tmp_path: Path, document: dict[str, Any]
) -> None:
    path = write(tmp_path, document)
    try:
        recipe = load_recipe(path)
    except UsageError as error:
        assert str(error).startswith((f"{path}: expected ", "expected TOML"))
        return
    # What passed is a recipe with all its parts.
    assert isinstance(recipe, Recipe)
    assert isinstance(recipe.data, str)
    assert all(head.head in ("linear", "mlp", "logistic") for head in recipe.heads)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace")))
def test_any_bytes_give_nothing_but_a_usage_error(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content)
    with pytest.raises(UsageError):
        load_recipe(path)


# From here on through the command line.


def test_check_says_valid_and_runs_nothing(featpipe: Run, tmp_path: Path) -> None:
    write(tmp_path, changed(dataset={"name": "x", "data": "sklearn:digits"}))
    done = featpipe("run", "recipe.toml", "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "recipe.toml: valid\n", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.toml"]


def test_check_as_json(featpipe: Run, tmp_path: Path) -> None:
    write(tmp_path, changed(dataset={"name": "x", "data": "sklearn:digits"}))
    done = featpipe("run", "recipe.toml", "--check", "--json")
    assert json_of(done) == {"schema": 1, "recipe": "recipe.toml", "valid": True}


def test_check_exits_2_with_one_line_where_the_recipe_is_wrong(
    featpipe: Run, tmp_path: Path
) -> None:
    write(tmp_path, {"datset": {}})
    done = featpipe("run", "recipe.toml", "--check")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "Error: recipe.toml: expected a known section, found 'datset'; did you mean 'dataset'?\n"
    )


def test_a_recipe_runs_end_to_end_again_and_anew(
    featpipe: Run, inside: Run, tmp_path: Path, photo_folder: Path
) -> None:
    # The recipe's folder is not the current one: its data is found all the same.
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path, GOOD)
    where = {"cwd": tmp_path / "elsewhere"}
    command = ("run", "../recipe.toml", "--out", "out", "--json")

    done = featpipe(*command, **where)
    assert done.returncode == 0, done.stderr
    found = json_of(done)
    assert found["recipe"] == "../recipe.toml"
    assert found["extract"]["computed"] == 40
    assert [head["train"]["kind"] for head in found["heads"]] == ["linear", "logistic"]
    assert [head["train"]["head"] for head in found["heads"]] == ["out/1-linear", "out/2-logistic"]
    assert [head["evaluation"]["split"] for head in found["heads"]] == ["test", "test"]
    # Two classes that differ in colour alone, by design.
    assert all(head["evaluation"]["accuracy"] == 1 for head in found["heads"])
    for name in ("1-linear", "2-logistic"):
        files = {path.name for path in (tmp_path / "elsewhere/out" / name).iterdir()}
        assert {"head.json", "head.safetensors", "metrics.json", "report.html"} <= files

    again = inside(*command, **where)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.splitlines()[-1] == (
        "Error: expected a run folder without a head, found one in out/1-linear; "
        "name another --out, or replace it with --overwrite"
    )

    anew = inside(*command[:-1], "--overwrite", **where)
    assert anew.returncode == 0, anew.stderr
    lines = anew.stdout.splitlines()
    assert lines[0].startswith("colours: 40 pictures: 0 computed, 40 reused")
    table = lines.index("") + 1
    assert re.fullmatch(r"head +val +test +report", lines[table])
    row = r" +100\.00% +100\.00% +out/"
    assert re.fullmatch(rf"linear{row}1-linear/report\.html", lines[table + 1])
    assert re.fullmatch(rf"logistic{row}2-logistic/report\.html", lines[table + 2])
    assert lines[-1] == "comparison: out/compare/comparison.html"


def test_data_on_the_command_line_replaces_the_recipes_and_counts_from_here(
    inside: Run, tmp_path: Path, photo_folder: Path
) -> None:
    (photo_folder / "red" / "broken.png").write_bytes(b"not a picture")
    dataset = {"name": "colours", "data": "nowhere"}
    (tmp_path / "recipes").mkdir()
    write(tmp_path / "recipes", changed(dataset=dataset, head=[{"kind": "logistic", "C": 1}]))
    done = inside("run", "recipes/recipe.toml", "--data", "photos", "--json")
    # Something is quarantined: the document is printed all the same.
    assert done.returncode == 3, done.stderr
    found = json_of(done)
    assert found["extract"]["quarantined"] == 1
    assert found["heads"][0]["train"]["head"] == "runs/colours-logistic-1"


def test_a_recipe_whose_data_is_missing_exits_10(featpipe: Run, tmp_path: Path) -> None:
    write(tmp_path, changed(dataset={"name": "x", "data": "nowhere"}))
    done = featpipe("run", "recipe.toml")
    assert (done.returncode, done.stdout) == (10, "")
    assert done.stderr == (
        "Error: expected the pictures of recipe recipe.toml in nowhere, found nothing there; name "
        "yours with --data\n"
    )


@pytest.mark.slow
def test_the_quickstart_runs_end_to_end(featpipe: Run, tmp_path: Path, shared: Path) -> None:
    weights = tmp_path / "cache" / "weights" / "vgg16-IMAGENET1K_V1.safetensors"
    weights.parent.mkdir(parents=True)
    weights.symlink_to(next((shared / "weights").glob("vgg16*v1*.safetensors")))
    done = featpipe("run", PIPELINES / "quickstart.toml", "--json", timeout=1200)
    assert done.returncode == 0, done.stderr
    found = json_of(done)
    assert found["extract"]["images"] == 1797
    assert [head["train"]["kind"] for head in found["heads"]] == ["linear", "mlp", "logistic"]
    for head in found["heads"]:
        assert head["evaluation"]["accuracy"] > 0.95
        assert (tmp_path / head["evaluation"]["report"]).is_file()


def test_heads_train_on_the_recipes_own_features_whatever_else_there_is(
    featpipe: Run, own_workspace: Path
) -> None:
    more = "--weights random:0 --tap block1_pool --resize squash --precision fp32 --device cpu"
    for other in ("--size 32", "--size 16 --pool avg", "--size 16 --dtype float32"):
        command = ["extract", "photos", "--name", "colours", *more.split(), *other.split()]
        assert featpipe(*command, cwd=own_workspace).returncode == 0
    path = own_workspace / "recipe.toml"
    path.write_text(toml(GOOD))
    done = featpipe("run", path, "--data", "photos", "--json", cwd=own_workspace)
    assert done.returncode == 0, done.stderr
    document = json_of(done)
    (space,) = document["extract"]["spaces"]
    assert {head["train"]["space"] for head in document["heads"]} == {space["id"]}


def test_a_head_may_name_its_space_by_the_beginning_of_the_id(own_workspace: Path) -> None:
    cache = own_workspace / "cache"
    extract = {**GOOD["extract"], "pool": ["avg", "max"]}
    spaces = plan_features(ExtractSpec(name="x", **{**extract, "tap": ("block1_pool",)}), cache)
    avg = next(space for space in spaces.spaces if space.pooling == "avg")
    # Another extraction's features of the same pictures, not the recipe's.
    (other,) = (path.name[-12:] for path in (cache / "spaces").iterdir())
    heads = [{**GOOD["head"][0], "space": name} for name in (avg.id[:6], avg.name, other)]
    path = write(own_workspace, changed(extract=extract, head=heads))
    done = run_recipe(load_recipe(path), cache=cache, out=own_workspace / "runs")
    assert [train.space[:12] for train, _ in done.heads] == [avg.id[:12], avg.id[:12], other]


def test_a_space_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    head = [{**GOOD["head"][0], "space": "12"}]
    assert refusal(tmp_path, changed(head=head)).startswith(
        "expected the beginning of a feature space's id (at least 4 of its hexadecimal digits) or "
        "the name of its folder for 'space' in [[head]], found '12'"
    )
