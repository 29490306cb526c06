"""What a recipe takes of a GPU's memory, predicted from the model's configuration alone."""

from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from math import prod

from finetune.config import Config
from finetune.data.buckets import bucket_sizes
from finetune.memory.activations import Activations, Size
from finetune.memory.filling import RESERVE, most_saved
from finetune.memory.states import Parameters, held
from finetune.model.assemble import Trainee
from finetune.model.config import CHUNK_TOKENS
from finetune.model.families import Components
from finetune.optim.groups import parameter_groups
from finetune.phases import Phase

CONTEXT = 3 << 28
"""Bytes that CUDA, cuBLAS, cuDNN and NCCL take beside torch's allocator: 0.75 GiB, which is usual and not measured."""


class Model:
    """A model without weights, of which is kept what has been counted."""

    def __init__(self, skeleton: Callable[[], Components]) -> None:
        """`skeleton` makes it on the meta device, anew at every call."""
        empty = skeleton()
        trainee = Trainee(empty)
        self.trainable = list(trainee.trainable)
        """Names of what can be trained at all."""
        self.sizes = {name: parameter.numel() for name, parameter in trainee.named_parameters()}
        """Of all parameters, by name."""
        self.vae_parameters = sum(parameter.numel() for parameter in empty.vae.parameters())
        self.activations = cache(lambda trained, precision: Activations(skeleton(), trained, precision))
        """By the names of what trains, as a tuple, and the precision."""


class Prediction:
    """Bytes by what they are for, of a rank in a phase."""

    def __init__(self, config: Config, phase: Phase, world: int, model: Model) -> None:
        """Count what does not depend on the room there is."""
        self._config = config
        trained = tuple(name for names in parameter_groups(model.trainable, phase.optim).values() for name in names)
        count = sum(model.sizes[name] for name in trained)
        parameters = Parameters(count, sum(model.sizes.values()) - count, max(model.sizes[name] for name in trained))
        width, height = max(bucket_sizes(phase.buckets).tolist(), key=prod)
        self.size = Size(phase.micro_batch, width, height, config.model.max_tokens // CHUNK_TOKENS)
        """Of the largest micro-batch."""
        always = held(parameters, phase.optim.name, config.ema, config.strategy, world)
        self._always = {**asdict(always), "vae": 4 * model.vae_parameters, "context": CONTEXT}
        self._activations = model.activations(trained, config.strategy.precision)

    def bytes(self, gpu: int | None = None) -> dict[str, int]:
        """All parts. What encodes the next micro-batch's pictures adds to the passes, beside which it runs.

        Args:
            gpu: bytes that there are, which `auto` fills with what blocks keep; None has it checkpoint all.
        """
        model, names = self._config.model, self._activations.block_names
        pictures = self.size._replace(samples=1) if model.vae_slicing else self.size
        encoding = 0 if self._config.data.latents else self._activations.encoding(pictures)
        always = {**self._always, "encoding": encoding}
        chosen = [] if model.gradient_checkpointing == "none" else names
        least = self._activations.training(self.size, chosen)
        if model.gradient_checkpointing == "auto" and gpu is not None:
            room = int((1.0 - RESERVE) * gpu) - sum(always.values()) - least
            kept = {block.name for block in most_saved(self._activations.blocks(self.size), room)}
            least = self._activations.training(self.size, [name for name in names if name not in kept])
        return {**always, "activations": least}
