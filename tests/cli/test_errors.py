"""Errors of the command line: one exact line on stderr, nothing on stdout, one exit code."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.command import TINY_FLAGS, Run, files_in, json_of
from support.heads import known_flags
from support.samples import class_picture

EXTRACT = ["extract", "photos", "--name", "colours"]
TINY = " ".join(TINY_FLAGS)


# Exit code 10: nothing of that name.


def test_missing_data_exits_10(featpipe: Run, tmp_path: Path) -> None:
    done = featpipe("extract", "nowhere", "--name", "x", *TINY_FLAGS)
    assert (done.returncode, done.stdout) == (10, "")
    assert done.stderr == (
        "Error: expected an image folder, a list (.csv, .tsv, .jsonl) or 'sklearn:digits', "
        "found nothing at nowhere; check the path\n"
    )
    assert list(tmp_path.iterdir()) == [], "an error made something"


def test_a_missing_data_set_exits_10_and_names_those_that_are_there(
    featpipe: Run, workspace: Path
) -> None:
    done = featpipe("train-head", "colors", cwd=workspace)
    assert (done.returncode, done.stdout) == (10, "")
    assert done.stderr == (
        "Error: expected a data set 'colors' in cache, found: colours; make it with 'featpipe "
        "extract DATA --name colors', or name another --cache\n"
    )


@pytest.mark.parametrize("command", [["evaluate", "nowhere"], ["predict", "nowhere", "photos"]])
def test_a_missing_head_exits_10(featpipe: Run, workspace: Path, command: list[str]) -> None:
    done = featpipe(*command, cwd=workspace)
    assert (done.returncode, done.stdout) == (10, "")
    assert done.stderr == (
        "Error: expected a head (head.json and head.safetensors) in nowhere, found none; train "
        "one with 'featpipe train-head NAME', it prints its folder\n"
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            "cache list --cache nowhere",
            "expected a cache in nowhere, found none; 'featpipe extract' makes one, or name "
            "another with --cache",
        ),
        (
            "cache verify --cache nowhere",
            "expected a cache in nowhere, found none; 'featpipe extract' makes one, or name "
            "another with --cache",
        ),
        (
            "cache info other",
            "expected a data set 'other' in cache, found: colours; make it with 'featpipe "
            "extract DATA --name other', or name another --cache",
        ),
        (
            "train-head colours --cache nowhere",
            "expected a data set 'colours' in nowhere, found: none; make it with 'featpipe "
            "extract DATA --name colours', or name another --cache",
        ),
        (
            "train-head colours --tap block5_pool",
            "expected features of data set 'colours' with tap block5_pool, found: "
            "block1_pool/none (vgg16 16px squash fp32); extract them, or choose one of those",
        ),
        (
            "evaluate run --split holdout",
            "expected a split 'holdout' in data set 'colours', found: train, val, test; name one "
            "of those, or 'all'",
        ),
        (
            "evaluate run --on other",
            "expected a data set 'other' in cache, found: colours; make it with 'featpipe "
            "extract DATA --name other', or name another --cache",
        ),
        (
            "run nowhere.toml",
            "expected a recipe at nowhere.toml, found none; 'featpipe run --list' names those "
            "that come with featpipe",
        ),
    ],
)
def test_what_is_not_there_exits_10(args: str, message: str, workspace: Path, inside: Run) -> None:
    done = inside(*args.split(), cwd=workspace)
    assert (done.returncode, done.stdout, done.stderr) == (10, "", f"Error: {message}\n")


# Exit code 2: a value that cannot be meant.


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--pool mean", "expected --pool to be one of none, avg, max, cls, found 'mean'"),
        (
            "--tap block5_pol",
            "expected a tap of vgg16, found 'block5_pol'; did you mean 'block5_pool'? 'featpipe "
            "backbones vgg16' lists them",
        ),
        ("--size 0", "expected --size of 1 to 4096 pixels, found 0"),
        ("--size 9999", "expected --size of 1 to 4096 pixels, found 9999"),
        ("--size 31", "expected --size of at least 32 for block5_pool, found 31"),
        ("--resize fit", "expected --resize to be one of crop, squash, found 'fit'"),
        (
            "--precision fp8",
            "expected --precision to be one of auto, fp32, bf16, fp16, found 'fp8'",
        ),
        ("--dtype int8", "expected --dtype to be one of float16, float32, found 'int8'"),
        (
            "--backbone resnet5",
            "expected a backbone, found 'resnet5'; did you mean 'resnet50'? 'featpipe backbones' "
            "lists them",
        ),
        (
            "--backbone resnet50",
            "expected --tap for --backbone resnet50, found none; 'featpipe backbones resnet50' "
            "lists its taps",
        ),
        (
            "--backbone pixels",
            "expected --size for --backbone pixels, found none; name the side in pixels, such as "
            "28 for MNIST or 128 for photographs",
        ),
        (
            "--backbone vit_b_16 --tap encoder --pool avg --size 180",
            "expected a --size that encoder of vit_b_16 can be computed for, such as 224, found "
            "180: ",
        ),
        (
            "--channels grey",
            "expected --channels rgb for vgg16, which takes colour pictures, found 'grey'; grey is "
            "for --backbone pixels",
        ),
        (
            "--weights imagenet",
            "expected --weights IMAGENET1K_V1, IMAGENET1K_FEATURES, random:SEED (up to 9 digits) "
            "or a file ending in .safetensors, .pth, .pt, .h5, .hdf5, found 'imagenet'",
        ),
        (
            "--device tpu",
            "expected a device this machine has, found 'tpu'; use --device auto or cpu",
        ),
        ("--batch-size 0", "expected --batch-size of at least 1, found 0"),
        (
            "--batch-size ten",
            "expected a whole number or 'auto' for --batch-size, found 'ten'",
        ),
        ("--workers 0", "expected --workers of 1 to 1024 processes, found 0"),
        ("--max-pixels 0", "expected --max-pixels of at least 1, found 0"),
        (
            f"{TINY} --split 0.5,0.5",
            "expected three shares (train,val,test), found 2",
        ),
        (f"{TINY} --split a,b,c", "expected --split like 0.7,0.15,0.15, found 'a,b,c'"),
        (f"{TINY} --max-bad 101%", "expected --max-bad of 0% to 100%, found '101%'"),
        (f"{TINY} --max-bad few", "expected --max-bad of 0% to 100%, found 'few'"),
        (f"{TINY} --max-bad nan", "expected --max-bad of 0% to 100%, found 'nan'"),
        (f"{TINY} --root photos", "expected --root only with a list, found a folder as DATA"),
        (
            f"{TINY} --name ../x",
            "expected a data set name of letters, digits, '.', '_' and '-' (at most 100, "
            "beginning with a letter or digit), found '../x'",
        ),
    ],
)
def test_extract_refuses_a_bad_value_with_2(
    flags: str, message: str, workspace: Path, inside: Run
) -> None:
    done = inside(*[*EXTRACT, *flags.split()], cwd=workspace)
    assert (done.returncode, done.stdout) == (2, "")
    # A message may go on with what to do; what it says of the value is exact.
    assert done.stderr.startswith(f"Error: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--head svm", "expected --head to be one of linear, mlp, logistic, knn, lenet, "),
        ("--seed -1", "expected --seed of 0 to 4294967295, found -1"),
        (
            "--hidden 3",
            f"expected hyper-parameters of 'linear' ({known_flags('linear')}), found --hidden; "
            "leave --hidden out, or use --head mlp",
        ),
        (
            "--head sufix",
            "expected --head to be one of linear, mlp, logistic, knn, lenet, lenet3x3, mnist-cnn, "
            "simplecnn, suffix or package.module:factory, found 'sufix'; did you mean 'suffix'?",
        ),
        (
            "--augment lihgt",
            "expected --augment to be one of flip, light, standard, found 'lihgt'; did you mean "
            "'light'?",
        ),
        ("--epochs 0", "expected --epochs of at least 1, found 0"),
        ("--learning-rate nan", "expected --learning-rate above 0, found nan"),
        ("--learning-rate inf", "expected --learning-rate above 0, found inf"),
        ("--head mlp --dropout 1", "expected --dropout of 0 to below 1, found 1.0"),
        ("--head logistic --C -1", "expected --C above 0, found -1.0"),
        (
            "--out run",
            "expected a run folder without a head, found one in run; name another --out, or "
            "replace it with --overwrite",
        ),
        (
            "--device tpu",
            "expected a device this machine has, found 'tpu'; use --device auto or cpu",
        ),
    ],
)
def test_train_head_refuses_a_bad_value_with_2(
    flags: str, message: str, workspace: Path, inside: Run
) -> None:
    done = inside(*["train-head", "colours", *flags.split()], cwd=workspace)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            f"extract sklearn:iris --name x {TINY}",
            "expected 'sklearn:digits', a folder or a list, found 'sklearn:iris'",
        ),
        (
            f"extract photos/red/00.png --name x {TINY}",
            "expected an image folder or a list ending in .csv, .tsv, .jsonl, found "
            "photos/red/00.png",
        ),
        (
            "backbones resnet5",
            "expected a backbone, found 'resnet5'; did you mean 'resnet50'? 'featpipe backbones' "
            "lists them",
        ),
        (
            "weights fetch imagenet",
            "expected weights IMAGENET1K_V1, IMAGENET1K_FEATURES of vgg16, found 'imagenet'",
        ),
        (
            "weights fetch --backbone resnet5",
            "expected a backbone, found 'resnet5'; did you mean 'resnet50'? 'featpipe backbones' "
            "lists them",
        ),
        (
            "predict run photos --workers 0",
            "expected --workers of 1 to 1024 processes, found 0",
        ),
    ],
)
def test_other_commands_refuse_a_bad_value_with_2(
    args: str, message: str, workspace: Path, inside: Run
) -> None:
    done = inside(*args.split(), cwd=workspace)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("extract", "Missing argument"),
        ("extract photos", "Missing option '--name'"),
        ("extract photos --name x --size big", "Invalid value for '--size'"),
        ("extract photos --name x --tapp y", "No such option: --tapp"),
        ("exract photos", "No such command 'exract'"),
        ("predict run", "Missing argument"),
        ("cache info", "Missing argument"),
        ("train-head colours --epochs 1.5", "Invalid value for '--epochs'"),
        ("--cache x extract", "No such option: --cache"),
    ],
)
def test_a_command_line_that_cannot_be_parsed_exits_2(
    args: str, message: str, workspace: Path, inside: Run
) -> None:
    done = inside(*args.split(), cwd=workspace)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: ")
    assert f"\nError: {message}" in done.stderr


def test_no_command_at_all_shows_the_help_and_exits_2(featpipe: Run) -> None:
    done = featpipe()
    assert done.returncode == 2
    assert "Example: featpipe run" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "shares",
    [
        "0.5,0.5,0.5",
        "-0.5,1,0.5",
        "nan,0.5,0.5",
    ],
)
def test_impossible_shares_are_refused_before_anything_is_computed(
    shares: str, workspace: Path, tmp_path: Path, inside: Run
) -> None:
    command = ["extract", workspace / "photos", "--name", "x", *TINY_FLAGS, f"--split={shares}"]
    done = inside(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("Error: expected ")
    assert not (tmp_path / "cache").exists(), "it was found only after all the work"


@pytest.mark.parametrize("share", ["2", "nan", "0"])
def test_an_impossible_val_is_refused_whatever_the_data_set(
    share: str, own_workspace: Path, inside: Run
) -> None:
    done = inside("train-head", "colours", "--head", "logistic", "--C", "1", "--val", share)
    assert done.returncode == 2


@pytest.mark.parametrize("size", ["0", "-5"])
def test_backbones_refuses_a_size_that_no_picture_has(
    size: str, workspace: Path, inside: Run
) -> None:
    assert inside(*["backbones", "vgg16", f"--size={size}"], cwd=workspace).returncode == 2


@pytest.mark.parametrize("value", ["-1", "nan"])
def test_an_impossible_weight_decay_is_refused(value: str, workspace: Path, inside: Run) -> None:
    flags = ["--weight-decay", value]
    assert inside(*["train-head", "colours", *flags], cwd=workspace).returncode == 2


def test_epochs_beyond_all_measure_are_refused(workspace: Path, inside: Run) -> None:
    flags = ["--epochs", "100000000000000000000"]
    assert inside(*["train-head", "colours", *flags], cwd=workspace).returncode == 2


# Exit code 1: data that cannot be worked with.


def extracted(folder: str, inside: Run, *flags: str) -> dict[str, Any]:
    return json_of(inside("extract", folder, "--name", "x", "--json", *TINY_FLAGS, *flags))


def test_an_empty_folder_exits_1_and_shows_the_layouts(inside: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    done = inside("extract", "empty", "--name", "x", *TINY_FLAGS)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: expected pictures in empty, found none (1 other files); expected layouts: "
        "class/picture, train/class/picture, or pictures alone\n"
    )


def test_pictures_without_labels_are_extracted_but_train_no_head(
    inside: Run, own_workspace: Path
) -> None:
    found = extracted("photos/red", inside)
    assert (found["images"], found["classes"], found["splits"]) == (20, [], {})
    done = inside("train-head", "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: expected labelled pictures in data set 'x', found none; put them into one folder "
        "per class, or give a list with a 'label' column\n"
    )


def test_one_class_trains_no_head(inside: Run, own_workspace: Path) -> None:
    shutil.rmtree(own_workspace / "photos" / "blue")
    assert extracted("photos", inside)["classes"] == ["red"]
    done = inside("train-head", "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: expected at least two classes in the train split of 'x', found 'red'; a "
        "classifier needs something to tell apart\n"
    )


def test_no_pictures_to_validate_with_train_no_head(inside: Run, own_workspace: Path) -> None:
    for path in [*own_workspace.glob("photos/*/*.png")]:
        if path.name != "00.png":
            path.unlink()
    assert extracted("photos", inside)["images"] == 2
    done = inside("train-head", "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: expected ")
    assert done.stderr.count("\n") == 1


def test_a_class_the_head_does_not_know_exits_1(inside: Run, own_workspace: Path) -> None:
    (own_workspace / "photos" / "blue").rename(own_workspace / "photos" / "green")
    extracted("photos", inside)
    done = inside("evaluate", "run", "--on", "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: expected only classes the head knows ('blue', 'red') in split 'test' of 'x', found "
        "'green'; train on pictures of every class\n"
    )


# Exit code 3: done, but pictures were quarantined.


def test_quarantined_pictures_exit_3_and_are_named(featpipe: Run, own_workspace: Path) -> None:
    (own_workspace / "photos" / "red" / "bad.png").write_bytes(b"no")
    (own_workspace / "photos" / "blue" / "empty.jpg").write_bytes(b"")
    done = featpipe("extract", "photos", "--name", "x", *TINY_FLAGS)
    assert done.returncode == 3
    assert done.stdout.splitlines()[0] == (
        "x: 42 pictures: 0 computed, 40 reused, 0 duplicates, 2 quarantined"
    )
    bad = [line for line in done.stdout.splitlines() if line.startswith("  quarantined ")]
    assert [line.split(":")[0].split()[1] for line in bad] == ["blue/empty.jpg", "red/bad.png"]
    # The second time too: exit code 3 is about the data set, not about this run.
    assert featpipe("extract", "photos", "--name", "x", *TINY_FLAGS).returncode == 3


# Exit code 12: another feature space.


def test_a_data_set_of_another_feature_space_exits_12_and_says_where_they_differ(
    inside: Run, own_workspace: Path
) -> None:
    done = inside("extract", "photos", "--name", "wide", *TINY_FLAGS, "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    done = inside("evaluate", "run", "--on", "wide")
    assert (done.returncode, done.stdout) == (12, "")
    assert re.fullmatch(
        r"Error: expected features of space vgg16-block1_pool-[0-9a-f]{12} in data set 'wide', "
        r"found others \(dtype[^;]*\); extract them: featpipe extract photos --name wide "
        r"--weights random:0 --tap block1_pool --size 16 --resize squash --precision fp32\n",
        done.stderr,
    )
    assert "float16" in done.stderr
    assert "float32" in done.stderr


def test_other_weights_than_the_heads_exit_12(inside: Run, own_workspace: Path) -> None:
    done = inside("predict", "run", "photos", "--weights", "random:1")
    assert (done.returncode, done.stdout) == (12, "")
    assert re.fullmatch(
        r"Error: expected weights of digest [0-9a-f]{12}… up to block1_pool, found "
        r"[0-9a-f]{12}… in random:1; give the right ones with --weights\n",
        done.stderr,
    )


# Exit code 13: damage.


def flip(path: Path, place: int) -> None:
    """Change one bit of a file that is not meant to be written."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    path.chmod(mode)


@pytest.fixture
def segment(own_workspace: Path) -> Path:
    """The one segment of the workspace."""
    (found,) = own_workspace.glob("cache/spaces/*/segments/*.h5")
    return found


def test_a_flipped_bit_in_a_row_is_found_when_the_row_is_used(
    inside: Run, own_workspace: Path, segment: Path
) -> None:
    # Features are the last and by far the largest block: every row gets its flip.
    size = segment.stat().st_size
    for place in range(size // 10, size, 64 * 8 * 8 * 2):
        flip(segment, place)
    for command in (["evaluate", "run"], ["train-head", "colours", "--head", "logistic"]):
        done = inside(*command)
        assert (done.returncode, done.stdout) == (13, "")
        assert re.fullmatch(
            r"Error: expected checksum [0-9a-f]{8} for row \d+ of cache/spaces/\S+\.h5, found "
            r"another: the row is damaged; run 'featpipe cache verify' to see the extent\n",
            done.stderr,
        )


def test_verify_names_the_damaged_file_and_row(
    featpipe: Run, own_workspace: Path, segment: Path
) -> None:
    flip(segment, segment.stat().st_size // 2)
    name = segment.relative_to(own_workspace)
    done = featpipe("cache", "verify")
    assert (done.returncode, done.stderr) == (13, "")
    first, last = done.stdout.splitlines()
    assert re.fullmatch(
        rf"damaged: {re.escape(str(name))}: its bytes do not have the digest in its name "
        r"\(rows \d+\)",
        first,
    )
    assert last == f"{files_in(own_workspace / 'cache')} files checked, 1 damaged"

    found = featpipe("cache", "verify", "--json")
    assert found.returncode == 13
    (damage,) = json_of(found)["damages"]
    assert damage["path"] == str(name)
    assert len(damage["rows"]) == 1

    # A quick look reads names, layouts and sizes: it promises no more.
    quick = featpipe("cache", "verify", "--quick")
    assert (quick.returncode, quick.stdout) == (
        0,
        f"{files_in(own_workspace / 'cache')} files checked, 0 damaged\n",
    )


def test_a_quick_verify_finds_a_file_that_was_cut_short(
    inside: Run, own_workspace: Path, segment: Path
) -> None:
    segment.chmod(0o644)
    os.truncate(segment, segment.stat().st_size - 1000)
    done = inside("cache", "verify", "--quick")
    assert done.returncode == 13
    assert done.stdout.splitlines()[0].startswith(
        f"damaged: {segment.relative_to(own_workspace)}: "
    )


def test_verify_finds_a_damaged_data_set(inside: Run, own_workspace: Path) -> None:
    path = own_workspace / "cache" / "datasets" / "colours.h5"
    path.write_bytes(path.read_bytes()[:1000])
    done = inside("cache", "verify")
    assert done.returncode == 13
    assert done.stdout.splitlines()[0].startswith("damaged: cache/datasets/colours.h5: ")
    for command in (["train-head", "colours"], ["cache", "info", "colours"]):
        done = inside(*command)
        assert (done.returncode, done.stdout) == (13, "")
        assert done.stderr.startswith(
            "Error: expected a whole data set file in cache/datasets/colours.h5, found: "
        )
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["head.safetensors", "head.json"])
def test_a_damaged_head_exits_13(inside: Run, own_workspace: Path, name: str) -> None:
    path = own_workspace / "run" / name
    if name == "head.json":
        path.write_text(path.read_text().replace('"classes"', '"klasses"'))
    else:
        flip(path, path.stat().st_size // 2)
    done = inside("evaluate", "run")
    assert (done.returncode, done.stdout) == (13, "")
    assert done.stderr.startswith("Error: expected a whole head in run, found: ")
    assert done.stderr.endswith("; train it again (seconds), or restore both files from one copy\n")
    assert done.stderr.count("\n") == 1


def test_a_head_of_a_newer_format_is_refused(inside: Run, own_workspace: Path) -> None:
    path = own_workspace / "run" / "head.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    done = inside("predict", "run", "photos")
    assert (done.returncode, done.stdout) == (13, "")
    assert "format 99; this featpipe reads 3" in done.stderr


# Exit code 74: the system refuses.


def small_files_only() -> None:
    # As a full disk: a write past the limit fails. Python ignores the signal that goes with it.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_full_disk_exits_74_and_nothing_is_lost(
    featpipe: Run, workspace: Path, tmp_path: Path
) -> None:
    command = ("extract", workspace / "photos", "--name", "x", *TINY_FLAGS)
    done = featpipe(*command, preexec_fn=small_files_only)
    assert (done.returncode, done.stdout) == (74, "")
    assert re.fullmatch(
        r"Error: expected to write [\d.]+ KiB to cache/spaces/vgg16-block1_pool-[0-9a-f]{12}/"
        r"segments/[0-9a-f]{64}\.h5, but: File too large; make room for at least [\d.]+ KiB and "
        r"run the same command again; nothing is lost",
        done.stderr.splitlines()[-1],
    )
    # Neither half a segment nor a data set that promises rows that are not there.
    assert not [*tmp_path.glob("cache/spaces/*/segments/*"), *tmp_path.glob("cache/datasets/*")]
    assert not [*tmp_path.rglob(".tmp-*")]


def test_a_head_that_does_not_fit_exits_74(featpipe: Run, own_workspace: Path) -> None:
    command = ("train-head", "colours", "--head", "logistic", "--C", "1", "--out", "new")
    done = featpipe(*command, preexec_fn=small_files_only)
    assert (done.returncode, done.stdout) == (74, "")
    assert re.match(
        r"Error: expected to write [\d.]+ KiB to new/head\.safetensors, but: File too large; ",
        done.stderr.splitlines()[-1],
    )
    assert not (own_workspace / "new" / "head.json").exists()


@pytest.mark.parametrize("cache", ["file", "file/below"])
def test_a_cache_that_is_no_folder_exits_74(
    inside: Run, workspace: Path, tmp_path: Path, cache: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    command = ("extract", workspace / "photos", "--name", "x", *TINY_FLAGS, "--cache", cache)
    done = inside(*command)
    assert (done.returncode, done.stdout) == (74, "")
    assert re.fullmatch(
        rf"Error: expected to (read|write|list) .*{cache}/.*, but: Not a directory.*",
        done.stderr.splitlines()[-1],
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_exits_74(featpipe: Run, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o555)
    done = featpipe("extract", workspace / "photos", "--name", "x", *TINY_FLAGS)
    assert (done.returncode, done.stdout) == (74, "")
    assert "Permission denied; make the folder writable, or name another" in done.stderr


def test_a_file_system_that_takes_no_folder_exits_74(inside: Run, workspace: Path) -> None:
    # Nobody, not even root, can make a folder there.
    if not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    command = ("train-head", "colours", "--head", "logistic", "--C", "1", "--out", "/proc/x")
    done = inside(*command, cwd=workspace)
    assert (done.returncode, done.stdout) == (74, "")
    expected = r"Error: expected to write [\d.]+ KiB to /proc/x/head\.safetensors"
    assert re.match(expected, done.stderr)


def onto_a_full_disk(*args: str, cwd: Path) -> tuple[int, str]:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "featpipe", *args],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "", "FEATPIPE_CACHE": ""},
            timeout=120,
            check=False,
        )
    return done.returncode, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("args", ["cache list", "predict run photos/red/00.png", "backbones vgg16"])
def test_results_that_do_not_fit_exit_74(args: str, workspace: Path) -> None:
    code, said = onto_a_full_disk(*args.split(), cwd=workspace)
    assert code == 74
    assert said.startswith("Error: expected ")
    assert "No space left on device" in said
    assert said.count("\n") == 1


# All of them


def test_verbose_adds_the_traceback_and_quiet_keeps_the_error(
    featpipe: Run, workspace: Path
) -> None:
    plain = featpipe("train-head", "other", cwd=workspace)
    assert "Traceback" not in plain.stderr
    verbose = featpipe("train-head", "other", "-v", cwd=workspace)
    assert verbose.stderr.startswith("Traceback (most recent call last):\n")
    assert verbose.stderr.endswith(f"\n{plain.stderr}")
    quiet = featpipe("train-head", "other", "-q", cwd=workspace)
    assert quiet.stderr == plain.stderr
    assert plain.returncode == verbose.returncode == quiet.returncode == 10


def test_with_json_an_error_leaves_stdout_empty(inside: Run, workspace: Path) -> None:
    done = inside("train-head", "other", "--json", cwd=workspace)
    assert (done.returncode, done.stdout) == (10, "")
    assert done.stderr.startswith("Error: expected a data set 'other'")


def test_a_path_of_several_lines_still_gives_an_error_of_one(inside: Run, workspace: Path) -> None:
    done = inside("extract", "no\nwhere", "--name", "x", *TINY_FLAGS, cwd=workspace)
    assert done.returncode == 10
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", ["cache list", "cache info colours", "doctor", "backbones"])
def test_every_command_takes_quiet_and_verbose(words: str, workspace: Path, inside: Run) -> None:
    for flag in ("-q", "-v"):
        assert inside(*[*words.split(), flag], cwd=workspace).returncode == 0


def test_a_class_named_with_control_characters_stays_on_its_line(
    inside: Run, own_workspace: Path
) -> None:
    folder = own_workspace / "photos" / "gr\x1b[31mey\n"
    folder.mkdir()
    for seed in range(4):
        class_picture(1, 1000 + seed).save(folder / f"{seed}.png")
    done = inside("extract", "photos", "--name", "x", *TINY_FLAGS)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "gr\\x1b[31mey\\n" in done.stdout
