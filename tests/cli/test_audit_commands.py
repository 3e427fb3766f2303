"""``audit`` and ``relabel`` on the command line: what they print, exit codes, exact messages."""

from __future__ import annotations

from pathlib import Path

from support.command import Run, json_of


def test_audit_prints_what_it_found_and_where_it_is(inside: Run, own_workspace: Path) -> None:
    done = inside("audit", "colours", cwd=own_workspace)
    assert done.returncode == 0
    assert done.stdout.startswith("colours: 40 pictures in ")
    assert "  report: audits/colours-1/audit.html\n" in done.stdout
    assert done.stdout.endswith("featpipe relabel colours audits/colours-1/fixes.csv\n")
    again = json_of(inside("audit", "colours", "--json", cwd=own_workspace))
    assert again["fixes"] == "audits/colours-2/fixes.csv"


def test_the_fixes_of_an_audit_are_to_be_edited_first(inside: Run, own_workspace: Path) -> None:
    inside("audit", "colours", "--out", "found", cwd=own_workspace)
    done = inside("relabel", "colours", "found/fixes.csv", cwd=own_workspace)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: expected a fix in found/fixes.csv (another label, or 'relabel' or 'remove' as the "
        "action), found none; edit it first\n"
    )


def test_an_audit_that_was_cut_short_is_made_again(inside: Run, own_workspace: Path) -> None:
    inside("audit", "colours", "--out", "found", cwd=own_workspace)
    (own_workspace / "found" / "audit.json").unlink()
    assert inside("audit", "colours", "--out", "found", cwd=own_workspace).returncode == 0


def test_an_audit_of_nothing_exits_10(inside: Run, own_workspace: Path) -> None:
    done = inside("audit", "colors", cwd=own_workspace)
    assert (done.returncode, done.stdout) == (10, "")
    assert done.stderr == (
        "Error: expected a data set 'colors' in cache, found: colours; make it with 'featpipe "
        "extract DATA --name colors', or name another --cache\n"
    )


def test_an_audit_over_another_exits_2(inside: Run, own_workspace: Path) -> None:
    inside("audit", "colours", "--out", "found", cwd=own_workspace)
    done = inside("audit", "colours", "--out", "found", cwd=own_workspace)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "Error: expected a folder without an audit, found one in found, whose fixes may have been "
        "edited; name another --out, or replace it with --overwrite\n"
    )


def test_a_wrong_fix_exits_1_and_names_line_and_path(inside: Run, own_workspace: Path) -> None:
    (own_workspace / "fixes.csv").write_text("path,label\nred/00.png,blue\nred/xx.png,blue\n")
    done = inside("relabel", "colours", "fixes.csv", cwd=own_workspace)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: expected paths as data set 'colours' has them, such as 'blue/00.png', found "
        "'red/xx.png' (fixes.csv, line 3); correct it or remove the row\n"
    )


def test_missing_fixes_exit_10(inside: Run, own_workspace: Path) -> None:
    done = inside("relabel", "colours", "none.csv", cwd=own_workspace)
    assert (done.returncode, done.stdout) == (10, "")
    assert done.stderr == (
        "Error: expected a CSV of path,label in none.csv, found none; 'featpipe audit colours' "
        "writes one to edit\n"
    )


def test_a_relabelling_over_another_exits_2(inside: Run, own_workspace: Path) -> None:
    (own_workspace / "fixes.csv").write_text("path,label\nred/00.png,blue\n")
    inside("relabel", "colours", "fixes.csv", "--name", "mended", cwd=own_workspace)
    done = inside("relabel", "colours", "fixes.csv", "--name", "mended", cwd=own_workspace)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "Error: expected a new name, found cache/datasets/mended.h5; name another one with "
        "--name, or replace it with --overwrite\n"
    )


def test_a_new_class_is_named(inside: Run, own_workspace: Path) -> None:
    (own_workspace / "fixes.csv").write_text("path,label\nred/00.png,rad\n")
    done = inside("relabel", "colours", "fixes.csv", cwd=own_workspace)
    assert "  new classes: rad\n" in done.stdout
