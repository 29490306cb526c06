"""Where a device's time goes: kinds of kernels, and gaps."""

import pytest
import torch
from torch import nn

from tests.bench.kernels import IDLE, OTHERS, Span, busy, kind, profiled, shared_out


def test_shares_are_of_the_time_from_the_first_kernel_to_the_last() -> None:
    spans = [Span("sm90_gemm", 20.0, 40.0), Span("flash_fwd_kernel", 0.0, 10.0), Span("Memcpy HtoD", 30.0, 50.0)]
    shares = shared_out(spans).shares
    assert shares == {"matrix products": 0.4, "copies and casts": 0.4, IDLE: 0.2, "attention": 0.2}


def test_time_in_which_two_streams_are_busy_counts_once() -> None:
    assert busy([Span("a", 0.0, 10.0), Span("b", 2.0, 5.0), Span("c", 4.0, 12.0), Span("d", 20.0, 21.0)]) == 13.0


def test_what_is_of_no_kind_is_named() -> None:
    found = shared_out([Span("mystery", 0.0, 3.0), Span("enigma", 3.0, 10.0)])
    assert found.shares == {OTHERS: 1.0, IDLE: 0.0}
    assert list(found.others) == ["enigma", "mystery"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "matrix products"),
        ("sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x32", "convolutions"),
        ("void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816dgrad_optimized_bf16_128x128>", "convolutions"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>", "attention"),
        ("void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<float>", "norms"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>", "norms"),
        ("triton_red_fused_native_group_norm_silu_3", "norms"),
        ("void cudnn::engines_precompiled::nchwToNhwcKernel<__nv_bfloat16>", "layouts"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::bfloat16_copy_kernel_cuda>",
            "copies and casts",
        ),
        ("Memcpy HtoD (Pinned -> Device)", "copies and casts"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::silu_kernel>", "elementwise"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("void kPreconditionOptimizerStatic8bit2State<float, 0>", "optimizer"),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>", "sums"),
        ("triton_poi_fused_add_mul_7", "elementwise"),
    ],
)
def test_kernels_are_told_by_their_names(name: str, expected: str) -> None:
    assert kind(name) == expected


def test_a_step_on_the_cpu_is_shared_out_among_its_operators() -> None:
    layers = nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.Linear(288, 64))
    optimizer = torch.optim.AdamW(layers.parameters())

    def step() -> None:
        layers(torch.ones(2, 4, 8, 8)).sum().backward()
        optimizer.step()

    shares = profiled(step, torch.device("cpu")).shares
    assert {"convolutions", "norms", "matrix products", "elementwise", IDLE} <= shares.keys()
    assert sum(shares.values()) == pytest.approx(1.0)
