"""The optimizers as their papers have them, in float64: (parameters, gradients, rates, weight decay) -> parameters."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
FIRST_ESTIMATE = 1e-3
"""d_0 of Prodigy and D-Adaptation; at their own 1e-6 the first movements drown in fp32's rounding."""


def adamw(x: Array, gradients: Sequence[Array], rates: Sequence[float], decay: float) -> Array:
    """Loshchilov and Hutter, arXiv 1711.05101, algorithm 2; betas 0.9, 0.999, eps 1e-8."""
    m = v = np.zeros_like(x)
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), 1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        x = x - lr * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + decay * x)
    return x


def lion(x: Array, gradients: Sequence[Array], rates: Sequence[float], decay: float) -> Array:
    """Chen et al., arXiv 2302.06675, program 1; betas 0.9, 0.99."""
    m = np.zeros_like(x)
    for g, lr in zip(gradients, rates, strict=True):
        x = x - lr * (np.sign(0.9 * m + 0.1 * g) + decay * x)
        m = 0.99 * m + 0.01 * g
    return x


def adopt(x: Array, gradients: Sequence[Array], rates: Sequence[float], decay: float) -> Array:
    """Taniguchi et al., arXiv 2411.02853, with the bound t^(1/4); betas 0.9, 0.9999, eps 1e-6."""
    x = x - rates[0] * decay * x
    m, v = np.zeros_like(x), gradients[0] ** 2
    for t, (g, lr) in enumerate(zip(gradients[1:], rates[1:], strict=True), 1):
        m = 0.9 * m + 0.1 * np.clip(g / np.maximum(np.sqrt(v), 1e-6), -(t**0.25), t**0.25)
        x = x - lr * (m + decay * x)
        v = 0.9999 * v + 0.0001 * g**2
    return x


def nesterov(x: Array, gradients: Sequence[Array], rates: Sequence[float], decay: float) -> Array:
    """Sutskever et al. 2013 with its velocity in units of the gradient (Bengio et al., arXiv 1212.0901, eq. 7)."""
    v = np.zeros_like(x)
    for g, lr in zip(gradients, rates, strict=True):
        d = g + decay * x
        v = 0.9 * v + d
        x = x - lr * (d + 0.9 * v)
    return x


def momentum(x: Array, gradients: Sequence[Array], rates: Sequence[float], decay: float) -> Array:
    """Polyak's heavy ball, 0.9."""
    v = np.zeros_like(x)
    for g, lr in zip(gradients, rates, strict=True):
        v = 0.9 * v + g + decay * x
        x = x - lr * v
    return x


def prodigy(x: Array, gradients: Sequence[Array], rates: Sequence[float], decay: float) -> Array:
    """Mishchenko and Defazio, arXiv 2306.06101, algorithm 4 with decoupled decay; r and s are divided by d_0."""
    d0 = d = FIRST_ESTIMATE
    x0, beta = x, math.sqrt(0.999)
    m = v = s = np.zeros_like(x)
    r = 0.0
    for g, lr in zip(gradients, rates, strict=True):
        m = 0.9 * m + 0.1 * d * g
        v = 0.999 * v + 0.001 * (d * g) ** 2
        r = beta * r + lr * d**2 / d0 * float(g @ (x0 - x))
        s = beta * s + lr * d**2 / d0 * g
        rate, d = lr * d, max(d, r / np.abs(s).sum())
        x = x - rate * (m / (np.sqrt(v) + d * 1e-8) + decay * x)
    return x


def dadapt_adam(x: Array, gradients: Sequence[Array], rates: Sequence[float], decay: float) -> Array:
    """Defazio and Mishchenko, arXiv 2301.07733, Adam with D-Adaptation in the inner-product form; decoupled decay."""
    d, beta, r = FIRST_ESTIMATE, math.sqrt(0.999), 0.0
    m = v = s = np.zeros_like(x)
    for g, lr in zip(gradients, rates, strict=True):
        rate = lr * d
        r = beta * r + (1 - beta) * rate * float(g @ (s / (np.sqrt(v) + 1e-8)))
        m = 0.9 * m + 0.1 * rate * g
        v = 0.999 * v + 0.001 * g**2
        s = beta * s + (1 - beta) * rate * g
        d = max(d, r / ((1 - beta) * np.abs(s).sum()))
        x = x - m / (np.sqrt(v) + 1e-8) - rate * decay * x
    return x


def schedule_free_adamw(x: Array, gradients: Sequence[Array], rates: Sequence[float], decay: float) -> Array:
    """Defazio et al., arXiv 2405.15682, algorithm 1, with the second moment corrected in place of the rate, as in the
    authors' code. Returns y, what is trained."""
    z, y, v, weights = x, x, np.zeros_like(x), 0.0
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), 1):
        v = 0.999 * v + 0.001 * g**2
        step = g / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + decay * y
        weight = max(rates[:t]) ** 2
        weights += weight
        z = z - lr * step
        x = x + weight / weights * (z - x)
        y = 0.1 * z + 0.9 * x
    return y
