"""Models of SD1.5's shape, small enough for a CPU: random weights, a tokenizer of their own, a VAE taught quickly."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from finetune.checkpoint.export import build_pipeline
from finetune.data.hashing import CounterRng, purpose_key
from finetune.diffusion.config import DiffusionConfig
from finetune.model.families import Components
from finetune.model.text import PromptEncoder

WORD_END = "</w>"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORDS = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
KL_WEIGHT = 1e-4


@dataclass(frozen=True)
class TinySizes:
    """Channels of the parts; as many levels as there are numbers."""

    unet: tuple[int, ...] = (64, 128)
    vae: tuple[int, ...] = (16, 32, 48)
    text: int = 64
    text_layers: int = 3


def train_tokenizer(texts: Iterable[str], folder: Path) -> CLIPTokenizer:
    """A byte-pair tokenizer as CLIP's (Radford et al., arXiv 2103.00020), trained on some texts, saved and loaded."""
    tokenizer = Tokenizer(models.BPE(unk_token=EOS, end_of_word_suffix=WORD_END, continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(WORDS, behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=[BOS, EOS],
        end_of_word_suffix=WORD_END,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    _, merges = (Path(file) for file in tokenizer.model.save(str(folder)))
    # The trainer numbers its alphabet anew each time; CLIP's order makes the ids a function of the merges.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    joined = [line.replace(" ", "") for line in merges.read_text(encoding="utf-8").splitlines()[1:]]
    tokens = [*alphabet, *(letter + WORD_END for letter in alphabet), *joined, BOS, EOS]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=77)


def save_tiny_model(
    folder: Path, tokenizer: CLIPTokenizer, sizes: TinySizes, *, seed: int = 0, vae: AutoencoderKL | None = None
) -> None:
    """Save a model of random weights as a diffusers folder, with the VAE that is given or a random one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the layers' initialisation knows no other generator
        vae = vae or tiny_vae(sizes)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=sizes.text,
                intermediate_size=4 * sizes.text,
                num_hidden_layers=sizes.text_layers,
                num_attention_heads=4,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = _tiny_unet(sizes, vae.config.latent_channels)
    components = Components(unet, vae, PromptEncoder([text_encoder], 1, "trim"), (tokenizer,))
    build_pipeline(components, DiffusionConfig()).save_pretrained(folder)


def tiny_vae(sizes: TinySizes) -> AutoencoderKL:
    """A VAE of random weights; every level but the first halves the picture."""
    return AutoencoderKL(
        block_out_channels=sizes.vae,
        down_block_types=("DownEncoderBlock2D",) * len(sizes.vae),
        up_block_types=("UpDecoderBlock2D",) * len(sizes.vae),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
    )


def teach_vae(vae: AutoencoderKL, pictures: Tensor, steps: int, progress: Callable[[float], None]) -> None:
    """Teach a VAE to reconstruct pictures, and set its scaling factor so that latents have a deviation of 1.

    Args:
        pictures: uint8 [N, 3, H, W].
        progress: told the loss of every step.
    """
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    rng = CounterRng(purpose_key(0, "vae batches"))
    for _ in range(steps):
        chosen = torch.from_numpy((rng.uniforms(16) * len(pictures)).astype(np.int64))
        images = pictures[chosen].float() / 127.5 - 1.0
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample(generator)).sample
        loss = (decoded - images).abs().mean() + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(loss.item())
    with torch.no_grad():
        latents = vae.encode(pictures[:256].float() / 127.5 - 1.0).latent_dist.mean
    vae.register_to_config(scaling_factor=1.0 / latents.std().item())


def _tiny_unet(sizes: TinySizes, latent_channels: int) -> UNet2DConditionModel:
    """As SD1.5's: cross-attention on every level but the deepest, which has none where there are more than two."""
    levels = len(sizes.unet)
    plain_last = levels > 2
    down = ["CrossAttnDownBlock2D"] * (levels - plain_last) + ["DownBlock2D"] * plain_last
    up = ["UpBlock2D"] * plain_last + ["CrossAttnUpBlock2D"] * (levels - plain_last)
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=sizes.unet,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=1,
        cross_attention_dim=sizes.text,
        attention_head_dim=4,
        norm_num_groups=8,
    )
