"""A network of the user's own as backbone: traced or hooked, named by its tensors and its code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support.backbones import pixels
from support.own_networks import SOURCE
from torch import nn

from featpipe.backbones.base import NetworkInput
from featpipe.backbones.catalog import get_backbone
from featpipe.backbones.hooked import Hooked
from featpipe.backbones.own_network import OwnNetwork
from featpipe.base.errors import OwnCodeError, UsageError, WeightsError
from featpipe.base.own_code import permitted
from featpipe.weights import open_weights

SIZE = 32
Open = Callable[..., OwnNetwork]


@pytest.fixture
def open_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens a network of the support module, which is imported anew with other values in it."""
    monkeypatch.syspath_prepend(tmp_path)
    number = 0

    def opened(factory: str, *, shift: float = 1.0, source: str = SOURCE) -> OwnNetwork:
        nonlocal number
        number += 1
        # Python's cache of compiled modules counts in seconds.
        sys.dont_write_bytecode = True
        code = source.format(mark=str(tmp_path / "mark"), shift=shift)
        (tmp_path / "own_networks.py").write_text(code)
        sys.modules.pop("own_networks", None)
        name = f"own_networks:{factory}"
        with permitted([name]):
            found = get_backbone(name)
        assert isinstance(found, OwnNetwork)
        return found

    yield opened
    sys.modules.pop("own_networks", None)
    sys.dont_write_bytecode = False


def images(n: int = 2, size: int = SIZE) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def features(backbone: OwnNetwork, taps: list[str], pictures: torch.Tensor) -> list[np.ndarray]:
    module = backbone.build(backbone.own_tensors(), taps, pictures.shape[-1])
    with torch.inference_mode():
        return [output.numpy() for output in module(pictures)]


def test_taps_of_a_network_that_can_be_traced(open_own: Open) -> None:
    backbone = open_own("plain")
    assert not isinstance(backbone.traced, Hooked)
    network = backbone._made
    with torch.no_grad():
        map_ = network[:2](images())
        expected = [map_, network[3:](map_.relu())]
    for found, wanted in zip(features(backbone, ["1", "6"], images()), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-6)
    assert backbone.parameters("0") == ("0.weight", "0.bias")
    assert backbone.output_shape("2", "avg", SIZE) == (4,)


def test_a_picture_decides_what_a_hooked_network_does_alone(open_own: Open) -> None:
    backbone = open_own("branching")
    assert isinstance(backbone.traced, Hooked) and backbone.traced.one_by_one
    network, pictures = backbone._made, torch.cat([images() + 3, images() - 3])
    with torch.no_grad():
        signs = [bool(network.first(p).mean() > 0) for p in pictures.split(1)]
        expected = torch.cat([network(p) for p in pictures.split(1)])
    assert len(set(signs)) == 2  # both branches are taken in this batch
    first, output = features(backbone, ["first", "output"], pictures)
    np.testing.assert_allclose(output, expected.numpy(), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        np.testing.assert_allclose(first, network.first(pictures).numpy(), rtol=1e-5, atol=1e-6)


def test_a_module_that_some_pictures_skip_is_no_tap_for_them(open_own: Open) -> None:
    backbone = open_own("branching")
    taken = next(name for name in ("bright", "dark") if name in backbone.taps)
    module = HookedModule(backbone, taken)
    with pytest.raises(UsageError, match=f"expected {taken} to run for every picture"):
        module(torch.cat([images() + 3, images() - 3]))


def HookedModule(backbone: OwnNetwork, tap: str) -> nn.Module:
    return backbone.traced.build([tap], SIZE, backbone.own_tensors())


def test_hooks_name_calls_and_keep_what_follows_in_place_away(open_own: Open) -> None:
    backbone = open_own("unrolled")
    assert isinstance(backbone.traced, Hooked) and not backbone.traced.one_by_one
    assert list(backbone.taps) == ["first", "relu", "relu_1", "last"]
    network = backbone._made
    with torch.no_grad():
        expected = network.first(images())
    first, relu = features(backbone, ["first", "relu"], images())
    np.testing.assert_allclose(first, expected.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(relu, expected.relu().numpy(), rtol=1e-5, atol=1e-6)
    assert first.min() < 0
    assert backbone.parameters("relu") == ("first.weight", "first.bias")
    assert len(backbone.parameters("last")) == 4


def test_a_hooked_pass_stops_at_the_deepest_tap(
    open_own: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = open_own("unrolled")
    module = HookedModule(backbone, "first")

    def refuse(*_: object) -> None:
        raise AssertionError("ran after the tap")

    monkeypatch.setattr(type(module.hooked.network.relu), "forward", refuse)
    assert module(images())[0].shape[:2] == (2, 4)


def test_what_is_odd_in_a_network_works(open_own: Open) -> None:
    backbone = open_own("odd")
    assert "tail" in backbone.taps
    network = backbone._made
    with torch.no_grad():
        expected = network(images())[0]
    (found,) = features(backbone, ["tail"], images())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_tied_weights_are_one_tensor_in_files_and_in_chance(open_own: Open, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    backbone = open_own("odd")
    drawn = backbone.random_tensors(0, list(backbone.tensor_shapes))
    np.testing.assert_array_equal(drawn["one.weight"], drawn["two.weight"])
    own = dict(backbone.own_tensors())
    del own["two.weight"]  # safetensors keeps shared tensors once
    save_file(
        {name: np.ascontiguousarray(t) for name, t in own.items()}, tmp_path / "a.safetensors"
    )
    weights = open_weights(str(tmp_path / "a.safetensors"), backbone, tmp_path)
    assert weights.digest("tail") == open_weights("own", backbone, tmp_path).digest("tail")


def test_the_digest_follows_state_and_code(open_own: Open, tmp_path: Path) -> None:
    def digest(factory: str, tap: str, **changes: object) -> str:
        return open_weights(None, open_own(factory, **changes), tmp_path).digest(tap)

    assert digest("plain", "6") == digest("plain", "6")
    assert digest("plain", "6") != digest("strided", "6")
    assert digest("odd", "tail") == digest("odd", "tail")
    assert digest("odd", "tail") != digest("odd", "tail", shift=2.0)  # a buffer without a name
    assert digest("odd", "one") == digest("odd", "one", shift=2.0)  # it comes later
    other = SOURCE.replace("add_(1)", "add_(2)")
    assert digest("unrolled", "last") == digest("unrolled", "last")
    assert digest("unrolled", "last") != digest("unrolled", "last", source=other)
    random = open_weights("random:1", open_own("plain"), tmp_path).digest("6")
    assert random != digest("plain", "6")


@pytest.mark.parametrize(
    ("factory", "tap"), [("forgetful", "dense"), ("mixing", "dense"), ("random", "1")]
)
def test_features_that_depend_on_more_than_the_picture_are_refused(
    open_own: Open, factory: str, tap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = open_own(factory)
    if factory == "random":
        monkeypatch.setattr(nn.RReLU, "forward", lambda _, x: x * torch.rand(()))
    with pytest.raises(OwnCodeError, match=r"the same features at .* every time, found others"):
        backbone.build(backbone.own_tensors(), [tap], SIZE)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("raising", "to make a network, but: RuntimeError: no such file"),
        ("nothing", r"to return a torch.nn.Module, found NoneType"),
        ("lazy", "found 0.weight of a lazy module; run the network once in the factory"),
        ("mistaken", "expected three numbers as mean in featpipe_input of own_networks:mistaken"),
        ("missing", "expected a function 'missing' in 'own_networks'"),
    ],
)
def test_a_factory_that_makes_no_network(open_own: Open, factory: str, message: str) -> None:
    with pytest.raises(OwnCodeError, match=message) as error:
        open_own(factory)
    assert "\n" not in str(error.value)


def test_a_network_that_takes_no_colour_pictures(open_own: Open) -> None:
    with pytest.raises(UsageError, match=r"to take colour pictures \(N, 3, 224, 224\).* channels"):
        open_own("grey").tap("0")


def test_weights_that_are_not_finite(open_own: Open) -> None:
    with pytest.raises(WeightsError, match=r"found infinite ones or NaN in 0\.weight"):
        open_own("infinite").own_tensors()


def test_a_network_says_which_pictures_it_expects(open_own: Open) -> None:
    backbone = open_own("small")
    std = (0.229, 0.224, 0.225)
    assert backbone.input_of("own") == NetworkInput(
        (0.5, 0.5, 0.5), std, size=28, interpolation="bicubic"
    )
    assert backbone.output_shape("2", "none", backbone.default_size) == (3,)


def test_two_networks_on_one_module_are_strangers() -> None:
    backbone = get_backbone("resnet18")
    tensors = backbone.random_tensors(0, list(backbone.tensor_shapes))
    one, two = (backbone.build(tensors, ["layer1"], SIZE) for _ in range(2))
    one.double()
    assert two.conv1.weight.dtype == torch.float32
    assert pixels(1).dtype == np.uint8
