"""What a recipe says about noise and loss."""

from dataclasses import dataclass, field

from finetune.checks import check_above_zero, check_choice, check_finite, check_not_negative
from finetune.errors import UserError

PREDICTIONS = ("v", "epsilon", "x0")
BETA_SCHEDULES = ("scaled_linear", "linear", "cosine")
WEIGHTINGS = ("constant", "min_snr", "soft_min_snr", "debiased", "p2")
LOSSES = ("l2", "l1", "huber")
HUBER_SCHEDULES = ("constant", "exponential", "snr")
DISTRIBUTIONS = ("uniform", "logit_normal")


@dataclass
class NoiseConfig:
    """What is added to plain Gaussian noise, in the order in which it is added."""

    pyramid_levels: int = 0
    """Coarser noises added to the noise, each at half the size of the one before it and scaled up (multi-resolution
    noise); the sum is scaled back to a mean square of 1. 0 adds none."""
    pyramid_discount: float = 0.3
    """Strength of a coarser noise relative to the one before it."""
    offset: float = 0.0
    """Strength of offset noise: one number for each sample and channel, added to all of the channel's noise, so that
    the model learns to change a picture's brightness."""
    adaptive_offset: float = 0.0
    """What the strength of offset noise grows by for each unit of the absolute mean of the channel's latents."""
    offset_random: bool = False
    """Multiply the strength of offset noise by a uniform number from 0 to 1 for each sample."""
    perturbation: float = 0.0
    """Strength of input perturbation: noise that is added to the model's input but not to its target (Ning et al.,
    arXiv 2301.11706)."""
    perturbation_random: bool = False
    """Multiply the strength of input perturbation by a uniform number from 0 to 1 for each sample."""

    def __post_init__(self) -> None:
        check_not_negative("diffusion.noise.pyramid_levels", self.pyramid_levels)
        if not 0.0 < self.pyramid_discount <= 1.0:
            raise UserError(
                f"diffusion.noise.pyramid_discount is {self.pyramid_discount}: use a number above 0, up to 1"
            )
        check_not_negative("diffusion.noise.offset", self.offset)
        check_not_negative("diffusion.noise.adaptive_offset", self.adaptive_offset)
        check_not_negative("diffusion.noise.perturbation", self.perturbation)
        if self.offset_random and not self.has_offset:
            raise UserError("diffusion.noise.offset_random varies offset noise, but offset and adaptive_offset are 0")
        if self.perturbation_random and not self.perturbation:
            raise UserError("diffusion.noise.perturbation_random varies input perturbation, but perturbation is 0")

    @property
    def has_offset(self) -> bool:
        """Whether there is offset noise at all."""
        return self.offset > 0.0 or self.adaptive_offset > 0.0


@dataclass
class SamplingConfig:
    """How the timesteps that are trained are drawn."""

    distribution: str = "uniform"
    """uniform, or logit_normal: the logit of the place between the first timestep (0) and the last (1) is normal
    (Esser et al., arXiv 2403.03206, section 3.1)."""
    mean: float = 0.0
    """Mean of the logit under logit_normal; above 0 favours the noisy timesteps."""
    std: float = 1.0
    """Standard deviation of the logit under logit_normal."""
    ranges: list[list[int]] = field(default_factory=list)
    """Train only these timesteps, as [first, last], rising and apart; empty for all."""
    stratified: bool = False
    """Cut the distribution into as many equal parts as the global batch has samples and draw one timestep from each, so
    that the loss varies less from step to step."""

    def __post_init__(self) -> None:
        check_choice("diffusion.sampling.distribution", self.distribution, DISTRIBUTIONS)
        check_finite("diffusion.sampling.mean", self.mean)
        check_above_zero("diffusion.sampling.std", self.std)
        end = -1
        for bounds in self.ranges:
            if len(bounds) != 2 or not end < bounds[0] <= bounds[1]:
                raise UserError(
                    f"diffusion.sampling.ranges has {list(bounds)}: give [first, last] from 0 on, rising and apart"
                )
            end = bounds[1]


@dataclass
class DiffusionConfig:
    """The forward process and the objective."""

    prediction: str = "v"
    """What the model predicts: v (Salimans & Ho, arXiv 2202.00512), epsilon (the noise) or x0 (the latents)."""
    beta_schedule: str = "scaled_linear"
    """How the betas rise: scaled_linear (their square roots rise linearly; SD's), linear, or cosine (Nichol & Dhariwal,
    arXiv 2102.09672), which has no beta_start and beta_end."""
    beta_start: float = 0.00085
    """First beta; SD's value."""
    beta_end: float = 0.012
    """Last beta; SD's value."""
    timesteps: int = 1000
    """Number of diffusion timesteps."""
    zero_terminal_snr: bool = True
    """Rescale the betas so that the last timestep is pure noise (Lin et al., arXiv 2305.08891)."""
    weighting: str = "soft_min_snr"
    """Loss weight by timestep: constant (1 on what is predicted), min_snr (Hang et al., arXiv 2303.09556), soft_min_snr
    (Crowson et al., arXiv 2401.11605), debiased (Yu et al., arXiv 2310.08442) or p2 (Choi et al., arXiv 2204.00227).
    All but constant mean the same for whatever is predicted."""
    snr_gamma: float = 3.0
    """Gamma of min_snr and soft_min_snr."""
    p2_gamma: float = 1.0
    """Gamma of p2; at 0 it is the plain loss on epsilon."""
    p2_k: float = 1.0
    """k of p2."""
    weight_floor: float = 0.0
    """Smallest loss weight at any timestep. With zero terminal SNR all weightings but constant give the last timesteps
    next to none."""
    loss: str = "l2"
    """What is made of the error: l2 (its square), l1 (its absolute value) or huber (pseudo-Huber: the square of small
    errors, and in proportion to large ones)."""
    huber_delta: float = 0.1
    """Error at which huber turns from the one to the other."""
    huber_schedule: str = "snr"
    """How huber's delta depends on the timestep: constant, or falling from about 1 at the first to huber_delta (at most
    1) at the last, either as an exponential (Khrapov et al., arXiv 2403.16728) or with the signal-to-noise ratio
    (snr)."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        check_choice("diffusion.prediction", self.prediction, PREDICTIONS)
        check_choice("diffusion.beta_schedule", self.beta_schedule, BETA_SCHEDULES)
        check_choice("diffusion.weighting", self.weighting, WEIGHTINGS)
        check_choice("diffusion.loss", self.loss, LOSSES)
        check_choice("diffusion.huber_schedule", self.huber_schedule, HUBER_SCHEDULES)
        self._check_numbers()
        if self.prediction == "epsilon" and self.zero_terminal_snr:
            raise UserError(
                "diffusion.prediction=epsilon cannot go with zero_terminal_snr: from pure noise the noise says nothing "
                "about the picture; use prediction=v, or zero_terminal_snr=false"
            )
        for first, last in self.sampling.ranges:
            if last >= self.timesteps:
                raise UserError(
                    f"diffusion.sampling.ranges has [{first}, {last}]: the last timestep is {self.timesteps - 1}"
                )

    def _check_numbers(self) -> None:
        if not 0.0 < self.beta_start < self.beta_end < 1.0:
            raise UserError(
                f"diffusion.beta_start is {self.beta_start} and beta_end {self.beta_end}: "
                "they must rise and lie between 0 and 1"
            )
        if self.timesteps < 2:
            raise UserError(f"diffusion.timesteps is {self.timesteps}: use at least 2")
        check_above_zero("diffusion.snr_gamma", self.snr_gamma)
        check_above_zero("diffusion.p2_k", self.p2_k)
        check_above_zero("diffusion.huber_delta", self.huber_delta)
        check_not_negative("diffusion.p2_gamma", self.p2_gamma)
        check_not_negative("diffusion.weight_floor", self.weight_floor)
        if self.huber_delta > 1.0 and self.huber_schedule != "constant":
            raise UserError(
                f"diffusion.huber_delta is {self.huber_delta}, but under huber_schedule={self.huber_schedule} delta "
                "falls to it from 1: use a number up to 1, or huber_schedule=constant"
            )
