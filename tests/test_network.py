"""S0's network is the paper's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from napari_fovea.errors import ModelError
from napari_fovea.networks import build, name_of, network_names, system_of
from napari_fovea.networks.vgg_retina import CONFIGS, RetinaConfig


def test_the_paper_network_is_vgg_with_ten_convolutions() -> None:
    with torch.device("meta"):
        network = build("retina-vgg", CONFIGS["paper"] | {"classes": 3})
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == (
        [64] * 2 + [128] * 2 + [256] * 3 + [512] * 3
    )
    assert all(c.kernel_size == (3, 3) for c in convolutions)
    dense = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert [m.out_features for m in dense] == [1024, 1024, 52 * 3]
    assert dense[0].in_features == 512 * 12 * 12
    assert system_of("retina-vgg") == "S0"


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("d", "r", "classes"), [(4, 1, 2), (32, 3, 5), (64, 5, 3)])
def test_logits_have_a_row_per_cell(
    channels: int, d: int, r: int, classes: int
) -> None:
    settings = {"channels": channels, "classes": classes, "d": d, "r": r}
    network = build("retina-vgg", settings | {"width": 2, "units": 8})
    logits = network(torch.rand(2, channels, d, d))
    assert logits.shape == (2, 16 + 12 * (r - 1), classes)


def test_folding_normalisation_changes_nothing_but_rounding(tiny) -> None:
    crops = torch.rand(5, 3, 32, 32)
    folded = tiny.network.folded()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(crops), tiny.network(crops), atol=1e-4, rtol=1e-4)
    assert any(isinstance(m, nn.BatchNorm2d) for m in tiny.network.modules())


def test_it_learns_a_pmf() -> None:
    from napari_fovea.losses import cell_cross_entropy

    network = build("retina-vgg", {"d": 16, "r": 2, "width": 4, "units": 32})
    crops = torch.rand(8, 3, 16, 16)
    pmfs = torch.rand(8, 28, 2).softmax(-1)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(120):
        loss = cell_cross_entropy(network(crops), pmfs)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    floor = -(pmfs * pmfs.log()).sum(-1).mean().item()
    assert losses[-1] - floor < 0.2 * (losses[0] - floor)


def test_unseen_cells_do_not_count_in_the_loss() -> None:
    from napari_fovea.losses import cell_cross_entropy

    logits, pmfs = torch.randn(2, 16, 3), torch.rand(2, 16, 3).softmax(-1)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    assert cell_cross_entropy(logits, pmfs, mask=mask) == 0
    mask[0, 3] = True
    expected = -(pmfs[0, 3] * logits[0, 3].log_softmax(-1)).sum()
    assert cell_cross_entropy(logits, pmfs, mask=mask) == pytest.approx(expected.item())


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(ModelError, match="no network 'nothing'"):
        build("nothing", {})
    with pytest.raises(ModelError, match="channels"):
        build("retina-vgg", {"channels": 9})
    with pytest.raises(ModelError, match="try 96 or 128"):
        build("retina-vgg", {"d": 100})
    with pytest.raises(ModelError, match="surprise"):
        build("retina-vgg", {"surprise": 1})
    with pytest.raises(ModelError, match="not a registered"):
        name_of(nn.Identity())
    assert "retina-vgg" in network_names()
    assert RetinaConfig().grid.n_cells == 52
