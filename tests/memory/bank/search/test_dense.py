"""Search by embeddings alone is exact, and equal with embeddings held by torch and by NumPy."""

from datetime import UTC, datetime

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


START = datetime(2026, 1, 1, tzinfo=UTC)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.text("abcde", min_size=1, max_size=6)), min_size=1, max_size=40)
)
def test_embeddings_held_by_torch_are_recalled_as_those_held_by_numpy_are(letters, entries):
    with (
        MemoryBank(":memory:", letters, lambda: START) as bank,
        MemoryBank(":memory:", letters, lambda: START, device="cpu") as other,
    ):
        for bank_or_other in (bank, other):
            for space, text in entries:
                bank_or_other.add(text, namespace=(str(space),), merge=False)
            assert len(bank_or_other.search("abc", k=50)) == len(entries)
            bank_or_other.forget(bank_or_other.recent(1)[0].id)
            bank_or_other.add("bead", namespace=("0",), merge=False)
        for namespace in ((), ("1",)):
            results = [
                either.search("a bc", 50, namespace=namespace, explain=True) for either in (bank, other)
            ]
            by_text, by_text_too = (
                sorted((hit.text, get_explanation(hit).cosine) for hit in hits) for hits in results
            )
            assert [text for text, _ in by_text] == [text for text, _ in by_text_too]
            assert [c for _, c in by_text] == pytest.approx([c for _, c in by_text_too], abs=1e-5)
            # If all cosines are similar, rounding determines the z-scores.
            scores, scores_too = ([hit.score for hit in hits] for hits in results)
            assert scores == pytest.approx(scores_too, abs=1e-3)


def test_a_device_that_is_not_there_is_named(letters):
    with pytest.raises(ValueError, match="device='nowhere': torch cannot hold embeddings on this device"):
        MemoryBank(":memory:", letters, device="nowhere")
    with pytest.raises(ValueError, match="device='cpu': needs embeddings; pass an embedding model"):
        MemoryBank(":memory:", device="cpu")
