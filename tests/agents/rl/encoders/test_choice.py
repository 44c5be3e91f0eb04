"""The encoder of a policy by name: references in plain torch, published sizes, and refusals."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from scrubjay.agents.rl.encoders.choice import UntrustedName, build_encoder
from scrubjay.agents.rl.observations import from_leaves, leaf_spaces, to_tensors
from scrubjay.agents.rl.policy import Policy, PolicyConfig
from scrubjay.memory import make_config

PIXELS = spaces.Box(0, 255, (84, 84, 4), np.uint8)
VECTOR = spaces.Box(-np.inf, np.inf, (5,))
MIXED = spaces.Dict({"camera": spaces.Box(0, 255, (3, 40, 44), np.uint8), "speed": VECTOR})
SET = spaces.Dict({"things": spaces.Box(-1, 1, (4, 3)), "things_mask": spaces.MultiBinary(4)})


def sample(space: spaces.Space, count: int = 3) -> Any:
    space.seed(0)
    rows: list[Any] = [to_tensors(space, space.sample(), torch.device("cpu")) for _ in range(count)]
    if isinstance(rows[0], dict):
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    return torch.stack(rows)


def config(encoder: str, **fields: Any) -> PolicyConfig:
    return PolicyConfig(make_config("none", dim=16), encoder=encoder, **fields)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("channels_first", [False, True])
def test_nature_is_the_network_of_stable_baselines(channels_first):
    policies = pytest.importorskip("stable_baselines3.common.torch_layers")
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    theirs = policies.NatureCNN(space, features_dim=512)
    ours: Any = build_encoder("nature", space if channels_first else PIXELS, 16)
    pixels = ours.encoders[0]
    weights = [*theirs.cnn.state_dict().values(), *theirs.linear.state_dict().values()]
    with torch.no_grad():
        for parameter, weight in zip(pixels.network.parameters(), weights, strict=True):
            parameter.copy_(weight)
        images = sample(space)
        expected = pixels.project(theirs(images.float() / 255))  # SB3 scales images before the network
        torch.testing.assert_close(ours(images if channels_first else images.movedim(1, -1)), expected)


def test_nature_is_its_layers_in_plain_torch():
    reference = nn.Sequential(
        nn.Conv2d(4, 32, 8, 4),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, 2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 512),
        nn.ReLU(),
        nn.Linear(512, 16),
    )
    encoder = build_encoder("nature", PIXELS, 16)
    reference.load_state_dict(dict(zip(reference.state_dict(), encoder.state_dict().values(), strict=True)))
    images = sample(PIXELS)
    torch.testing.assert_close(encoder(images), reference(images.movedim(-1, 1) / 255))


def test_impala_is_its_published_network():
    """Cobbe et al. 2020 (arXiv 1912.01588) use this network; with 15 actions it has 626,256 parameters."""
    space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    encoder: Any = build_encoder("impala", space, 16)
    network = encoder.encoders[0].network
    assert count_parameters(network) + 256 * 15 + 15 + 256 + 1 == 626_256
    parameters, images = iter(network.parameters()), sample(space).movedim(-1, 1) / 255

    def convolve(x):
        return nn.functional.conv2d(x, next(parameters), next(parameters), padding=1)

    features = images
    for _ in range(3):
        features = nn.functional.max_pool2d(convolve(features), 3, 2, 1)
        for _ in range(2):
            features = features + convolve(convolve(features.relu()).relu())
    features = nn.functional.linear(features.relu().flatten(1), next(parameters), next(parameters)).relu()
    torch.testing.assert_close(encoder(sample(space)), encoder.encoders[0].project(features))


def test_mlp_is_its_layers_in_plain_torch():
    reference = nn.Sequential(
        nn.Linear(5, 24), nn.SiLU(), nn.Linear(24, 12), nn.SiLU(), nn.Linear(12, 16), nn.SiLU()
    )
    encoder = build_encoder("mlp", VECTOR, 16, (24, 12))
    reference.load_state_dict(dict(zip(reference.state_dict(), encoder.state_dict().values(), strict=True)))
    observations = sample(VECTOR)
    torch.testing.assert_close(encoder(observations), reference(observations))


@pytest.mark.parametrize("name", ["linear", "mlp", "nature", "impala"])
@pytest.mark.parametrize(
    "space", [PIXELS, MIXED, spaces.Box(0, 1, (3, 36, 48))], ids=["pixels", "mixed", "floats"]
)
def test_every_parameter_receives_a_gradient_from_images(name, space):
    torch.manual_seed(0)
    encoder = build_encoder(name, space, 16)
    features = encoder(sample(space, 4))
    assert features.shape == (4, 16)
    features.square().sum().backward()
    for parameter in encoder.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["nature", "impala"])
def test_images_of_bytes_and_of_floats_mean_the_same(name):
    of_bytes, of_floats = (
        build_encoder(name, space, 16)
        for space in (spaces.Box(0, 255, (40, 40, 3), np.uint8), spaces.Box(0, 1, (40, 40, 3)))
    )
    of_floats.load_state_dict(of_bytes.state_dict())
    images = torch.randint(256, (2, 40, 40, 3), dtype=torch.uint8)
    torch.testing.assert_close(of_floats(images / 255), of_bytes(images))


@pytest.mark.parametrize(
    "space", [VECTOR, SET, MIXED, spaces.Discrete(5, start=2), spaces.MultiBinary(3)], ids=str
)
def test_mlp_encodes_every_space(space):
    assert build_encoder("mlp", space, 16)(sample(space)).shape == (3, 16)


def test_the_default_policy_has_the_weights_of_earlier_versions():
    torch.manual_seed(0)
    plain = Policy(MIXED, spaces.Discrete(2), PolicyConfig(make_config("gru", dim=8)))
    torch.manual_seed(0)
    linear = Policy(MIXED, spaces.Discrete(2), PolicyConfig(make_config("gru", dim=8), encoder="linear"))
    weights = plain.state_dict()
    assert weights["encoder.encoders.0.linear.weight"].shape[0] == 8
    assert all(torch.equal(value, weights[name]) for name, value in linear.state_dict().items())


def test_skip_and_a_separate_critic_have_the_same_kind_of_encoder():
    policy = Policy(PIXELS, spaces.Discrete(2), config("impala", skip=True, separate_critic=True))
    assert policy.critic_trunk is not None
    kinds = [policy.encoder, policy.view, policy.critic_trunk.encoder, policy.critic_trunk.view]
    assert len({str(kind) for kind in kinds}) == 1


@pytest.mark.parametrize(
    ("encoder", "fields", "message"),
    [
        ("cnn", {}, "encoder='cnn': choose from linear, mlp, nature, impala, or write module:factory"),
        ("a:b:c", {}, "encoder='a:b:c': choose from"),
        ("mlp", {"encoder_sizes": ()}, "mlp needs at least one width"),
        ("mlp", {"encoder_sizes": (8, 0)}, "mlp needs at least one width of at least 1"),
        ("linear", {"encoder_sizes": (8,)}, "has an effect only with encoder='mlp'"),
        ("nature", {"images": "routing"}, "images='routing' has no effect with encoder='nature'"),
        ("own:make", {"images": "routing"}, "images='routing' has no effect with encoder='own:make'"),
        ("own:make", {"pooling": "sum"}, "pooling='sum' has no effect with encoder='own:make'"),
    ],
)
def test_settings_without_effect_are_refused(encoder, fields, message):
    with pytest.raises(ValueError, match=message):
        config(encoder, **fields)


@pytest.mark.parametrize(
    ("encoder", "space", "message"),
    [
        ("nature", VECTOR, r"encoder 'nature' needs an image.*Box\(-inf, inf, \(5,\).* has none"),
        ("impala", SET, r"encoder 'impala' needs an image.*Dict\(.* has none: choose linear or mlp"),
        (
            "nature",
            spaces.Box(0, 255, (35, 90, 3), np.uint8),
            r"at least 36 x 36 pixels.*\(35, 90, 3\).*35 x 90",
        ),
    ],
)
def test_encoders_that_do_not_fit_a_space_name_both(encoder, space, message):
    with pytest.raises(ValueError, match=message):
        Policy(space, spaces.Discrete(2), config(encoder))


OWN = """
import torch
from torch import nn

class Mean(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.project = nn.Linear(2, dim)
    def forward(self, observation):
        parts = [part.float().flatten(1).mean(dim=1) for part in observation.values()]
        return self.project(torch.stack(parts, dim=1))

def make(space, dim):
    return Mean(dim)

def wide(space, dim):
    return Mean(dim + 1)

def fail(space, dim):
    raise ValueError("no such space")

def nothing(space, dim):
    return 3

NUMBER = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_encoder.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_encoder", None)


def test_a_factory_receives_the_space_and_the_width(own_module, tmp_path):
    policy = Policy(MIXED, spaces.Discrete(2), config("own_encoder:make"))
    assert list(leaf_spaces(MIXED)) == ["camera", "speed"]
    assert policy.encoder(from_leaves(sample(MIXED))).shape == (3, 16)
    policy.act(MIXED.sample())
    policy.save_pretrained(tmp_path / "policy")
    sys.modules.pop("own_encoder")
    with pytest.raises(ValueError, match=r"'own_encoder:make': .* comes from a file, .*trust=True"):
        Policy.from_pretrained(tmp_path / "policy")
    assert "own_encoder" not in sys.modules
    again = Policy.from_pretrained(tmp_path / "policy", trust=True)
    for name, value in policy.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    card = (tmp_path / "policy" / "README.md").read_text()
    assert "| encoder | `own_encoder:make` |" in card
    assert 'from_pretrained(".", trust=True)' in card


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "own_encoder:wide",
            ValueError,
            r"'own_encoder:wide' returned \[2, 17\]; expected a tensor \[batch, 16\]",
        ),
        (
            "own_encoder:fail",
            ValueError,
            "'own_encoder:fail' rejects the observation space Dict.*no such space",
        ),
        ("own_encoder:nothing", TypeError, "returned a int, not a torch.nn.Module"),
        ("own_encoder:NUMBER", TypeError, "NUMBER is a int, not a callable"),
        ("own_encoder:absent", ValueError, "has no attribute 'absent'"),
        ("nowhere:make", ValueError, "No module named 'nowhere'; write module:factory"),
    ],
)
def test_faults_of_a_factory_name_it(own_module, name, error, message):
    with pytest.raises(error, match=message):
        Policy(MIXED, spaces.Discrete(2), config(name))


def test_an_untrusted_name_imports_nothing(own_module):
    with pytest.raises(ValueError, match="executes code from outside Scrubjay; add --trust"):
        Policy(MIXED, spaces.Discrete(2), config(UntrustedName("own_encoder:make")))
    assert "own_encoder" not in sys.modules
