"""Multi-resolution noise."""

import pytest
import torch

from finetune.diffusion.noise import interpolated_mean_square, pyramid, pyramid_sizes


def test_sizes_are_halved_down_to_one() -> None:
    assert pyramid_sizes(96, 72, 3) == [(48, 36), (24, 18), (12, 9)]
    assert pyramid_sizes(5, 12, 9) == [(2, 6), (1, 3), (1, 1)]
    assert pyramid_sizes(8, 8, 0) == []


def test_the_mean_square_of_interpolated_numbers_is_that_of_the_weights() -> None:
    # 2 numbers at 4 places: (1, 0), (3/4, 1/4), (1/4, 3/4), (0, 1)
    assert interpolated_mean_square(2, 4) == pytest.approx((1 + 10 / 16 + 10 / 16 + 1) / 4)
    assert interpolated_mean_square(1, 7) == pytest.approx(1.0)
    assert interpolated_mean_square(9, 9) == pytest.approx(1.0)


@pytest.mark.parametrize("discount", [0.3, 1.0])
@pytest.mark.parametrize(("height", "width", "levels"), [(5, 12, 2), (8, 6, 3), (6, 6, 9)])
def test_the_expected_mean_square_is_one(height: int, width: int, levels: int, discount: float) -> None:
    """The noise is linear in independent normal numbers, so its expected mean square is the sum over them of the mean
    square that each alone gives."""
    shapes = [(height, width), *pyramid_sizes(height, width, levels)]
    total = 0.0
    for level, (rows, columns) in enumerate(shapes):
        for place in range(rows * columns):
            numbers = [torch.zeros(1, *shape) for shape in shapes]
            numbers[level].view(-1)[place] = 1.0
            total += pyramid(numbers[0], numbers[1:], discount).square().mean().item()
    assert total == pytest.approx(1.0, rel=1e-5)


def test_levels_are_added_with_their_discounts() -> None:
    noise, half, single = torch.zeros(1, 2, 4), torch.zeros(1, 1, 2), torch.full((1, 1, 1), 8.0)
    half[..., 0] = 2.0
    found = pyramid(noise, [half, single], 0.5)[0]
    # Over the width, [2, 0] becomes [2, 1.5, 0.5, 0]; its mean square is that of two numbers at four places.
    scale = (1 + 0.25 * 0.8125 + 0.0625) ** 0.5
    row = [(0.5 * x + 0.25 * 8.0) / scale for x in (2.0, 1.5, 0.5, 0.0)]
    assert found.flatten().tolist() == pytest.approx([*row, *row], rel=1e-6)
