"""Optimizers by name."""

import copy
from collections.abc import Callable
from pathlib import Path

import bitsandbytes
import numpy as np
import pytest
import torch
from torch import nn

from finetune.errors import UserError
from finetune.optim.config import ESTIMATORS, OptimConfig, ScheduleConfig, state_kind
from finetune.optim.config import OPTIMIZERS as ALLOWED
from finetune.optim.optimizers import FUSED, OPTIMIZERS, build_optimizer, check_optimizer
from tests.optim import published

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")

ROOT = Path(__file__).resolve().parents[2]
RATES = {**dict.fromkeys(ALLOWED, 0.02), "sgd": 0.01, "sgd8bit": 0.01, "prodigy": 1.0, "dadapt_adam": 0.3}


def config(name: str, **settings: object) -> OptimConfig:
    """One rate for all, which never falls."""
    lr = RATES.get(name, 0.02)
    given = {"lr": lr, "text_encoder_lr": lr, "schedule": ScheduleConfig(name="constant"), **settings}
    return OptimConfig(name=name, **given)  # type: ignore[arg-type]


class Momentum(torch.optim.SGD):
    """A user's own optimizer."""

    def __init__(self, params: object, lr: float, weight_decay: float = 0.0, drag: float = 0.1) -> None:
        super().__init__(params, lr=lr, momentum=1 - drag, weight_decay=weight_decay)  # type: ignore[arg-type]


class Modes(torch.optim.SGD):
    """One that begins with its average, and takes anything."""

    mode = "average"

    def __init__(self, params: object, **settings: float) -> None:
        super().__init__(params, **settings)  # type: ignore[arg-type]

    def train(self) -> None:
        """As schedule-free optimizers have it."""
        self.mode = "train"


class Undone(torch.optim.SGD):
    """One that has no step yet."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """None."""
        raise NotImplementedError


def test_every_name_that_is_allowed_can_be_built_and_chosen() -> None:
    choices = (ROOT / "conf" / "optim").glob("*.yaml")
    assert set(ALLOWED) == set(OPTIMIZERS) == {path.stem for path in choices}


@pytest.mark.parametrize("name", ALLOWED)
def test_groups_keep_their_order_name_and_the_recipe_s_values(name: str) -> None:
    groups = {"unet": [nn.Parameter(torch.ones(5000))], "text_encoder": [nn.Parameter(torch.ones(3))]}
    given = {"betas": [0.8, 0.95], "eps": 1e-7, "weight_decay": 0.2}
    optimizer = build_optimizer(config(name, **{key: given[key] for key in ALLOWED[name]}), groups)
    assert [(g["name"], g["params"]) for g in optimizer.param_groups] == list(groups.items())
    for group in optimizer.param_groups:
        assert {key: group[key] for key in ALLOWED[name]} == {
            key: (0.8, 0.95) if key == "betas" else given[key] for key in ALLOWED[name]
        }


@pytest.mark.parametrize("name", ALLOWED)
def test_defaults_and_memory_are_those_of_the_page(name: str) -> None:
    """Bytes of state of a matrix of 65,536 parameters, rounded to whole bytes per parameter."""
    page = (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    betas, eps, decay, size = (cell.strip() for cell in row.split("|")[4:8])
    parameter = nn.Parameter(torch.ones(256, 256))
    optimizer = build_optimizer(config(name), {"unet": [parameter]})
    stated = {"betas": tuple(map(float, betas.split(","))) if betas else None, "eps": eps and float(eps)}
    for key in ALLOWED[name]:
        assert optimizer.defaults[key] == {**stated, "weight_decay": float(decay)}[key]
    parameter.grad = torch.ones(256, 256)
    optimizer.step()
    state = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    assert round(sum(value.nbytes for value in state) / 65_536) == int(size)


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_adamw_has_the_values_it_always_had(name: str) -> None:
    (group,) = build_optimizer(OptimConfig(name=name), {"unet": [nn.Parameter(torch.ones(3))]}).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-5, (0.9, 0.999), 1e-8, 0.01)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("adamw", published.adamw),
        ("adamw8bit", published.adamw),
        ("paged_adamw", published.adamw),
        ("paged_adamw8bit", published.adamw),
        ("lion", published.lion),
        ("lion8bit", published.lion),
        ("adopt", published.adopt),
        ("sgd", published.nesterov),
        ("sgd8bit", published.momentum),
        ("prodigy", published.prodigy),
        ("dadapt_adam", published.dadapt_adam),
        ("schedule_free_adamw", published.schedule_free_adamw),
    ],
)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_those_of_the_paper_at_rates_that_change(
    name: str, formula: Callable[..., published.Array], decay: float
) -> None:
    """20 steps of 20 parameters, which bitsandbytes keeps in fp32, along noisy gradients of a common direction, so that
    estimates of the rate grow; fp32 against float64, to 1e-4 of the movement and 20 roundings of a parameter."""
    draws = np.random.default_rng(0)
    start, direction = draws.normal(size=20), draws.normal(size=20)
    gradients = [direction + 0.5 * draws.normal(size=20) for _ in range(20)]
    rates = [RATES[name] * share for share in draws.uniform(0.2, 1.0, 20)]
    parameters = [nn.Parameter(torch.tensor(half, dtype=torch.float32)) for half in (start[:8], start[8:])]
    groups = {"unet": parameters[:1], "text_encoder": parameters[1:]}
    options = {"d0": published.FIRST_ESTIMATE} if name in ESTIMATORS else {}
    optimizer = build_optimizer(config(name, weight_decay=decay, options=options), groups)
    for gradient, rate in zip(gradients, rates, strict=True):
        for group, half in zip(optimizer.param_groups, (gradient[:8], gradient[8:]), strict=True):
            group["lr"] = rate
            group["params"][0].grad = torch.tensor(half, dtype=torch.float32)
        optimizer.step()
    expected = formula(start, gradients, rates, decay)
    after = torch.cat(parameters).detach().double().numpy()
    moved = np.abs(expected - start).max()
    assert moved > 0.01
    assert np.abs(after - expected).max() <= 1e-4 * moved + 20 * 2.0**-23


def test_adafactor_steps_relative_to_the_tensor_with_factored_moments() -> None:
    """Shazeer and Stern, arXiv 1804.04235, algorithm 4: the first step, where the second moment is that of the
    gradient alone, by hand; fp32 against float64, 1e-5."""
    draws = np.random.default_rng(0)
    start, gradient = draws.normal(size=(6, 4)), draws.normal(size=(6, 4))
    parameter = nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimizer = build_optimizer(config("adafactor"), {"unet": [parameter]})
    parameter.grad = torch.tensor(gradient, dtype=torch.float32)
    optimizer.step()
    square = gradient**2
    update = gradient / np.sqrt(np.outer(square.mean(1), square.mean(0)) / square.mean())
    update /= max(1.0, np.sqrt((update**2).mean()))
    expected = start - RATES["adafactor"] * np.sqrt((start**2).mean()) * update
    assert parameter.detach().double().numpy() == pytest.approx(expected, rel=1e-5)
    assert {tuple(v.shape) for v in optimizer.state[parameter].values()} == {(), (6, 1), (1, 4)}


def regression() -> tuple[nn.Sequential, Callable[[torch.optim.Optimizer, int], list[float]]]:
    """A small network and what trains it for some steps: the losses. Its 8,192 weights are enough for 8 bits."""
    draws = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 8))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1, generator=draws)
    inputs = torch.randn(64, 64, generator=draws)
    targets = torch.tanh(inputs[:, :8] + inputs[:, 8:16])

    def train(optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            loss = nn.functional.mse_loss(network(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    return network, train


def grouped(network: nn.Sequential) -> dict[str, list[nn.Parameter]]:
    return {"unet": list(network[0].parameters()), "text_encoder": list(network[2].parameters())}


@pytest.mark.parametrize("name", ALLOWED)
def test_thirty_steps_lower_the_loss_and_resume_exactly_from_the_fifteenth(name: str) -> None:
    network, train = regression()
    optimizer = build_optimizer(config(name), grouped(network))
    first = train(optimizer, 15)
    state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(network.state_dict())
    rest = train(optimizer, 15)
    assert rest[-1] < 0.25 * first[0]

    again, train_again = regression()
    resumed = build_optimizer(config(name), grouped(again))
    train_again(resumed, 2)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert train_again(resumed, 15) == rest
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters(), strict=True))


@pytest.mark.parametrize("name", ALLOWED)
def test_a_first_step_at_rate_0_moves_nothing(name: str) -> None:
    network, train = regression()
    before = copy.deepcopy(network.state_dict())
    optimizer = build_optimizer(config(name, weight_decay=0.1), grouped(network))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(optimizer, 1)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "class_"), [("adamw8bit", "AdamW8bit"), ("lion8bit", "Lion8bit"), ("sgd8bit", "SGD8bit")]
)
def test_8_bit_keeps_its_moments_in_bytes(name: str, class_: str) -> None:
    network, train = regression()
    optimizer = build_optimizer(config(name), grouped(network))
    train(optimizer, 1)
    assert isinstance(optimizer, getattr(bitsandbytes.optim, class_))
    assert optimizer.state[network[0].weight]["state1"].dtype == torch.uint8


def test_schedule_free_trains_at_once_and_gives_its_average_when_asked() -> None:
    """x = y + (1 - 1/0.9)(z - y), since y = 0.1 z + 0.9 x; fp32, 1e-6."""
    network, train = regression()
    optimizer = build_optimizer(config("schedule_free_adamw"), grouped(network))
    train(optimizer, 5)
    weight = network[0].weight
    y, z = weight.detach().clone(), optimizer.state[weight]["z"]
    optimizer.eval()  # type: ignore[attr-defined]
    assert torch.allclose(weight, (y - 0.1 * z) / 0.9, atol=1e-6)
    assert not torch.allclose(weight, y, atol=1e-4)


@pytest.mark.parametrize("name", ["adopt", "lion", "prodigy", "dadapt_adam", "schedule_free_adamw"])
def test_steps_in_batches_of_tensors_as_on_a_gpu_are_the_same(name: str) -> None:
    """Losses of 10 steps on both of pytorch_optimizer's paths; fp32 in another order, 1e-4."""
    losses = []
    for batched in (True, False):
        network, train = regression()
        options = {"foreach": batched}
        losses.append(train(build_optimizer(config(name, options=options), grouped(network)), 10))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("name", FUSED)
def test_steps_in_fused_kernels_are_the_same(name: str) -> None:
    """Losses of 10 steps; fp32 in another order, 1e-4."""
    losses = []
    for fused in (True, False):
        network, train = regression()
        losses.append(train(build_optimizer(config(name, options={"fused": fused}), grouped(network)), 10))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fused_kernels_are_for_gpus(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = [nn.Parameter(torch.ones(3))]
    assert not build_optimizer(config(name), {"unet": parameters}).param_groups[0].get("fused")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fused = build_optimizer(config(name), {"unet": parameters}).param_groups[0].get("fused")
    assert bool(fused) == (name in FUSED)
    if name in FUSED:
        overridden = build_optimizer(config(name, options={"fused": False}), {"unet": parameters})
        assert overridden.param_groups[0]["fused"] is False


def test_options_override_what_makes_it_the_published_one() -> None:
    parameter = nn.Parameter(torch.ones(3))
    built = build_optimizer(config("sgd", options={"momentum": 0.5, "nesterov": False}), {"unet": [parameter]})
    assert (built.defaults["momentum"], built.defaults["nesterov"]) == (0.5, False)


def test_a_user_s_own_class_is_built_and_put_into_its_mode_for_training() -> None:
    groups = {"unet": [nn.Parameter(torch.ones(3))]}
    own = build_optimizer(config(f"{__name__}:Momentum", weight_decay=0.5, options={"drag": 0.3}), groups)
    assert (type(own).__name__, own.defaults["momentum"], own.defaults["weight_decay"]) == ("Momentum", 0.7, 0.5)
    assert own.param_groups[0]["name"] == "unet"
    modes = build_optimizer(config(f"{__name__}:Modes", options={"momentum": 0.5}), groups)
    assert (modes.mode, modes.defaults["momentum"]) == ("train", 0.5)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "sgd8bit", "options": {"nesterov": True}}, r"optim\.options\.nesterov is given but sgd8bit takes"),
        ({"name": "adamw8bit", "options": {"amsgrad": True}}, r"optim\.options\.amsgrad is given but adamw8bit takes"),
        ({"name": "adopt", "options": {"cautious": True}}, r"optim\.options\.cautious is given but adopt takes lr, "),
        ({"name": "adamw", "options": {"momentum": 0.5}}, r"optim\.options\.momentum is given but adamw takes"),
        ({"name": "sgd", "options": {"momentum": 0.0}}, r"sgd refuses its arguments \(ValueError: Nesterov"),
        ({"name": "adamw", "options": {"fused": True, "foreach": True}}, r"adamw refuses its arguments \(RuntimeError"),
        ({"name": "sgd8bit", "options": {"momentum": 0}}, r"sgd8bit refuses its arguments \(NotImplementedError"),
        ({"name": "adopt", "options": {"clip_lambda": 5}}, r"adopt cannot take a step with its arguments \(TypeError"),
        ({"name": "torch.optim:LBFGS"}, r"LBFGS cannot take a step .*'closure'\): mend them, or use another"),
        ({"name": "torch.optim:SparseAdam"}, r"SparseAdam cannot take a step .*dense gradients"),
        ({"name": f"{__name__}:Undone"}, r"Undone cannot take a step with its arguments \(NotImplementedError:\)"),
        ({"name": "no_such_module:Sgd"}, r"No module named 'no_such_module'\): give a module that Python finds"),
        ({"name": "torch.optim:Sgd"}, r"has no attribute 'Sgd'"),
        ({"name": "torch.nn:Linear"}, r"torch\.nn:Linear, which is no torch\.optim\.Optimizer"),
        ({"name": f"{__name__}:Momentum", "betas": [0.9, 0.99]}, r"optim\.betas is given but .*:Momentum takes lr, "),
        ({"name": f"{__name__}:Momentum", "options": {"m": 1}}, r"optim\.options\.m is given but .*:Momentum takes lr"),
        ({"name": f"{__name__}:Modes", "options": {"drag": 1}}, r"Modes refuses its arguments \(TypeError: .*'drag'"),
    ],
)
def test_what_an_optimizer_does_not_take_is_refused_before_a_model_is_there(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_optimizer(config(**settings))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*ALLOWED, "torch.optim:Muon", "torch.optim:NAdam", f"{__name__}:Momentum"])
def test_what_can_train_passes(name: str) -> None:
    check_optimizer(config(name))


@pytest.mark.parametrize("text", ["class Own(:", "no_such_name", "1 / 0", "raise OSError('no such file')"])
def test_a_user_s_module_that_cannot_be_read_is_named(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"optim\.name is broken_module:Own \(\w+Error: .*\): give a module") as caught:
        check_optimizer(config("broken_module:Own"))
    assert "\n" not in str(caught.value)


def test_an_optimizer_for_one_group_is_refused_where_there_are_several() -> None:
    network, _ = regression()
    with pytest.raises(UserError, match=r"LBFGS refuses its arguments \(ValueError"):
        build_optimizer(config("torch.optim:LBFGS"), grouped(network))


def test_optimizers_whose_state_means_the_same_share_a_kind() -> None:
    kinds: dict[str, set[str]] = {}
    for name in ALLOWED:
        kinds.setdefault(state_kind(config(name)), set()).add(name)
    shared = {kind: names for kind, names in kinds.items() if len(names) > 1}
    assert shared == {
        "adam": {"adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit"},
        "lion": {"lion", "lion8bit"},
        "sgd": {"sgd", "sgd8bit"},
    }
    assert state_kind(config("torch.optim:Adam")) == "torch.optim:Adam"
