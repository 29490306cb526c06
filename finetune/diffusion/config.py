"""What a recipe says about noise and loss."""

from dataclasses import dataclass

from finetune.checks import check_choice
from finetune.errors import UserError

WEIGHTINGS = ("constant", "soft_min_snr")


@dataclass
class DiffusionConfig:
    """The forward process and the objective; the model predicts v (Salimans & Ho, arXiv 2202.00512)."""

    beta_start: float = 0.00085
    """First beta of the scaled-linear schedule; SD's value."""
    beta_end: float = 0.012
    """Last beta of the scaled-linear schedule; SD's value."""
    timesteps: int = 1000
    """Number of diffusion timesteps."""
    zero_terminal_snr: bool = True
    """Rescale the betas so that the last timestep is pure noise (Lin et al., arXiv 2305.08891)."""
    weighting: str = "soft_min_snr"
    """Loss weight by timestep: constant or soft_min_snr."""
    snr_gamma: float = 3.0
    """Gamma of soft min-SNR."""
    weight_floor: float = 0.0
    """Smallest loss weight at any timestep. Soft min-SNR alone gives the last, noisiest steps next to none."""
    input_perturbation: float = 0.0
    """Extra noise added to the model's input but not to its target (Ning et al., arXiv 2301.11706), relative to the
    noise."""

    def __post_init__(self) -> None:
        check_choice("diffusion.weighting", self.weighting, WEIGHTINGS)
        if not 0.0 < self.beta_start < self.beta_end < 1.0:
            raise UserError(
                f"diffusion.beta_start is {self.beta_start} and beta_end {self.beta_end}: "
                "they must rise and lie between 0 and 1"
            )
        if self.timesteps < 2:
            raise UserError(f"diffusion.timesteps is {self.timesteps}: use at least 2")
        if self.snr_gamma <= 0.0:
            raise UserError(f"diffusion.snr_gamma is {self.snr_gamma}: use a number above 0")
        if self.weight_floor < 0.0 or self.input_perturbation < 0.0:
            raise UserError("diffusion.weight_floor and diffusion.input_perturbation must not be negative")
