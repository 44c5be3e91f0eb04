"""Attention in the actors of two simulated nodes equals attention over the full cache."""

import copy
import gc
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.requires("transformers", "ray")


@pytest.mark.slow  # starts two nodes
@torch.no_grad()
def test_two_nodes_hold_the_keys_and_values(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    import ray
    import transformers
    from ray.cluster_utils import Cluster

    from scrubjay.experiments import RayStore
    from scrubjay.memory import context
    from scrubjay.memory.context.elsewhere import ElsewherePolicy

    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(2, 64, (1, 80))

    def read(cache, *lengths):
        first = cache.get_seq_length()
        parts = ids[:, first : first + sum(lengths)].split(list(lengths), dim=1)
        return torch.cat([model(part, cache=cache).logits for part in parts], dim=1)

    head = {"num_cpus": 1, "include_dashboard": False, "resources": {"first": 1}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=1, resources={"second": 1})
        ray.init(address=cluster.address, log_to_driver=False)
        stores = tuple(RayStore(resources={name: 1}) for name in ("first", "second"))
        assert stores[0].node != stores[1].node
        caches: Any = [
            context.PolicyCache(policy, model)
            for policy in (context.make("full"), ElsewherePolicy(stores, block=8))
        ]
        full, elsewhere = caches
        expected = read(full, 40, *[1] * 10)
        torch.testing.assert_close(read(elsewhere, 40, *[1] * 10), expected, atol=1e-4, rtol=1e-4)
        name = elsewhere.layers[0].memory._name
        assert all(store.nbytes(name) for store in stores)
        clone = copy.deepcopy(elsewhere)
        caches.append(clone)
        for cache in caches:
            cache.crop(-13)  # in the middle of a block
        expected = read(full, 1, 20)
        for cache in caches[1:]:
            torch.testing.assert_close(read(cache, 1, 20), expected, atol=1e-4, rtol=1e-4)
        cache = elsewhere = None
        caches.clear()
        gc.collect()
        read(clone, *[1] * 14)  # a full block for each store, before which it deletes old tables
        assert not any(store.nbytes(name) for store in stores)
        ray.kill(stores[1]._actor)
        with pytest.raises(RuntimeError, match="the actor of a store has ended, and its keys and values"):
            read(clone, 1)
    finally:
        ray.shutdown()
        cluster.shutdown()
