"""Attention in the actors of two simulated nodes equals attention over the full cache."""

import pytest
import torch

pytestmark = pytest.mark.requires("transformers", "ray")


@pytest.mark.slow  # starts two nodes
@torch.no_grad()
def test_two_nodes_hold_the_keys_and_values(model, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    import ray
    from ray.cluster_utils import Cluster

    from scrubjay.experiments.lm.ray_store import RayStore
    from scrubjay.memory import context
    from scrubjay.memory.context.elsewhere.policy import ElsewherePolicy

    head = {"num_cpus": 1, "include_dashboard": False, "resources": {"first": 1}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=1, resources={"second": 1})
        ray.init(address=cluster.address, log_to_driver=False)
        stores = tuple(RayStore(resources={name: 1}) for name in ("first", "second"))
        assert stores[0].node != stores[1].node
        ids = torch.randint(2, 64, (1, 50))
        results = []
        for policy in (context.make("full"), ElsewherePolicy(stores, block=8)):
            cache = context.PolicyCache(policy, model[0])
            parts = [model[0](part, cache=cache).logits for part in ids.split([40, *[1] * 10], dim=1)]
            results.append(torch.cat(parts, dim=1))
        torch.testing.assert_close(results[1], results[0], atol=1e-4, rtol=1e-4)
        name = cache.layers[0].memory._name
        assert all(store.nbytes(name) for store in stores)
    finally:
        ray.shutdown()
        cluster.shutdown()
