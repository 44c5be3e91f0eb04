"""The checker finds violations: for each law there is a small broken memory."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from scrubjay.memory import Memory, MemoryConfig, MemoryLawError, check_memory, make_config

DIM = 8


class Sound(nn.Module):
    """Valid user-defined memory without a base class: h' = tanh(W x + U h)."""

    dim = DIM
    retrieves = False

    def __init__(self):
        super().__init__()
        self.inward, self.recurrent = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM, bias=False)

    def initial_state(self, batch_size):
        return {"hidden": self.inward.weight.new_zeros(batch_size, DIM)}

    def update(self, x, hidden):
        return torch.tanh(self.inward(x) + self.recurrent(hidden))

    def reset(self, hidden, start):
        return torch.where(start[:, None], 0, hidden)

    def forward(self, x, state, start=None):
        hidden, outputs = state["hidden"], []
        for t in range(x.shape[1]):
            if start is not None:
                hidden = self.reset(hidden, start[:, t])
            hidden = self.update(x[:, t], hidden)
            outputs.append(hidden)
        return torch.stack(outputs, dim=1), {"hidden": hidden}


class ForgetsBetweenSegments(Sound):
    def forward(self, x, state, start=None):
        return super().forward(x, {"hidden": torch.zeros_like(state["hidden"])}, start)


class GradientCutAtSegments(Sound):
    def forward(self, x, state, start=None):
        return super().forward(x, {"hidden": state["hidden"].detach()}, start)


class LetsRoundingDecide(Sound):
    """Memory clipped at 1, whose value under constant inputs is 1, or one rounding less in single steps."""

    def forward(self, x, state, start=None):
        before, outputs = state["hidden"], []
        for t in range(x.shape[1]):
            before = before if start is None else self.reset(before, start[:, t])
            growth = torch.exp(x[:, t] - before) * (1 if x.shape[1] > 1 else 1 - 2**-23)
            outputs.append(torch.where(growth < 1, growth, 1))
            before = x[:, t].clone()
        return torch.stack(outputs, dim=1), {"hidden": before}


class TurnsByTheClock(Sound):
    """Memory with an angle that segments add and single steps multiply; float32 differs at high ages."""

    def initial_state(self, batch_size):
        return super().initial_state(batch_size) | {"time": torch.zeros(batch_size, dtype=torch.int64)}

    def forward(self, x, state, start=None):
        times, outputs, time = [], [], state["time"]
        for t in range(x.shape[1]):
            time = time if start is None else torch.where(start[:, t], 0, time)
            times.append(time)
            time = time + 1
        y, after = super().forward(x, state, start)
        first_angle = 0.3 * times[0].to(x.dtype)
        for t, now in enumerate(times):
            later = first_angle + 0.3 * t
            outputs.append(
                y[:, t] * torch.where(now == times[0] + t, later, 0.3 * now).to(x.dtype).cos()[:, None]
            )
        return torch.stack(outputs, dim=1), after | {"time": time}


class MultipliesByZero(Sound):
    def reset(self, hidden, start):
        return hidden * ~start[:, None]


class OverflowsBeforeIt(Sound):
    """Memory that ignores NaN and inf, but adds 0 times a square that overflows."""

    def forward(self, x, state, start=None):
        y, after = super().forward(x, state, start)
        finite = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
        return y + 0 * (finite * finite).sum(dim=1, keepdim=True), after


class IgnoresStart(Sound):
    def reset(self, hidden, start):
        return hidden


class LooksAhead(Sound):
    def forward(self, x, state, start=None):
        y, after = super().forward(x, state, start)
        return y + 0.01 * torch.cat([y[:, 1:], y[:, -1:]], dim=1), after


class MixesRows(Sound):
    def update(self, x, hidden):
        return super().update(x - 0.1 * x.mean(dim=0), hidden)


class Grows(Sound):
    def forward(self, x, state, start=None):
        y, after = super().forward(x, {"hidden": state["hidden"][:, :DIM]}, start)
        return y, {"hidden": torch.cat([after["hidden"], state["hidden"][:, :1]], dim=1)}


class Miscounts(Sound):
    def state_bytes(self, batch_size=1):
        return 4


class HidesALog(Sound):
    def __init__(self):
        super().__init__()
        self.log = []

    def forward(self, x, state, start=None):
        self.log.append(x.detach().clone())
        return super().forward(x, state, start)


class Explodes(Sound):
    def update(self, x, hidden):
        return self.inward(x) + 1.1 * self.recurrent(hidden) + 1.1 * hidden


class Resonates(Sound):
    """Memory that doubles its state at every input that is `factor` times the one before."""

    factor = 1.0

    def initial_state(self, batch_size):
        state = super().initial_state(batch_size)
        return state | {"last": torch.full_like(state["hidden"], torch.nan)}

    def forward(self, x, state, start=None):
        hidden, last, outputs = state["hidden"], state["last"], []
        for t in range(x.shape[1]):
            equal = (x[:, t] == self.factor * last).all(dim=1, keepdim=True) & (x[:, t] != 0)
            hidden = torch.where(equal, 2 * hidden, self.update(x[:, t], hidden))
            last = x[:, t].clone()
            outputs.append(hidden)
        return torch.stack(outputs, dim=1), {"hidden": hidden, "last": last}


class ResonatesWithAlternation(Resonates):
    factor = -1.0


class DividesByTheInput(Sound):
    def update(self, x, hidden):
        return super().update(x / x.norm(dim=1, keepdim=True), hidden)


class HidesState(Sound):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x, state, start=None):
        self.calls += 1
        y, after = super().forward(x, state, start)
        return y + 0.1 * self.calls, after


class WritesInPlace(Sound):
    def forward(self, x, state, start=None):
        y, after = super().forward(x, state, start)
        state["hidden"].copy_(after["hidden"].detach())
        return y, after


class FadesInPlace(Sound):
    """Memory that modifies its input state in place, unless a start replaces it with a copy."""

    def forward(self, x, state, start=None):
        if start is None or not start[:, 0].any():
            state["hidden"].mul_(0.9)
        return super().forward(x, state, start)


class RoundsToFloat32(Sound):
    def update(self, x, hidden):
        return super().update(x, hidden).float().to(x.dtype)


@dataclass(frozen=True)
class NoiseConfig(MemoryConfig):
    dim: int = DIM

    def build(self):
        return HidesNoise(self)


class HidesNoise(Memory):
    """Memory with a random buffer that is not saved."""

    def __init__(self, config=NoiseConfig()):
        super().__init__(config)
        self.inward = nn.Linear(DIM, DIM)
        self.register_buffer("noise", torch.rand(DIM), persistent=False)

    def initial_state(self, batch_size):
        return {"last": torch.zeros(batch_size, DIM, dtype=self.state_dtype)}

    def step(self, x, state):
        y = self.inward(x) * self.noise
        return y, {"last": y}


class NestsState(Sound):
    def initial_state(self, batch_size):
        return {"hidden": [super().initial_state(batch_size)["hidden"]]}

    def forward(self, x, state, start=None):
        y, after = super().forward(x, {"hidden": state["hidden"][0]}, start)
        return y, {"hidden": [after["hidden"]]}


class SpeaksWhenEmpty(Sound):
    retrieves = True

    def read(self, x, state):
        return state["hidden"][:, None] + self.inward.bias


class MultipliesEmptySlots(Sound):
    """Memory that reads zero while empty, but passes on NaN from unwritten slots."""

    retrieves = True

    def initial_state(self, batch_size):
        return super().initial_state(batch_size) | {"written": torch.zeros(batch_size, dtype=torch.long)}

    def read(self, x, state):
        return torch.where(state["written"][:, None, None] > 0, state["hidden"][:, None], 0).expand_as(x)

    def forward(self, x, state, start=None):
        y, after = super().forward(x, state, start)
        return y, after | {"written": state["written"] + x.shape[1]}


class BranchesOnValues(Sound):
    def reset(self, hidden, start):
        return super().reset(hidden, start) if start.any() else hidden


class CannotRead(Sound):
    retrieves = True


class CutsItsOutput(Sound):
    def forward(self, x, state, start=None):
        y, after = super().forward(x, state, start)
        return y.detach(), {"hidden": after["hidden"].detach()}


class DetachesInput(Sound):
    def update(self, x, hidden):
        return super().update(x.detach(), hidden)


class DetachesInputInSegments(Sound):
    def forward(self, x, state, start=None):
        return super().forward(x.detach() if x.shape[1] > 1 else x, state, start)


class LeaksANeighboursState(Sound):
    def update(self, x, hidden):
        return super().update(x, hidden + 0 * hidden.sum(dim=0))


class KeepsTheSegmentAlive(Sound):
    def forward(self, x, state, start=None):
        y, _ = super().forward(x, state, start)
        return y, {"hidden": y[:, -1]}


class WideOutput(Sound):
    def forward(self, x, state, start=None):
        y, after = super().forward(x, state, start)
        return y.double(), after


class Raises(Sound):
    retrieves = True

    def read(self, x, state):
        raise IndexError("selected index k out of range")


class DeadParameter(Sound):
    def __init__(self):
        super().__init__()
        self.unused_weight = nn.Parameter(torch.ones(3))


class InfiniteGradient(Sound):
    def update(self, x, hidden):
        return super().update(x, hidden) + (self.inward.weight[0, 0] * 0).sqrt()


BROKEN = [
    (1, ForgetsBetweenSegments, "output.*one step at a time.*at step"),
    (1, GradientCutAtSegments, "gradient of"),
    (1, TurnsByTheClock, "output, one step at a time .* from an age of a million steps is off by"),
    (2, MultipliesByZero, "not finite at step"),
    (2, IgnoresStart, "output after a start"),
    (2, OverflowsBeforeIt, r"with 1e\+20 before it, in one segment is not finite"),
    (3, LooksAhead, "output up to step"),
    (4, MixesRows, "a row removed|rows permuted|one row alone"),
    (4, LeaksANeighboursState, "next to a (row|state) of NaN"),
    (5, Grows, "the state changed from"),
    (5, KeepsTheSegmentAlive, "view of a tensor of [0-9]+ bytes"),
    (5, WideOutput, "output has dtype torch.float64"),
    (7, Raises, "the memory raised IndexError: selected index k out of range"),
    (5, RoundsToFloat32, r"in less than float64 \(.*\), is off by"),
    (6, FadesInPlace, "state 'hidden', which the memory modified in place"),
    (6, HidesNoise, "neither in `config` nor in `state_dict"),
    (7, CannotRead, r"it needs a method `read\(x, state\)`"),
    (9, CutsItsOutput, "no finite gradient reaches x"),
    (9, DetachesInput, "no finite gradient reaches x"),
    (9, DetachesInputInSegments, "no finite gradient reaches x over"),
    (5, Miscounts, r"state_bytes\(1\) returns 4"),
    (6, HidesState, "same call repeated"),
    (6, WritesInPlace, "modified in place"),
    (7, SpeaksWhenEmpty, "read-out of an empty store"),
    (7, MultipliesEmptySlots, "unwritten slots"),
    (8, BranchesOnValues, "torch.compile"),
    (9, DeadParameter, "no gradient reaches parameter unused_weight"),
    (9, InfiniteGradient, "not finite"),
]


def test_a_valid_module_passes_and_its_exemption_is_returned():
    assert check_memory(Sound()) == [
        "law 7 (empty store reads zero): the memory does not retrieve, `retrieves` is False"
    ]


@pytest.mark.parametrize(("law", "kind", "message"), BROKEN, ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_broken_module_is_caught(law, kind, message):
    torch.manual_seed(0)
    with pytest.raises(MemoryLawError, match=message) as error_info:
        check_memory(kind(), laws=[law])
    assert error_info.value.law == law
    assert str(error_info.value).startswith(f"law {law} (")


def test_writing_in_place_is_reported_itself_and_not_its_consequences():
    with pytest.raises(MemoryLawError, match="modified in place") as error_info:
        check_memory(FadesInPlace())
    assert error_info.value.law == 6


def test_cut_gradients_are_law_9_and_no_error_of_torch():
    with pytest.raises(MemoryLawError, match="no finite gradient reaches x") as error_info:
        check_memory(CutsItsOutput())
    assert error_info.value.law == 9


class KeepsItsState(Sound):
    """Valid memory whose state and output keep their dtypes under autocast."""

    def update(self, x, hidden):
        return super().update(x, hidden).to(hidden.dtype)

    def forward(self, x, state, start=None):
        y, after = super().forward(x, state, start)
        return y.to(x.dtype), after


class WidensUnderAutocast(KeepsItsState):
    def forward(self, x, state, start=None):
        y, after = super().forward(x, state, start)
        return y.to(self.inward.weight.dtype), after


UNDER_AUTOCAST = [
    (1, ForgetsBetweenSegments, "output.*one step at a time.* under autocast"),
    (2, IgnoresStart, "output after a start"),
    (4, MixesRows, "a row removed|rows permuted|one row alone"),
    (5, Sound, "under autocast, with torch.float32 inputs"),
    (5, WidensUnderAutocast, "output has dtype torch.float32.* under autocast, with torch.bfloat16 inputs"),
    (6, HidesState, "same call repeated"),
    (9, DeadParameter, "no gradient reaches parameter unused_weight"),
]


def test_a_memory_that_keeps_its_dtypes_under_autocast_passes():
    check_memory(KeepsItsState(), autocast=True)


@pytest.mark.parametrize(("law", "kind", "message"), UNDER_AUTOCAST)
def test_a_module_that_is_broken_under_autocast_is_caught(law, kind, message):
    torch.manual_seed(0)
    with pytest.raises(MemoryLawError, match=message) as error_info:
        check_memory(kind(), laws=[law], dtypes=(), autocast=True)
    assert error_info.value.law == law


class KeepsOneVectorMore(MultipliesEmptySlots):
    """Memory whose `hidden` is not in `stores` and passes on NaN; `written` is, and has no floats."""

    stores = ("written",)


class NamesItsLeak(MultipliesEmptySlots):
    stores = ("hidden", "written")


def test_law_7_tests_the_stores_and_returns_the_other_entries():
    assert check_memory(KeepsOneVectorMore(), laws=[7]) == [
        "law 7 (empty store reads zero): entries not in `stores`: hidden"
    ]
    with pytest.raises(MemoryLawError, match="unwritten slots"):
        check_memory(NamesItsLeak(), laws=[7])


def test_a_state_that_is_not_flat_is_caught():
    with pytest.raises(MemoryLawError, match="is a list, not a tensor"):
        check_memory(NestsState(), laws=[6])


ENDLESS = [
    (HidesALog, "grew from"),
    (Explodes, "not finite within [0-9]+ steps of random inputs"),
    (Resonates, "not finite within 1000 steps of constant inputs"),
    (TurnsByTheClock, "output, one step at a time .* after 6000 steps is off by"),
    (DividesByTheInput, "not finite within 1000 steps of zero inputs"),
    (ResonatesWithAlternation, "not finite within 1000 steps of alternating inputs"),
    (LetsRoundingDecide, "gradient of x, one step at a time .*, with the same inputs is off by"),
]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        pytest.param(*case, marks=[] if case[0] in (HidesALog, Explodes) else pytest.mark.slow)
        for case in ENDLESS
    ],
)
def test_a_long_run_that_grows_or_explodes_is_caught(kind, message, monkeypatch):
    monkeypatch.setattr("scrubjay.memory.contract.check._LONG_STEPS", 6000)
    with pytest.raises(MemoryLawError, match=message):
        check_memory(kind(), laws=[5], long=True)


def test_a_long_run_of_a_sound_module_passes(monkeypatch):
    monkeypatch.setattr("scrubjay.memory.contract.check._LONG_STEPS", 6000)
    check_memory(Sound(), laws=[5], long=True)


def test_the_message_names_the_size_and_place_of_the_difference():
    with pytest.raises(MemoryLawError, match=r"off by [\d.e+-]+ at step \d+, row \d+ \(allowed 1e-06\)"):
        check_memory(LooksAhead(), laws=[3])


def test_the_module_itself_is_left_alone():
    module = Sound()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    check_memory(module, laws=[1, 9])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float32 for p in module.parameters())


def test_a_module_without_a_width_and_an_unknown_law_are_refused():
    with pytest.raises(TypeError, match="pass check_memory"):
        check_memory(nn.Identity())
    config: Any = make_config("gru", dim=8)
    with pytest.raises(TypeError, match=r"memory=GRUConfig\(dim=8.*build\(\)"):
        check_memory(config)
    with pytest.raises(ValueError, match=r"unknown laws \[10\]"):
        check_memory(Sound(), laws=[10])
