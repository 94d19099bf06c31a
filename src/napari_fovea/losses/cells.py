"""The loss of cells that see a mixture of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def cell_cross_entropy(
    logits: torch.Tensor, pmfs: torch.Tensor, *, mask: torch.Tensor | None = None
) -> torch.Tensor:
    r"""Cross-entropy between the cells' target pmfs and the predicted ones.

    .. math:: L = -\sum_n \sum_i \sum_k p_{k,n}^{(i)} \log y_{k,n}^{(i)}

    Equation (1) of the first paper, divided by the number of cells that count,
    so that its size does not depend on batch and grid.

    Parameters
    ----------
    logits : Tensor, shape (B, N, K)
        Network outputs before the soft-max.
    pmfs : Tensor, shape (B, N, K)
        Target pmfs.
    mask : Tensor of bool, shape (B, N), optional
        Cells that count; all by default.

    Returns
    -------
    Tensor
        A scalar of at least 0; 0 if no cell counts.
    """
    cells = -(pmfs * logits.float().log_softmax(-1)).sum(-1)
    if mask is None:
        return cells.mean()
    return (cells * mask).sum() / mask.sum().clamp(min=1)
