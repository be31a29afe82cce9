"""Cross-entropy of warped label probabilities."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from verimorph.errors import InputError
from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, reduce_local


@full_precision
def cross_entropy(
    fixed_labels: Float[Tensor, "b k *space"],
    moved_labels: Float[Tensor, "b k *space"],
    *,
    epsilon: float = 1e-6,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Cross-entropy of the moved label probabilities p under the fixed ones t: mean_x - sum_k t_k log(p_k + epsilon).

    Range [-log(1 + epsilon), -log epsilon], in nats; lowest where p puts all on the label that t has (for soft t, the
    lowest value is the entropy of t). Probabilities, not logits: a warped one-hot map is already a probability.

    Differs from: ``torch.nn.functional.cross_entropy`` of log(p + epsilon) by the normalisation over k, nothing where p
    sums to one.
    """
    if fixed_labels.shape != moved_labels.shape:
        raise InputError(
            f"labels differ in shape: fixed {tuple(fixed_labels.shape)}, moved {tuple(moved_labels.shape)}"
        )
    local = -(fixed_labels.to(moved_labels) * (moved_labels + epsilon).log()).sum(1, keepdim=True)
    return reduce_local(local, mask=mask, weight=weight, reduction=reduction, map=map)
