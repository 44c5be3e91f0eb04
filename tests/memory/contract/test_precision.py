"""Law 5 on precision: norms under autocast are computed in float32, and outputs are close to exact ones."""

import pytest
import torch
from torch.nn import functional

from scrubjay.memory import MemoryLawError, check_memory
from scrubjay.memory.contract.trial import ROUNDING, AutocastRecord
from scrubjay.memory.hcam import HCAM, HCAMConfig
from scrubjay.memory.none import NoMemory, NoMemoryConfig


class Normalized(NoMemory):
    """Valid memory that normalizes the output of its layer."""

    def step(self, x, state):
        return x + self.normalize(self.feed_forward(x)).to(x.dtype), {}

    def segment(self, x, state, start):
        return self.step(x, state)

    def normalize(self, y):
        return functional.rms_norm(y.to(torch.promote_types(y.dtype, torch.float32)), y.shape[-1:], eps=1e-6)


class NormInHalfPrecision(Normalized):
    def normalize(self, y):
        return y * torch.rsqrt((y * y).mean(dim=-1, keepdim=True) + 1e-6)


class NormWithTheEpsilonOfItsInput(Normalized):
    """Memory whose epsilon grows from 1e-7 to 8e-3 under autocast, more than the squares of small values."""

    def normalize(self, y):
        return functional.rms_norm(y.float(), y.shape[-1:], eps=torch.finfo(y.dtype).eps)


def build(kind):
    torch.manual_seed(0)
    module = kind(NoMemoryConfig(dim=16))
    with torch.no_grad():
        module.feed_forward[-1].weight.mul_(0.1)
        module.feed_forward[-1].bias.zero_()
    return module


@pytest.mark.slow
def test_a_norm_in_float32_passes():
    assert check_memory(build(Normalized), autocast=True)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (NormInHalfPrecision, r"a norm is computed in bfloat16 \(rsqrt\).* under autocast"),
        (NormWithTheEpsilonOfItsInput, "output for inputs of magnitude .*, against that without autocast"),
    ],
)
def test_a_wrong_norm_under_autocast_is_caught(kind, message):
    check_memory(build(kind), laws=[5], dtypes=(torch.float32,))
    with pytest.raises(MemoryLawError, match=message) as error_info:
        check_memory(build(kind), laws=[5], autocast=True, dtypes=(torch.float32,))
    assert error_info.value.law == 5


def test_the_bound_under_autocast_grows_with_the_root_of_the_number_of_products():
    weight = torch.ones(4, 4)
    bounds = []
    for count in (1, 4):
        with torch.autocast("cpu", torch.bfloat16), AutocastRecord() as record:
            for _ in range(count):
                torch.mm(weight, weight)
        assert record.num_products == count
        bounds.append(record.tolerance)
    assert bounds[0] == pytest.approx(4 * ROUNDING * 2**0.5)
    assert bounds[1] == pytest.approx(2 * bounds[0])


class StepsTooFar(HCAM):
    """Memory whose outputs are a quarter larger when it processes a single step under autocast."""

    def forward(self, x, state, start=None):
        y, after = super().forward(x, state, start)
        return (1.25 * y if x.shape[1] == 1 and torch.is_autocast_enabled("cpu") else y), after


@pytest.mark.one_in(3)
@pytest.mark.parametrize("seed", range(3))
def test_choices_that_rounding_changes_hide_no_fault_in_other_rows(seed):
    # With one chunk of one step, rounding changes some choices in every second of these runs.
    torch.manual_seed(seed)
    config = HCAMConfig(dim=16, chunk_size=1, num_chunks=3, top_k=1)
    check_memory(config.build(), laws=(1, 2, 4, 5), dtypes=(), steps=24, autocast=True, seed=seed)
    with pytest.raises(MemoryLawError, match="output, one step at a time") as error_info:
        check_memory(StepsTooFar(config), laws=(1,), dtypes=(), steps=24, autocast=True, seed=seed)
    assert error_info.value.law == 1
