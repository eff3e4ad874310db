"""timm's transformers in small, with weights that look somewhere, and images for them."""

import pytest
import timm
import torch
from torch import nn

OPTIONS = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2},
    "deit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4, "depths": (2, 2)},
}


@pytest.fixture(params=list(OPTIONS))
def name(request):
    return request.param


@pytest.fixture
def options(name):
    return {"num_classes": 5, **OPTIONS[name]}


@pytest.fixture
def net(name, options):
    """With channels as unlike each other as trained ones are, and off their middle."""
    torch.manual_seed(0)
    net = timm.create_model(name, **options).eval()
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.08)
        elif isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, std=1.0)
            nn.init.normal_(module.bias, std=1.0)
    return net


@pytest.fixture
def images(options):
    torch.manual_seed(1)
    return torch.randn(6, 3, options["img_size"], options["img_size"])
