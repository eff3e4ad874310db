"""What Python reads off one value and gives to another stays as long as it was read."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate.surgery.channels.groups import Channels
from foveate.surgery.channels.remove import Narrow, Remove, groups
from foveate.surgery.channels.ties import Size, tie, tied


class Heads(nn.Module):
    """Attention as timm writes it: as wide inside as outside, by the shape of what comes in."""

    def __init__(self, dim=12, heads=3, across=False):
        super().__init__()
        self.num_heads, self.across = heads, across
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.temperature = nn.Parameter(torch.rand(heads, 1, 1) + 0.5)

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.across:
            q, k, v = (t.transpose(-2, -1) for t in (q, k, v))
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        y = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1) @ v
        y = y.permute(0, 3, 1, 2) if self.across else y.transpose(1, 2)
        return self.proj(y.reshape(b, n, c))


class Net(nn.Module):
    def __init__(self, **how):
        super().__init__()
        self.stem, self.heads = nn.Linear(5, 12), nn.ModuleList(Heads(**how) for _ in range(2))
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.stem(x)
        for heads in self.heads:
            x = x + heads(x)
        return self.head(x.mean(1))


@pytest.fixture
def tokens():
    return torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("across", [False, True], ids=["tokens", "channels"])
def test_heads_go_with_the_width_that_python_ties_them_to(across, tokens):
    torch.manual_seed(0)
    model = Net(across=across).eval()
    [group] = groups(model, tokens)
    assert len(group) == 3, "heads go whole, in both blocks, and four of the width with each"
    assert group.channels[1]["stem.weight", 0].tolist() == [4, 5, 6, 7]
    edited, _ = Remove(gone={group.name: (1,)}).apply(model, tokens)
    assert edited.stem.out_features == edited.heads[0].proj.in_features == 8
    assert [heads.num_heads for heads in edited.heads] == [2, 2]
    state = model.state_dict()
    for (name, axis), indices in group.channels[1].items():
        if axis == 1:
            state[name][:, indices] = 0  # nobody listens to what is gone
    torch.testing.assert_close(edited(tokens), model(tokens))


def test_without_whole_heads_the_same_number_of_each(tokens):
    torch.manual_seed(0)
    edited, _ = Narrow(share=0.5, whole=False).apply(Net(across=True).eval(), tokens)
    assert edited.heads[0].num_heads == 3
    assert edited.heads[0].qkv.out_features == 18


def test_what_is_given_the_size_of_the_images_stays():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            b, c = x.shape
            return self.b(self.a(x).reshape(b, 2, 3).transpose(1, 2).reshape(b, c))

    channels = Channels(Odd().eval(), torch.randn(2, 6))
    assert not channels.groups
    told = {line.name: line.why for line in channels.left}
    assert told["a"] == "left, as the network gives it the size of something that stays"


def test_channels_that_only_change_places_are_tied_to_nothing():
    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.a(x)
            b, c, h, w = x.shape
            x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
            return self.b(x)

    channels = Channels(Shuffled().eval(), torch.randn(2, 3, 4, 4), whole=False)
    labels = channels.traced.labels
    assert labels.ties
    assert not labels.untied(channels.component)
    assert [len(group) for group in channels.groups] == [4], "the same place of both halves"


def test_sizes_know_where_they_were_read():
    x = torch.zeros(2, 12)
    size = Size.of(12, x, 1)
    part = size // 3
    assert (part, part.parts, part.axis) == (4, 3, 1)
    assert part.source is x
    assert type(size // 5) is type(size * 2) is int
    assert torch.equal(tie(x, x, [1], 1), x)


def test_the_model_forgets(tokens):
    model = Net()
    with tied(model):
        assert "forward" in vars(model)
        assert torch.equal(model(tokens), Net.forward(model, tokens))
    assert "forward" not in vars(model)
    model.forward = model.stem.forward
    with tied(model):
        pass
    assert model.forward == model.stem.forward
