"""Code of the user's own is imported where it is permitted, and nowhere else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from featpipe.base.errors import UsageError
from featpipe.base.own_code import is_own_code, load_factory, permitted


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_network.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nnumber = 1\ndef build():\n    return 42\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_network", raising=False)
    return "own_network"


def test_names_of_own_code() -> None:
    assert is_own_code("a:b") and is_own_code("a.b_1.c:d")
    for name in ("vgg16", "timm/resnet50", "a:", ":b", "a:b:c", "a b:c", "a..b:c", "a:b()", "é:b"):
        assert not is_own_code(name)


def test_a_name_that_was_not_permitted_is_not_imported(module: str, tmp_path: Path) -> None:
    for around in ([], ["os:system"], [f"{module}:other"], [None, "vgg16"]):
        with permitted(around), pytest.raises(UsageError, match="--allow-code own_network:build"):
            load_factory(f"{module}:build", what="backbone")
    assert not (tmp_path / "ran").exists()


def test_a_permission_ends_with_its_block(module: str) -> None:
    with permitted([f"{module}:build"]):
        assert load_factory(f"{module}:build", what="head")() == 42
    with pytest.raises(UsageError, match="code to be run"):
        load_factory(f"{module}:build", what="head")


def test_what_is_no_function_is_refused_in_one_line(module: str) -> None:
    for name, words in (
        (f"{module}:missing", "found none"),
        (f"{module}:number", "found int"),
        ("no_such_module_here:build", "ModuleNotFoundError"),
    ):
        with permitted([name]), pytest.raises(UsageError, match=words) as error:
            load_factory(name, what="backbone")
        assert "\n" not in str(error.value)
