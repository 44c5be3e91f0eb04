"""Search by embeddings alone is exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.memory import MemoryBank


def get_explanation(hit):
    assert hit.explanation is not None
    return hit.explanation


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.text("abcde", min_size=1, max_size=6)), min_size=1, max_size=40)
)
def test_embeddings_alone_rank_as_a_flat_scan_does(letters, entries):
    with MemoryBank(":memory:", letters) as bank:
        for space, text in entries:
            bank.add(text, namespace=(str(space),), merge=False)
        bank.forget(bank.recent(1)[0].id)
        assert all(hit.namespace == ("1",) for hit in bank.search("zz", k=50, namespace=("1",)))
        left = bank.recent(50)
        query = np.array(letters.embed_query("a bc"))
        vectors = np.array([letters.embed_query(record.text) for record in left]).reshape(-1, len(query))
        cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
        cosine_of_id = {
            hit.id: get_explanation(hit).cosine for hit in bank.search("a bc", k=50, explain=True)
        }
        assert cosine_of_id == pytest.approx(
            dict(zip([record.id for record in left], cosines, strict=True)), abs=1e-5
        )
