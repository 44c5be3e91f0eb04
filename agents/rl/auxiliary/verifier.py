"""Auxiliary contrastive loss: features must identify later observations of their own episode."""

from __future__ import annotations

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.agents.rl.encoders.entities import make_encoder
from scrubjay.agents.rl.observations import from_leaves, to_leaves
from scrubjay.agents.rl.segment import Segment

_HORIZONS = (1, 4, 16)


class Verifier(nn.Module):
    """Head that identifies, from the features of a step, the observations 1, 4 and 16 steps later.

    The candidates are the observations of all environments at the later step. This is the verifier of the
    Consciousness Prior (Bengio 2017, arXiv 1709.08568, section 2.2), which matches a past conscious state
    with the present. The memory must retain information that predicts later observations, but need not
    reconstruct them. The paper does not specify the verifier. Here its score is bilinear, with a softmax over
    the batch, as in van den Oord et al. 2018 (arXiv 1807.03748). A batch of one has no negatives, so its loss
    is 0.
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, dim: int) -> None:
        super().__init__()
        self.encoder = make_encoder(observation_space, dim)
        self.tell = nn.Linear(dim, len(_HORIZONS) * dim)

    def forward(self, features: Float[Tensor, "batch time dim"], segment: Segment) -> Float[Tensor, ""]:
        """Return the mean loss over all pairs of steps that lie in the same episode, 1, 4 or 16 steps apart.

        Returns 0 if there are no such pairs.
        """
        rows = {key: leaf.flatten(0, 1) for key, leaf in to_leaves(segment.observations).items()}
        targets = self.encoder(from_leaves(rows)).unflatten(0, segment.starts.shape)
        episode = segment.starts.cumsum(1)
        losses = []
        for later, query in zip(_HORIZONS, self.tell(features).chunk(len(_HORIZONS), dim=-1), strict=True):
            scores = torch.einsum("btd,ctd->tbc", query[:, :-later], targets[:, later:])
            scores = scores * targets.shape[-1] ** -0.5
            own = scores.log_softmax(-1).diagonal(dim1=1, dim2=2).T
            losses.append(-own[episode[:, later:] == episode[:, :-later]])
        loss = torch.cat(losses)
        return loss.mean() if len(loss) else features.sum() * 0
