"""Verification: of what is seen later, the memory's output must know its own episode's from others'."""

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
    """Picks, from features, what its episode shows 1, 4 and 16 steps later among what all rows show then.

    The verifier of the Consciousness Prior (Bengio 2017, arXiv 1709.08568, section 2.2), which matches a past
    conscious state with the present: what is kept must say something of the future, and need not draw it.
    The paper leaves its form open; here it is a bilinear score and a softmax over rows, as in van den Oord et
    al. 2018 (arXiv 1807.03748). One row alone has nothing to be taken for: its loss is 0.
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, dim: int) -> None:
        super().__init__()
        self.seen = make_encoder(observation_space, dim)
        self.tell = nn.Linear(dim, len(_HORIZONS) * dim)

    def forward(self, features: Float[Tensor, "batch time dim"], segment: Segment) -> Float[Tensor, ""]:
        """Return the mean loss over steps and horizons within an episode; 0 where there is none."""
        rows = {key: leaf.flatten(0, 1) for key, leaf in to_leaves(segment.observations).items()}
        seen = self.seen(from_leaves(rows)).unflatten(0, segment.starts.shape)
        episode = segment.starts.cumsum(1)
        losses = []
        for later, told in zip(_HORIZONS, self.tell(features).chunk(len(_HORIZONS), dim=-1), strict=True):
            scores = torch.einsum("btd,ctd->tbc", told[:, :-later], seen[:, later:]) * seen.shape[-1] ** -0.5
            own = scores.log_softmax(-1).diagonal(dim1=1, dim2=2).T
            losses.append(-own[episode[:, later:] == episode[:, :-later]])
        loss = torch.cat(losses)
        return loss.mean() if len(loss) else features.sum() * 0
