"""How much each timestep counts: weightings of the squared error of x0, carried over to whatever is predicted.

The squared error of epsilon is SNR times that of x0 and the squared error of v SNR + 1 times, so a weight on x0 is
divided by as much, and means the same. The same numbers weigh the errors of the other losses.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from finetune.diffusion.config import DiffusionConfig
from finetune.errors import UserError

HEAVY_SHARE = 0.1
"""A timestep that has more than this share of all weight is too heavy,"""
HEAVY_FACTOR = 10.0
"""if it also weighs more than this times the average, as it needn't where only a few are trained."""


def min_snr(snr: Tensor, config: DiffusionConfig) -> Tensor:
    """min(SNR, γ): Hang et al., arXiv 2303.09556."""
    return snr.clamp(max=config.snr_gamma)


def soft_min_snr(snr: Tensor, config: DiffusionConfig) -> Tensor:
    """SNR·γ / (SNR + γ), a smooth minimum of SNR and γ: Crowson et al., arXiv 2401.11605."""
    return snr * config.snr_gamma / (snr + config.snr_gamma)


def debiased(snr: Tensor, config: DiffusionConfig) -> Tensor:
    """√SNR, which is 1/√SNR on epsilon: Yu et al., arXiv 2310.08442."""
    return snr.sqrt()


def p2(snr: Tensor, config: DiffusionConfig) -> Tensor:
    """SNR / (k + SNR)^γ, which is 1/(k + SNR)^γ on epsilon: Choi et al., arXiv 2204.00227."""
    return snr / (config.p2_k + snr) ** config.p2_gamma


ON_X0: dict[str, Callable[[Tensor, DiffusionConfig], Tensor]] = {
    "min_snr": min_snr,
    "soft_min_snr": soft_min_snr,
    "debiased": debiased,
    "p2": p2,
}
ERROR_PER_X0_ERROR: dict[str, Callable[[Tensor], Tensor]] = {
    "x0": torch.ones_like,
    "epsilon": lambda snr: snr,  # 0 where alpha_bar underflows: `timestep_weights` refuses what comes of that
    "v": lambda snr: snr + 1.0,
}
"""The squared error of a prediction over that of the x0 which it amounts to, by SNR."""


def timestep_weights(snr: Tensor, config: DiffusionConfig) -> Tensor:
    """The weight of every timestep on the error of what is predicted, not below the floor.

    Args:
        snr: float64 [timesteps].

    Returns:
        float64 [timesteps], finite in float32 too.

    Raises:
        UserError: there is none for a timestep that has hardly any of the picture, or hardly any noise.
    """
    if config.weighting == "constant":
        weights = torch.ones_like(snr)
    else:
        weights = ON_X0[config.weighting](snr, config) / ERROR_PER_X0_ERROR[config.prediction](snr)
    weights = weights.clamp(min=config.weight_floor)
    finite = torch.isfinite(weights.float())
    if not finite.all():
        timestep = int(finite.long().argmin())
        raise UserError(
            f"diffusion.weighting={config.weighting} gives {config.prediction} at timestep {timestep}, where SNR is "
            f"{float(snr[timestep]):.2g}, no finite weight: bring diffusion.beta_start and beta_end nearer to SD's"
        )
    return weights


def neglect(weights: Tensor, probabilities: Tensor, config: DiffusionConfig) -> str | None:
    """What has to be known of timesteps that hardly count; None where all is well.

    Args:
        weights: of every timestep, finite: float64 [timesteps].
        probabilities: of drawing it, likewise.
    """
    sentences = (unweighted_end(weights, probabilities, config), heavy_timestep(weights, probabilities, config))
    return "; ".join(sentence for sentence in sentences if sentence) or None


def unweighted_end(weights: Tensor, probabilities: Tensor, config: DiffusionConfig) -> str | None:
    """Whether the last timestep is trained with no weight at all, as with zero terminal SNR under every weighting but
    constant without a floor."""
    if weights[-1].float() > 0.0 or probabilities[-1] == 0.0:
        return None
    last, average = -(-len(weights) // 10), float(weights.mean())
    share = float(weights[-last:].mean()) / average
    return (
        f"diffusion.weighting={config.weighting} with zero terminal SNR gives the last {last} timesteps {share:.1%} of "
        "the average weight and the very last, where sampling starts, none: unless that is meant, set "
        f"diffusion.weight_floor (a tenth of the average is {average / 10:.2g})"
    )


def heavy_timestep(weights: Tensor, probabilities: Tensor, config: DiffusionConfig) -> str | None:
    """Whether one timestep has so much of all weight that the others hardly count."""
    shares = weights * probabilities
    heaviest, total = int(shares.argmax()), float(shares.sum())
    if shares[heaviest] <= HEAVY_SHARE * total or weights[heaviest] <= HEAVY_FACTOR * total:
        return None
    return (
        f"diffusion.weighting={config.weighting} on {config.prediction} gives timestep {heaviest} alone "
        f"{float(shares[heaviest]) / total:.0%} of all weight: unless that is meant, use another weighting or "
        "diffusion.beta_schedule"
    )
