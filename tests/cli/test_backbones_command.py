"""What ``featpipe backbones`` lists."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from support.command import Run

from featpipe.backbones.tap_table import TapRow, TapTable
from featpipe.cli.commands.backbones import backbones
from featpipe.cli.formatting_backbones import of_taps

Lines = Callable[..., list[str]]


@pytest.fixture
def listed(capsys: pytest.CaptureFixture[str]) -> Lines:
    """What the command prints, in this process: torch is loaded once for all tests."""

    def lines(name: str | None = None, **options: Any) -> list[str]:
        backbones(name, **{"size": None, "every": False, "parameters": False, **options})
        return capsys.readouterr().out.splitlines()

    return lines


def document(lines: list[str]) -> dict[str, Any]:
    (line,) = lines
    found: dict[str, Any] = json.loads(line)
    return found


def test_the_families_are_listed_on_80_columns(listed: Lines) -> None:
    lines = listed()
    assert lines[lines.index("other networks of torchvision") + 1].startswith("  alexnet  convnext")
    assert max(map(len, lines)) <= 80
    found = document(listed(as_json=True))
    assert {"vgg16", "pixels", "resnet50"} < set(found["backbones"])
    assert found["families"][0] == {"title": "VGG", "names": ["vgg11", "vgg13", "vgg16", "vgg19"]}
    assert found["backbones"] == [name for family in found["families"] for name in family["names"]]


def test_a_tap_is_listed_with_what_it_gives_costs_and_sees(listed: Lines) -> None:
    header, *rows = listed("vgg16", size=180)
    assert header.split() == "tap node shape parameters GFLOP field stride pad".split()
    row = "block5_pool features.30 512x5x5 14,714,688 19.478 212 32 90"
    assert row.split() in [line.split() for line in rows]
    taps = document(listed("vgg16", as_json=True))["taps"]
    assert {tap["name"]: tap for tap in taps}["block5_pool"] == {
        "name": "block5_pool",
        "node": "features.30",
        "shape": [512, 7, 7],
        "parameters": 14_714_688,
        "gflops": pytest.approx(30.693, abs=1e-3),
        "receptive_field": 212,
        "stride": 32,
        "padding": 90,
        "cut": True,
    }


def test_a_long_list_ends_at_parts_and_all_gives_every_tap(listed: Lines) -> None:
    few, every = (listed("resnet18", every=flag) for flag in (False, True))
    names = [[line.split(" ")[0] for line in lines] for lines in (few, every)]
    assert "layer4" in names[0]
    assert "layer4.1.conv1" not in names[0]
    assert "layer4.1.conv1" in names[1]
    assert max(map(len, few + every)) <= 80
    taps = len(document(listed("resnet18", as_json=True))["taps"])
    assert taps == names[1].index("") - 1
    assert f"{names[0].index('') - 1} of {taps} taps; --all lists every one" in few


@pytest.mark.parametrize(("size", "word"), [(180, "too small"), (300, "too large")])
def test_a_size_that_the_network_does_not_take_is_said_in_the_row(
    size: int, word: str, listed: Lines
) -> None:
    lines = listed("vit_b_32", size=size)
    rows = {line.split()[0]: line for line in lines if line}
    assert word in rows["heads"]
    assert word not in rows["conv_proj"]
    assert lines[-1] == f"not at {size} px: Wrong image height! Expected 224 but got {size}!"


def test_too_small_a_picture_leaves_what_does_not_depend_on_it(listed: Lines) -> None:
    taps = document(listed("vgg16", size=31, as_json=True))["taps"]
    last = next(tap for tap in taps if tap["name"] == "block5_pool")
    assert (last["shape"], last["gflops"]) == (None, None)
    assert (last["receptive_field"], last["stride"], last["parameters"]) == (212, 32, 14_714_688)


def test_without_convolutions_one_line_says_that_fields_are_not_known(listed: Lines) -> None:
    lines = listed("pixels", size=28)
    assert lines[1].split() == "input input 3x28x28 - - ? - -".split()
    assert lines[-1] == "receptive fields are not known: pixels has no convolutions"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("pixels", "expected --size for pixels, which takes any size, found none"),
        ("--all", "expected the NAME of a backbone with --all, found none"),
        ("--parameters", "expected the NAME of a backbone with --parameters, found none"),
        ("--size 8", "expected the NAME of a backbone with --size, found none"),
    ],
)
def test_what_does_not_fit_exits_2(args: str, message: str, inside: Run) -> None:
    done = inside("backbones", *args.split())
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"Error: {message}\n")


def test_the_tensors_are_listed_by_name_shape_and_dtype(listed: Lines) -> None:
    lines = listed("vgg16", parameters=True)
    assert lines[1].split() == ["features.0.weight", "64x3x3x3", "float32"]
    rows = document(listed("swin_t", parameters=True, as_json=True))["parameters"]
    assert {row["dtype"] for row in rows} == {"float32", "int64"}
    assert rows[0] == {"name": "features.0.0.weight", "shape": [96, 3, 4, 4], "dtype": "float32"}


@pytest.mark.parametrize(("length", "lines"), [(5, 1), (28, 1), (29, 2), (90, 2)])
def test_a_name_without_room_has_a_line_of_its_own(length: int, lines: int) -> None:
    rows = [
        TapRow(name, "node" * 9, (512, 14, 14), 14_714_688, 30.693, 1027, 32, 1023)
        for name in ("short", "x" * length)
    ]
    text = of_taps(TapTable("net", 224, rows, []), usual_size=224, every=True).splitlines()
    named = list(itertools.takewhile(lambda line: line, text))
    assert len(named) == 2 + lines
    assert all(len(line) <= 80 for line in named if line != "x" * length)
