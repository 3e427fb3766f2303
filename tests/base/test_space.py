"""The feature space: its one spelling, its fingerprint, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.samples import small_space

from featpipe.base.errors import DamageError
from featpipe.base.space import FORMAT_VERSION, Augmentation, FeatureSpace, Preprocessing

CANONICAL = (
    '{"backbone":"tiny","dtype":"float16","format":1,"pooling":"avg","precision":"fp32",'
    '"preprocessing":{"channels":"rgb","decoder":"pillow","interpolation":"bilinear",'
    '"mean":[0.25,0.5,0.75],"resize":"crop","size":8,"std":[1.0,0.5,0.125],"version":1},'
    '"shape":[4],"tap":"block1_pool","view":0,"weights":"' + "ab" * 32 + '"}'
)

numbers = st.floats(allow_nan=False, allow_infinity=False)
triples = st.tuples(numbers, numbers, numbers)
texts = st.text(max_size=20)
spaces = st.builds(
    FeatureSpace,
    backbone=texts,
    weights=texts,
    tap=texts,
    pooling=texts,
    preprocessing=st.builds(
        Preprocessing, size=st.integers(1, 4096), resize=texts, mean=triples, std=triples
    ),
    precision=texts,
    dtype=texts,
    shape=st.lists(st.integers(0, 10**6), max_size=4).map(tuple),
    view=st.integers(1, 10**9),
    augmentation=st.none()
    | st.builds(
        Augmentation, policy=texts, version=st.integers(0, 9), seed=st.integers(0, 2**32 - 1)
    ),
    format=st.just(FORMAT_VERSION),
)

OTHER_VALUES = {
    "policy": "autocast",
    "backbone": "vgg19",
    "weights": "cd" * 32,
    "tap": "block2_pool",
    "pooling": "max",
    "precision": "bf16",
    "dtype": "float32",
    "shape": (4, 1),
    "view": 1,
    "format": 2,
    "augmentation": Augmentation(policy="light", version=1),
}
OTHER_PREPROCESSING = {
    "size": 9,
    "resize": "squash",
    "mean": (0.25, 0.5, 0.7500000001),
    "std": (0.5, 1.0, 0.125),
    "channels": "bgr",
    "decoder": "turbojpeg",
    "interpolation": "bicubic",
    "version": 2,
    "resize_to": 232,
}


def changed(field: str) -> FeatureSpace:
    if field in OTHER_VALUES:
        return small_space(**{field: OTHER_VALUES[field]})
    prep = dataclasses.replace(small_space().preprocessing, **{field: OTHER_PREPROCESSING[field]})
    return small_space(preprocessing=prep)


def test_the_canonical_spelling_is_pinned() -> None:
    # Any change here orphans every store ever written: raise the format version instead.
    assert small_space().canonical_json == CANONICAL
    assert small_space().id == hashlib.sha256(CANONICAL.encode()).hexdigest()
    assert small_space().name == f"tiny-block1_pool-{small_space().id[:12]}"


def test_these_tests_name_every_field() -> None:
    fields = {field.name for field in dataclasses.fields(FeatureSpace)}
    assert fields == set(OTHER_VALUES) | {"preprocessing"}
    prep = {field.name for field in dataclasses.fields(Preprocessing)}
    assert prep == set(OTHER_PREPROCESSING)


@pytest.mark.parametrize("field", [*OTHER_VALUES, *OTHER_PREPROCESSING])
def test_every_field_decides_the_fingerprint(field: str) -> None:
    # A key that forgets a field gives hits that are silently wrong.
    assert changed(field).id != small_space().id
    assert changed(field).name != small_space().name


@pytest.mark.parametrize("field", [*OTHER_VALUES, *OTHER_PREPROCESSING])
def test_differences_name_the_field_that_differs(field: str) -> None:
    (found,) = small_space().differences(changed(field))
    prefix = "preprocessing." if field in OTHER_PREPROCESSING else ""
    assert found.startswith(f"{prefix}{field}: ")
    assert ", not " in found


def test_differences_give_mine_before_theirs_and_shorten_digests() -> None:
    mine, theirs = small_space(), small_space(weights="cd" * 32, tap="block2_pool")
    assert mine.differences(theirs) == [
        "weights: abababababab…, not cdcdcdcdcdcd…",
        "tap: block1_pool, not block2_pool",
    ]
    assert mine.differences(small_space()) == []


@given(spaces)
def test_any_space_survives_its_json(space: FeatureSpace) -> None:
    again = FeatureSpace.from_json(space.canonical_json)
    assert again == space
    assert again.id == space.id
    assert space.canonical_json.isascii()


def test_the_order_of_keys_and_blanks_do_not_matter() -> None:
    fields = json.loads(CANONICAL)
    text = json.dumps(dict(reversed(fields.items())), indent=4)
    assert FeatureSpace.from_json(text).id == small_space().id


def test_a_newer_format_is_refused_by_its_number() -> None:
    with pytest.raises(DamageError, match="expected feature space format 1, found 2"):
        FeatureSpace.from_json(CANONICAL.replace('"format":1', '"format":2'))


def test_a_space_without_format_is_refused() -> None:
    with pytest.raises(DamageError, match="found None"):
        FeatureSpace.from_json(CANONICAL.replace('"format":1,', ""))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        CANONICAL[:-1],
        "[" * 100_000,
        CANONICAL.replace('"tap":"block1_pool",', ""),
        CANONICAL.replace('"tap":', '"unheard_of":1,"tap":'),
        CANONICAL.replace('"size":8,', ""),
        CANONICAL.replace('"shape":[4]', '"shape":["wide"]'),
        CANONICAL.replace('"shape":[4]', '"shape":4'),
        CANONICAL.replace('"mean":[0.25,0.5,0.75]', '"mean":1'),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(DamageError, match="expected the JSON of a feature space"):
        FeatureSpace.from_json(text)


@dataclass(frozen=True, kw_only=True)
class LaterPreprocessing(Preprocessing):
    fill: int = 0


@dataclass(frozen=True, kw_only=True)
class LaterSpace(FeatureSpace):
    """A space as a later edition may have it, with two more fields."""

    engine: str = "usual"


def test_a_new_field_is_left_out_while_it_holds_its_default() -> None:
    now = small_space()
    fields = {field.name: getattr(now, field.name) for field in dataclasses.fields(now)}
    prep = LaterPreprocessing(**dataclasses.asdict(now.preprocessing))
    later = LaterSpace(**{**fields, "preprocessing": prep})
    assert (later.canonical_json, later.id, later.name) == (now.canonical_json, now.id, now.name)
    # With another value it is another space.
    for changed in (
        dataclasses.replace(later, engine="new"),
        dataclasses.replace(later, preprocessing=dataclasses.replace(prep, fill=255)),
    ):
        assert changed.id != now.id
        before, after = json.loads(now.canonical_json), json.loads(changed.canonical_json)
        before |= before.pop("preprocessing")
        after |= after.pop("preprocessing")
        assert len(after) == len(before) + 1 and after.items() > before.items()


def test_every_field_of_the_first_edition_is_always_written() -> None:
    # Among them those with a default: they were written before there was this rule.
    document = json.loads(small_space().canonical_json)
    assert {"view", "format"} <= set(document)
    assert {"channels", "decoder", "interpolation", "version"} <= set(document["preprocessing"])


def test_a_field_that_is_not_known_is_refused() -> None:
    document = {**json.loads(small_space().canonical_json), "engine": "new"}
    with pytest.raises(DamageError, match="engine"):
        FeatureSpace.from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("tap", "slug"),
    [
        ("block1_pool", "block1_pool"),
        ("layer4.2.relu_2", "layer4_2_relu_2"),
        ("features.12", "features_12"),
        ("../../etc/passwd", "_etc_passwd"),
        ("a\0b\nc", "a_b_c"),
        ("x" * 200, "x" * 64),
        ("Straße", "Stra_e"),
    ],
)
def test_any_name_of_a_tap_can_name_a_store(tap: str, slug: str) -> None:
    space = small_space(tap=tap)
    assert space.name == f"tiny-{slug}-{space.id[:12]}"
    assert FeatureSpace.from_json(space.canonical_json) == space


def test_names_of_one_slug_are_told_apart_by_the_id() -> None:
    assert small_space(tap="layer4.2").name != small_space(tap="layer4_2").name


@pytest.mark.parametrize("tap", ["", "..", "/", "\0"])
def test_what_is_no_name_at_all_names_no_store(tap: str) -> None:
    with pytest.raises(DamageError, match="a backbone, a tap"):
        _ = small_space(tap=tap).name
