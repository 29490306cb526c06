"""Which timesteps are trained, and how often each."""

import torch
from torch import Tensor

from finetune.diffusion.config import DiffusionConfig
from finetune.errors import UserError


class Timesteps:
    """A distribution over timesteps, as a table of cumulative weights."""

    def __init__(self, config: DiffusionConfig) -> None:
        """Make the table.

        Raises:
            UserError: the distribution has nothing in the ranges that are to be trained.
        """
        sampling = config.sampling
        ranges = sampling.ranges or [[0, config.timesteps - 1]]
        self._allowed = torch.cat([torch.arange(first, last + 1) for first, last in ranges])
        if sampling.distribution == "uniform":
            weights = torch.ones(config.timesteps, dtype=torch.float64)
        else:
            weights = logit_normal(config.timesteps, sampling.mean, sampling.std)
        weights = weights[self._allowed]
        self._cumulative = weights.cumsum(0)
        if self._cumulative[-1] <= 0.0:
            raise UserError(
                "diffusion.sampling.ranges lie where the logit-normal distribution has nothing: "
                "raise diffusion.sampling.std, or move its mean"
            )
        self.probabilities = torch.zeros(config.timesteps, dtype=torch.float64)
        """How likely each timestep is to be drawn: float64 [timesteps]."""
        self.probabilities[self._allowed] = weights / weights.sum()

    def __call__(self, uniform: Tensor) -> Tensor:
        """The timesteps at some quantiles.

        Args:
            uniform: float64 [n], from 0 to 1.

        Returns:
            int64 [n].
        """
        places = torch.searchsorted(self._cumulative[:-1], uniform * self._cumulative[-1], right=True)
        return self._allowed[places]


def logit_normal(timesteps: int, mean: float, std: float) -> Tensor:
    """The probability of each timestep if the logit of the place between 0 and 1 is normal (Esser et al., arXiv
    2403.03206, section 3.1), of which timestep t has [t/T, (t+1)/T): float64 [timesteps]."""
    edges = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    below: Tensor = torch.special.ndtr((torch.logit(edges) - mean) / std)
    return below.diff()
