"""Fixtures of the memory tests: a tiny Llama and checks of steppers."""

import pytest
import torch


@pytest.fixture
def tiny_llama(require):
    """Return a factory of random tiny Llamas: `tiny_llama(dtype=torch.float64)`."""
    require("transformers")
    from transformers import LlamaConfig, LlamaForCausalLM

    def build(dtype=torch.float32, seed=0, **fields):
        torch.manual_seed(seed)
        sizes = {
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.3,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
        }
        model = LlamaForCausalLM(LlamaConfig(**sizes | fields))
        return model.to(dtype).eval()  # pyright: ignore[reportArgumentType]

    return build


@pytest.fixture
def check_stepper():
    """Return a check of a memory's stepper against its steps: `check_stepper(module, x)`."""

    @torch.no_grad()
    def check(module, x):
        state = module.initial_state(len(x))
        stepper = module.stepper(state)
        for t in range(x.shape[1]):
            expected, state = module.step(x[:, t], state)
            torch.testing.assert_close(stepper.step(x[:, t]), expected, rtol=0, atol=1e-10)
            if t % 7 == 3:
                stepper = module.stepper(stepper.state())
        for key, value in stepper.state().items():
            torch.testing.assert_close(value, state[key], rtol=0, atol=1e-10)

    return check


@pytest.fixture
def check_forgets():
    """Return a check that a reset removes all effects of NaN inputs: `check_forgets(module)`."""

    def check(module, harm_from=5):
        x = torch.randn(2, 30, module.dim)
        rows = module.stepper(module.initial_state(2))
        for t in range(12):
            rows.step(torch.full((2, module.dim), float("nan")) if t >= harm_from else x[:, t])
        fresh = module.stepper(module.initial_state(2))
        all_rows = torch.ones(2, dtype=torch.bool)
        for t in range(30):
            actual = rows.step(x[:, t], all_rows if t == 0 else None)
            torch.testing.assert_close(actual, fresh.step(x[:, t]))
        for key, value in fresh.state().items():
            torch.testing.assert_close(rows.state()[key], value)

    return check
