"""Networks of one's own, as a module that is imported only where it is permitted."""

SOURCE = '''
import torch
from torch import nn

open({mark!r}, "a").close()


def plain(stride=1):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=stride, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 5),
    ).train()


def strided():
    return plain(2)


class Branching(nn.Module):
    """Cannot be traced: what runs depends on the picture."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.bright, self.dark = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.first(x)
        x = self.bright(x) if x.mean() > 0 else self.dark(x)
        return self.last(x.relu_()).mean((2, 3))


class Unrolled(nn.Module):
    """Cannot be traced, though it does the same for every picture."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        assert int(x.shape[1]) == 3 and len(x) > 0
        x = self.relu(self.first(x))
        return {{"out": self.last(self.relu(x).mean((2, 3)).add_(1))}}


class Odd(nn.Module):
    """Tied weights, half precision, hidden buffers, constants; gives a tuple."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.two.weight = self.one.weight
        self.register_buffer("scale", torch.tensor([2.0]).view(1, 1, 1, 1))
        self.register_buffer("shift", torch.ones(1, 3, 1, 1) * SHIFT, persistent=False)
        self.tail = nn.Conv2d(3, 2, 1).half()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        x = self.two(self.one(x)) * self.scale + self.shift + torch.ones(3, 1, 1)
        return self.tail(x), x


SHIFT = {shift}


class Forgetful(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Conv2d(3, 2, 1)
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))

    def forward(self, x):
        self.mean = 0.5 * self.mean + 0.5 * x.mean((0, 2, 3), keepdim=True)
        return self.dense(x - self.mean)


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.dense(x - x.mean(0, keepdim=True))


branching, unrolled, odd, forgetful, mixing = Branching, Unrolled, Odd, Forgetful, Mixing


def random():
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.RReLU()).train()


def grey():
    return nn.Sequential(nn.Conv2d(1, 2, 1))


def small():
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2 * 28 * 28, 3))
    network.featpipe_input = {{"size": 28, "mean": (0.5, 0.5, 0.5), "interpolation": "bicubic"}}
    return network


def raising():
    raise RuntimeError("no such\\nfile")


def nothing():
    return None


def lazy():
    return nn.Sequential(nn.LazyConv2d(3, 1))


def infinite():
    network = plain()
    network[0].weight.data[0] = float("nan")
    return network


def mistaken():
    network = plain()
    network.featpipe_input = {{"mean": 3}}
    return network
'''
