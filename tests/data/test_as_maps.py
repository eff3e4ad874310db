"""Other senses as maps: against torchaudio's Kaldi features, and against loops."""

import pytest
import torch

from foveate.backbones import create_model
from foveate.data.as_maps import film_as_map, points_as_map, series_as_map, sound_as_map
from foveate.errors import FoveateError


def chirp() -> torch.Tensor:
    t = torch.arange(8000) / 8000
    sweep = torch.sin(2 * torch.pi * (200 * t + 600 * t * t))
    return sweep + 0.1 * torch.cos(2 * torch.pi * 1500 * t) + 0.2


@pytest.mark.paper("unireplknet")
def test_sound_is_kaldis():
    """torchaudio 2.11, kaldi.fbank(htk_compat=True, use_energy=False, window_type="hanning",
    num_mel_bins=23, dither=0): every fourth band of windows 0, 50 and 97."""
    found = sound_as_map(chirp()[None], 8000, bands=23)
    assert found.shape == (1, 1, 23, 98)
    published = {
        0: [-3.7679, -3.5223, -12.9057, -2.916, -12.319, -15.9424],
        50: [-9.0376, -9.7012, 6.7926, -2.915, -10.4029, -11.1481],
        97: [-9.6343, -13.3249, -10.1849, 7.673, -9.0799, -9.1508],
    }
    for window, values in published.items():
        torch.testing.assert_close(
            found[0, 0, ::4, window], torch.tensor(values), atol=2e-4, rtol=0
        )


def test_series_in_rows():
    series = torch.arange(48.0).view(1, 8, 6)
    assert series_as_map(series).shape == (1, 1, 8, 6)
    assert torch.equal(series_as_map(series, 12).flatten(), series.flatten())


def test_a_film_frame_by_frame():
    frames = torch.randn(2, 5, 3, 4, 6)
    sheet = film_as_map(frames)
    assert sheet.shape == (2, 3, 8, 18)
    for t in range(6):
        down, right = 4 * (t // 3), 6 * (t % 3)
        seen = sheet[:, :, down : down + 4, right : right + 6]
        assert torch.equal(seen, frames[:, t] if t < 5 else torch.zeros_like(seen))


def test_points_one_by_one():
    torch.manual_seed(0)
    points = torch.rand(2, 40, 3) * torch.tensor([2.0, 1.0, 0.5])
    seen = points_as_map(points, 16)
    slow = torch.zeros(2, 3, 16, 16)
    for b in range(2):
        low, high = points[b].amin(0), points[b].amax(0)
        extent = (high - low).max()
        for point in points[b]:
            unit = (point - (low + high) / 2) / extent + 0.5
            at = [1 + round(float(u) * 13) for u in unit]
            for axis in range(3):
                down, right = (at[i] for i in range(3) if i != axis)
                block = slow[b, axis, down - 1 : down + 2, right - 1 : right + 2]
                block.clamp_(min=0.5 + 0.5 * float(unit[axis]))
    torch.testing.assert_close(seen, slow)


@pytest.mark.slow
@pytest.mark.paper("unireplknet")
def test_one_network_for_all_senses():
    """A rising and a falling tone are told apart after a few steps, by a network for images."""
    torch.manual_seed(0)
    t = torch.arange(1600) / 8000
    model = create_model("unireplknet_mini32", num_classes=2, in_chans=1).train()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        up = torch.randint(0, 2, (16,))
        pitch = 700 + 300 * torch.rand(16, 1)
        slope = (2 * up - 1)[:, None] * 1500.0
        waves = torch.sin(2 * torch.pi * (pitch * t + slope * t * t)) + 0.01 * torch.randn(16, 1600)
        return sound_as_map(waves, 8000, bands=32) / 4, up

    for _ in range(50):
        x, y = batch()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    x, y = (torch.cat(parts) for parts in zip(*(batch() for _ in range(4)), strict=True))
    assert (model(x).argmax(1) == y).float().mean() > 0.8


def test_mistakes():
    with pytest.raises(FoveateError, match="one window of 200"):
        sound_as_map(torch.zeros(1, 100), 8000)
    with pytest.raises(FoveateError, match="rows of 7"):
        series_as_map(torch.zeros(1, 8, 6), 7)
