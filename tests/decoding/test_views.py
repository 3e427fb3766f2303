"""Views: the same pixels in every run, worker and company, and what a policy promises of them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.samples import jpeg_bytes

from featpipe.base.choices import AUGMENTATIONS
from featpipe.base.errors import BadImageError
from featpipe.base.space import Augmentation, Preprocessing
from featpipe.decoding import augmentation as policies
from featpipe.decoding import views
from featpipe.decoding.augmentation import POLICIES, Transform, augmentation, draw, is_known
from featpipe.decoding.pixels import fit, load_pixels
from featpipe.decoding.pool import DecodePool, views_at_once
from featpipe.decoding.views import Picture, load_views
from featpipe.decoding.worker_process import Task

NOTHING_KNOWN = np.empty((0, 32), np.uint8)
SIZE = 24


def preprocessing(resize: str = "crop", size: int = SIZE, **more: Any) -> Preprocessing:
    return Preprocessing(size=size, resize=resize, mean=(0.0,) * 3, std=(1.0,) * 3, **more)


def made_up(seed: int = 0, width: int = 61, height: int = 47) -> bytes:
    """A smooth picture without loss: PNG decoders agree on every pixel, JPEG decoders need not."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def id_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def views_of(
    data: bytes, policy: str, *numbers: int, seed: int = 0, resize: str = "crop", **more: Any
) -> np.ndarray:
    prep = preprocessing(resize, **more)
    return load_views(data, prep, augmentation(policy, seed), numbers, id_of(data))


DIGESTS = {
    ("flip", "crop"): "fec0db9b93da3ef1",
    ("flip", "squash"): "86ac18e1d5d55586",
    ("light", "crop"): "ec36c7932c7788c4",
    ("light", "squash"): "154885b4ed919e3f",
    ("standard", "crop"): "64bb3584a6d92767",
    ("standard", "squash"): "8bff39b006ee565f",
}
"""SHA-256, first digits, of the pixels of three views of three pictures. Another digest is another
version of the policy: raise it, then write the new digest here."""


@pytest.mark.parametrize(("policy", "resize"), DIGESTS)
def test_views_are_for_ever_those_pixels(policy: str, resize: str) -> None:
    digest = hashlib.sha256()
    for seed in range(3):
        digest.update(views_of(made_up(seed), policy, 1, 2, 7, seed=5, resize=resize).tobytes())
    assert digest.hexdigest()[:16] == DIGESTS[policy, resize]


def test_draws_are_for_ever_those_numbers() -> None:
    found = draw(augmentation("standard", 3), 2, bytes(range(32)))
    assert found.flip is False
    assert found.crop == pytest.approx(
        (0.8900049514441798, 0.9406981189006023, 0.816069784028374, 0.5879048258668881), abs=1e-15
    )
    assert found.colours == pytest.approx(
        (1.017182134439274, 1.1243526954043417, 1.1569438986821767), abs=1e-15
    )


def test_every_policy_has_a_version() -> None:
    assert tuple(POLICIES) == AUGMENTATIONS
    for name in AUGMENTATIONS:
        current = augmentation(name, 4)
        assert current == Augmentation(policy=name, version=POLICIES[name].version, seed=4)
        assert is_known(current)
        assert not is_known(dataclasses.replace(current, version=current.version + 1))
    assert not is_known(Augmentation(policy="heavy", version=1))


@pytest.mark.parametrize("policy", AUGMENTATIONS)
def test_worker_and_caller_make_the_same_pixels_in_any_company(policy: str) -> None:
    contents = [made_up(seed) for seed in range(5)]
    asked = [(1,), (3, 1), (2,), (1, 2, 3), (2, 3)]
    drawn = augmentation(policy, 9)
    tasks = [Task(key, None, content, views=asked[key]) for key, content in enumerate(contents)]
    with DecodePool(
        preprocessing(), workers=2, known=NOTHING_KNOWN, augmentation=drawn, views=(1, 2, 3)
    ) as pool:
        found = {result.key: result for result in pool.decode(tasks) if result is not None}
    for key, content in enumerate(contents):
        assert found[key].views == asked[key]
        alone = [views_of(content, policy, view, seed=9)[0] for view in asked[key]]
        assert np.array_equal(found[key].pixels, alone)


def test_a_task_without_views_gets_all_of_the_pools() -> None:
    data = made_up()
    with DecodePool(
        preprocessing(),
        workers=1,
        known=NOTHING_KNOWN,
        augmentation=augmentation("light", 0),
        views=(2, 5),
    ) as pool:
        (found,) = [result for result in pool.decode([Task(0, None, data)]) if result is not None]
    assert found.views == (2, 5)
    assert np.array_equal(found.pixels, views_of(data, "light", 2, 5))


def test_an_image_of_another_content_is_bad_before_it_is_decoded() -> None:
    data = made_up()
    tasks = [Task(0, None, data, image_id=id_of(data)), Task(1, None, data, image_id=bytes(32))]
    with DecodePool(preprocessing(), workers=1, known=NOTHING_KNOWN) as pool:
        found = {result.key: result for result in pool.decode(tasks) if result is not None}
    assert found[0].kind == "pixels"
    assert (found[1].kind, found[1].stage, found[1].reason) == (
        "bad",
        "read",
        "its content has changed",
    )
    assert found[1].image_id == id_of(data)


def test_tasks_ask_for_as_many_views_as_memory_allows() -> None:
    assert views_at_once(preprocessing(size=224), 4) == 4
    assert views_at_once(preprocessing(size=224), 1000) == 445
    assert views_at_once(preprocessing(size=4096), 3) == 1


@pytest.mark.parametrize("policy", AUGMENTATIONS)
def test_seed_view_version_and_content_decide_each(policy: str) -> None:
    if policy == "flip":
        return
    base = augmentation(policy, 0)
    drawn = {
        draw(base, 1, bytes(32)),
        draw(base, 2, bytes(32)),
        draw(base, 1, b"\1" + bytes(31)),
        draw(augmentation(policy, 1), 1, bytes(32)),
        draw(dataclasses.replace(base, version=2), 1, bytes(32)),
    }
    assert len(drawn) == 5


def test_flip_mirrors_odd_views() -> None:
    data = made_up()
    picture = load_pixels(data, preprocessing())
    found = views_of(data, "flip", 1, 2, 3)
    assert np.array_equal(found[0], picture[:, ::-1])
    assert np.array_equal(found[1], picture)
    assert np.array_equal(found[2], found[0])


@given(st.integers(0, 2**31), st.integers(1, 1000), st.binary(min_size=32, max_size=32))
def test_transforms_stay_in_their_ranges(seed: int, view: int, image_id: bytes) -> None:
    light = draw(augmentation("light", seed), view, image_id)
    assert abs(light.degrees) <= policies.MAX_DEGREES
    assert policies.ZOOM[0] <= light.zoom <= policies.ZOOM[1]
    assert light.crop is None and light.colours == (1.0, 1.0, 1.0)
    standard = draw(augmentation("standard", seed), view, image_id)
    assert standard.crop is not None
    share, ratio, across, down = standard.crop
    assert policies.CROP_SHARE[0] <= share <= policies.CROP_SHARE[1]
    assert policies.CROP_RATIO[0] - 1e-12 <= ratio <= policies.CROP_RATIO[1] + 1e-12
    assert 0 <= across < 1 and 0 <= down < 1
    assert all(abs(factor - 1) <= policies.JITTER + 1e-12 for factor in standard.colours)
    assert (standard.degrees, standard.zoom) == (0.0, 1.0)


def test_draws_are_spread_evenly() -> None:
    drawn = [draw(augmentation("light", 0), view, bytes(32)) for view in range(1, 1001)]
    degrees = np.array([one.degrees for one in drawn])
    assert abs(np.mean([one.flip for one in drawn]) - 0.5) < 0.06
    assert abs(degrees.mean()) < 1 and abs(degrees.std() - 30 / math.sqrt(12)) < 0.4


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_no_transform_is_the_picture_itself(resize: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    prep = preprocessing(resize)
    found = Picture(image, prep, SIZE).transformed(Transform())
    assert np.array_equal(found, np.asarray(fit(image, prep)))


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_a_hair_of_rotation_is_nearly_the_picture_itself(resize: str) -> None:
    with Image.open(io.BytesIO(made_up(1, 160, 160))) as opened:
        image = opened.convert("RGB")
    prep = preprocessing(resize, size=56)  # the central square begins at a whole pixel
    turned = Picture(image, prep, 56).transformed(Transform(degrees=1e-6))
    picture = np.asarray(fit(image, prep), np.int64)
    assert np.abs(turned - picture).mean() < 1


def test_rotation_is_counter_clockwise_about_the_centre() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 255  # what is right goes up
    image = Image.fromarray(pixels)
    turned = Picture(image, preprocessing("squash", size=64), 64).transformed(
        Transform(degrees=90.0)
    )
    assert turned[:30].min() == 255 and turned[34:].max() == 0


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("policy", ["light", "standard"])
def test_nothing_black_comes_into_a_white_picture(policy: str, resize: str) -> None:
    # One pixel of a large border, a strip, and shapes between.
    for width, height in ((1, 1), (200, 3), (3, 200), (40, 30), (300, 10), (25, 25)):
        image = Image.new("RGB", (width, height), (200, 200, 200))
        picture = Picture(image, preprocessing(resize), SIZE)
        for view in range(1, 12):
            transform = draw(augmentation(policy, 0), view, bytes(32))
            transform = dataclasses.replace(transform, colours=(1.0, 1.0, 1.0))
            found = picture.transformed(transform)
            assert found.shape == (SIZE, SIZE, 3)
            assert (found == 200).all()


def test_colours_change_as_their_factors_say() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(60, 150, (SIZE, SIZE, 3), np.uint8))
    picture = Picture(image, preprocessing("squash"), SIZE)
    plain = picture.transformed(Transform()).astype(float)

    def changed(*factors: float) -> np.ndarray:
        brightness, contrast, saturation = factors
        return picture.transformed(Transform(colours=(brightness, contrast, saturation))).astype(
            float
        )

    grey = plain @ [0.299, 0.587, 0.114]
    assert np.abs(changed(1.2, 1, 1) - 1.2 * plain).max() <= 0.51
    assert np.abs(changed(1, 0.5, 1) - (0.5 * plain + 0.5 * grey.mean())).max() <= 1.01
    assert np.abs(changed(1, 1, 0) - grey[..., None]).max() <= 0.51
    assert np.abs(changed(1, 1, 1.2) - (1.2 * plain - 0.2 * grey[..., None])).max() <= 0.51


def test_crops_show_the_part_that_was_drawn() -> None:
    # Red tells the column, green the row.
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[..., 0] = np.arange(100)[None, :] * 2
    pixels[..., 1] = np.arange(100)[:, None] * 2
    image = Image.fromarray(pixels)
    for resize, size in (("squash", (100, 100)), ("crop", (100, 100)), ("squash", (200, 50))):
        picture = Picture(image.resize(size), preprocessing(resize), 2 * SIZE)
        found = picture.transformed(Transform(crop=(0.25, 1.0, 1.0, 0.0)))
        assert 95 < found[:, 0, 0].mean() < 110 and 185 < found[:, -1, 0].mean() <= 198
        assert found[0, :, 1].mean() < 8 and 85 < found[-1, :, 1].mean() < 105


@pytest.mark.parametrize("policy", AUGMENTATIONS)
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_drafts_keep_enough_pixels_for_every_view(
    policy: str, resize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = jpeg_bytes(0, (1600, 1200))
    asked: list[int] = []
    real = views.decode_rgb

    def recorded(content: bytes, **options: Any) -> Image.Image:
        image = real(content, **options)
        asked.append(min(image.size))
        return image

    monkeypatch.setattr(views, "decode_rgb", recorded)
    prep = preprocessing(resize, size=100, decoder="pillow-draft")
    load_views(data, prep, augmentation(policy, 0), [1, 2], id_of(data))
    smallest_part = 1.0 if policy != "standard" else math.sqrt(0.25 * 0.75)
    assert 100 / smallest_part <= asked[0] < 1200


def test_reduction_in_blocks_hardly_changes_a_crop() -> None:
    with Image.open(io.BytesIO(made_up(3, 900, 700))) as opened:
        image = opened.convert("RGB")
    transform = Transform(crop=(0.4, 1.1, 0.3, 0.6))
    prep = preprocessing(size=64)
    whole = Picture(image, prep, 10**6).transformed(transform).astype(int)
    reduced = Picture(image, prep, 170).transformed(transform).astype(int)
    assert np.abs(whole - reduced).max() <= 3


def test_what_cannot_be_decoded_has_no_views() -> None:
    with pytest.raises(BadImageError):
        load_views(b"no picture", preprocessing(), augmentation("light", 0), [1], bytes(32))


def test_a_failing_transform_is_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise SystemError("libImaging")

    monkeypatch.setattr(Picture, "transformed", fail)
    with pytest.raises(BadImageError, match="resize"):
        views_of(made_up(), "light", 1)


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.sampled_from(AUGMENTATIONS),
    st.sampled_from(["crop", "squash"]),
    st.integers(0, 99),
)
def test_any_picture_has_views(shape: tuple[int, int], policy: str, resize: str, seed: int) -> None:
    data = made_up(seed, *shape)
    found = views_of(data, policy, 1, 2, 3, seed=seed, resize=resize)
    assert found.shape == (3, SIZE, SIZE, 3)
    assert np.array_equal(found[1], views_of(data, policy, 2, seed=seed, resize=resize)[0])
