"""What trains, as one module: DeepSpeed wraps a single model, and one forward pass needs all of it."""

from collections.abc import Collection

from torch import Tensor, nn

from finetune.model.families import Components


class Trainee(nn.Module):
    """UNet and text encoders: noised latents and token ids in, the UNet's prediction out.

    Parameters are named `unet.…`, `text_encoder.…` and, of SDXL, `text_encoder_2.…`.
    """

    trainable: dict[str, nn.Parameter]
    """What gets a gradient at all, by name: everything but the layers that clip skip passes over."""

    def __init__(self, components: Components) -> None:
        super().__init__()
        self.unet = components.unet.train()
        for name, text_encoder in components.text_encoders.items():
            self.add_module(name, text_encoder)
        self._encode = components.prompt_encoder
        unused = {parameter for module in self._encode.unused() for parameter in module.parameters()}
        self.trainable = {name: p for name, p in self.named_parameters() if p not in unused}
        self.train_only(self.trainable)

    def train_only(self, names: Collection[str]) -> None:
        """Let these of the `trainable` parameters get gradients and no others; a text encoder without one of them is
        in evaluation mode."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in names)
        for text_encoder in self._encode.encoders:
            text_encoder.train(any(parameter.requires_grad for parameter in text_encoder.parameters()))

    def forward(
        self, latents: Tensor, timesteps: Tensor, input_ids: Tensor, chunk_rows: Tensor, size_and_crop: Tensor
    ) -> Tensor:
        """Predict what the model was trained to predict, [B, C, h, w].

        Args:
            latents: noised, [B, C, h, w].
            timesteps: int64 [B].
            input_ids: int64 [R, encoders, 77], the chunks that prompts consist of.
            chunk_rows: int64 [B, chunks], the row in which each chunk of a prompt stands.
            size_and_crop: int64 [B, 6] of original height and width, top and left of the crop, height and width of the
                bucket in pixels, which SDXL is told (arXiv 2307.01952, section 2.2).
        """
        states, pooled = self._encode(input_ids, chunk_rows)
        told = None if pooled is None else {"text_embeds": pooled, "time_ids": size_and_crop.float()}
        prediction: Tensor = self.unet(latents, timesteps, encoder_hidden_states=states, added_cond_kwargs=told).sample
        return prediction
