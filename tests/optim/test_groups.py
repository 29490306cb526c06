"""What trains, in which groups, at which rates."""

from functools import cache

import pytest
import torch
from diffusers import UNet2DConditionModel

from finetune.errors import UserError
from finetune.optim.config import OptimConfig, ScheduleConfig
from finetune.optim.groups import base_rates, parameter_groups, rates, unet_blocks

TEXT = ["text_encoder.embeddings.weight", "text_encoder.layers.0.fc1.weight", "text_encoder_2.layers.0.fc1.weight"]


@cache
def unet_names(sdxl: bool = False) -> list[str]:
    """The parameters of a UNet of SD1.5's or SDXL's levels; only their names are made."""
    plain, attention = "DownBlock2D", "CrossAttnDownBlock2D"
    kinds = [plain, attention, attention] if sdxl else [attention, attention, attention, plain]
    embeddings = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
        "transformer_layers_per_block": [1, 2, 10],
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=[8] * len(kinds),
            norm_num_groups=4,
            attention_head_dim=2,
            cross_attention_dim=8,
            down_block_types=kinds,
            up_block_types=[kind.replace("Down", "Up") for kind in reversed(kinds)],
            **(embeddings if sdxl else {}),
        )
    return [f"unet.{name}" for name, _ in unet.named_parameters()]


SD15 = {
    "conv_in": "IN00",
    "time_embedding.linear_1": "TIME",
    "down_blocks.0.resnets.0": "IN01",
    "down_blocks.0.attentions.1": "IN02",
    "down_blocks.0.downsamplers.0": "IN03",
    "down_blocks.1.attentions.0": "IN04",
    "down_blocks.1.downsamplers.0": "IN06",
    "down_blocks.2.resnets.1": "IN08",
    "down_blocks.2.downsamplers.0": "IN09",
    "down_blocks.3.resnets.0": "IN10",
    "down_blocks.3.resnets.1": "IN11",
    "mid_block.attentions.0": "MID",
    "up_blocks.0.resnets.0": "OUT00",
    "up_blocks.0.resnets.2": "OUT02",
    "up_blocks.0.upsamplers.0": "OUT02",
    "up_blocks.1.attentions.0": "OUT03",
    "up_blocks.1.upsamplers.0": "OUT05",
    "up_blocks.2.upsamplers.0": "OUT08",
    "up_blocks.3.resnets.0": "OUT09",
    "up_blocks.3.attentions.2": "OUT11",
    "conv_norm_out": "FINAL",
    "conv_out": "FINAL",
}
SDXL = {
    "conv_in": "IN00",
    "add_embedding.linear_1": "TIME",
    "down_blocks.0.resnets.1": "IN02",
    "down_blocks.0.downsamplers.0": "IN03",
    "down_blocks.1.attentions.0": "IN04",
    "down_blocks.1.downsamplers.0": "IN06",
    "down_blocks.2.attentions.0": "IN07",
    "down_blocks.2.resnets.1": "IN08",
    "mid_block.resnets.1": "MID",
    "up_blocks.0.attentions.0": "OUT00",
    "up_blocks.0.upsamplers.0": "OUT02",
    "up_blocks.1.attentions.2": "OUT05",
    "up_blocks.1.upsamplers.0": "OUT05",
    "up_blocks.2.resnets.0": "OUT06",
    "up_blocks.2.resnets.2": "OUT08",
}


@pytest.mark.parametrize(("sdxl", "known", "last_in", "last_out"), [(False, SD15, 11, 11), (True, SDXL, 8, 8)])
def test_blocks_are_those_of_latent_diffusion(sdxl: bool, known: dict[str, str], last_in: int, last_out: int) -> None:
    """Known pairs of diffusers' modules and the original's input_blocks.N, middle_block, output_blocks.N."""
    blocks = unet_blocks([*unet_names(sdxl), *TEXT])
    assert list(blocks) == unet_names(sdxl)
    for module, block in known.items():
        assert {b for name, b in blocks.items() if name.startswith(f"unet.{module}.")} == {block}, module
    expected = {f"IN{i:02}" for i in range(last_in + 1)} | {f"OUT{i:02}" for i in range(last_out + 1)}
    assert set(blocks.values()) == expected | {"MID", "TIME", "FINAL"}


def test_by_default_each_part_is_a_group_and_all_of_it_trains() -> None:
    groups = parameter_groups([*unet_names(), *TEXT], OptimConfig())
    assert list(groups) == ["unet", "text_encoder", "text_encoder_2"]
    assert [name for members in groups.values() for name in members] == [*unet_names(), *TEXT]


def test_a_rate_of_0_freezes_a_part() -> None:
    assert list(parameter_groups([*unet_names(), *TEXT], OptimConfig(text_encoder_lr=0.0))) == ["unet"]
    second = OptimConfig(text_encoder_lr=0.0, text_encoder_2_lr=1e-6)
    assert list(parameter_groups([*unet_names(), *TEXT], second)) == ["unet", "text_encoder_2"]


def test_patterns_choose_what_trains() -> None:
    config = OptimConfig(train=["unet.*.attn2.*", "text_encoder.layers.*"])
    groups = parameter_groups([*unet_names(), *TEXT], config)
    assert groups["unet"] == [name for name in unet_names() if ".attn2." in name]
    assert groups["text_encoder"] == ["text_encoder.layers.0.fc1.weight"]
    assert set(groups) == {"unet", "text_encoder"}


def test_blocks_with_a_factor_are_groups_of_their_own_and_0_freezes_them() -> None:
    config = OptimConfig(lr=1e-4, block_factors={"OUT*": 0.5, "OUT11": 2.0, "IN00": 0.0})
    names = [*unet_names(), *TEXT]
    groups = parameter_groups(names, config)
    blocks = unet_blocks(names)
    assert set(groups) == {"unet", "text_encoder", "text_encoder_2", *(f"unet.OUT{i:02}" for i in range(12))}
    for label, members in groups.items():
        if label.startswith("unet."):
            assert members == [name for name, block in blocks.items() if f"unet.{block}" == label]
    trained = [name for members in groups.values() for name in members]
    assert sorted(trained) == sorted(name for name in names if not name.startswith("unet.conv_in."))
    assert len(trained) == len(set(trained))
    base = base_rates(groups, config)
    assert (base["unet"], base["unet.OUT00"], base["unet.OUT11"]) == (1e-4, 0.5e-4, 2e-4)


def test_groups_are_in_the_order_of_the_names() -> None:
    names = [*TEXT, *unet_names()]
    groups = parameter_groups(names, OptimConfig(block_factors={"MID": 2.0}))
    assert sorted(groups, key=lambda label: names.index(groups[label][0])) == list(groups)
    assert all(sorted(members, key=names.index) == members for members in groups.values())


def test_rates_are_base_rates_times_each_part_s_schedule() -> None:
    config = OptimConfig(
        lr=1e-4,
        text_encoder_lr=2e-6,
        text_encoder_2_lr=1e-6,
        block_factors={"MID": 0.5},
        schedule=ScheduleConfig("linear"),
        text_encoder_schedule=ScheduleConfig("steps", steps="4e-6:10, 1e-6"),
    )
    labels = ["unet", "unet.MID", "text_encoder", "text_encoder_2"]
    assert rates(labels, config, 25, 100) == pytest.approx(
        {"unet": 0.75e-4, "unet.MID": 0.375e-4, "text_encoder": 1e-6, "text_encoder_2": 0.5e-6}
    )


def test_a_list_of_rates_holds_for_the_unet_and_scales_the_rest() -> None:
    config = OptimConfig(lr=1e-5, text_encoder_lr=1e-6, schedule=ScheduleConfig("steps", steps="5e-6:12000, 5e-7"))
    assert rates(["unet", "text_encoder"], config, 12_000, 20_000) == pytest.approx(
        {"unet": 5e-7, "text_encoder": 5e-8}
    )


def test_the_list_of_the_text_encoders_is_the_second_one_s_where_the_first_is_frozen() -> None:
    schedule = ScheduleConfig("steps", steps="3e-6")
    config = OptimConfig(text_encoder_lr=0.0, text_encoder_2_lr=1e-6, text_encoder_schedule=schedule)
    assert rates(["text_encoder_2"], config, 0, 10) == pytest.approx({"text_encoder_2": 3e-6})


def test_a_list_of_rates_for_text_encoders_that_are_frozen_harms_nobody() -> None:
    schedule = ScheduleConfig("steps", steps="3e-6")
    config = OptimConfig(
        lr=1e-5, text_encoder_lr=0.0, schedule=ScheduleConfig("linear"), text_encoder_schedule=schedule
    )
    assert rates(["unet", "text_encoder"], config, 5, 10) == pytest.approx({"unet": 5e-6, "text_encoder": 0.0})


@pytest.mark.parametrize("rate", [0.0, 1e-6])
def test_a_rate_for_a_second_text_encoder_asks_for_a_model_that_has_one(rate: float) -> None:
    config = OptimConfig(text_encoder_2_lr=rate)
    assert parameter_groups([*unet_names(), *TEXT], config)
    with pytest.raises(
        UserError, match=rf"optim\.text_encoder_2_lr is {rate}, but the model has no second text encoder"
    ):
        parameter_groups([*unet_names(), *TEXT[:2]], config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"train": ["unet.*", "vae.*"]},
            r"optim\.train has 'vae\.\*', which fits no parameter: names begin as 'un",
        ),
        (
            {"block_factors": {"IN12": 0.5}},
            r"optim\.block_factors has 'IN12', which fits none of .*: FINAL, IN00",
        ),
        ({"train": ["text_encoder.*"], "text_encoder_lr": 0.0}, r"nothing trains"),
        ({"block_factors": {"*": 0.0}, "text_encoder_lr": 0.0}, r"nothing trains"),
    ],
)
def test_what_fits_nothing_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parameter_groups([*unet_names(), *TEXT], OptimConfig(**settings))  # type: ignore[arg-type]


def test_a_unet_of_another_shape_has_no_blocks_to_name() -> None:
    names = [*unet_names(), "unet.position_net.null_positive_feature"]
    assert "unet" in parameter_groups(names, OptimConfig())
    with pytest.raises(UserError, match=r"unet\.position_net.* is in no block"):
        parameter_groups(names, OptimConfig(block_factors={"MID": 0.5}))
