"""Asynchronous methods of a bank: the results of the others, in a worker thread."""

import asyncio
import contextvars
import inspect
import threading
import time

import pytest

from scrubjay.memory import MemoryBank

METHODS = [
    name
    for name, method in inspect.getmembers(MemoryBank, inspect.isfunction)
    if not name.startswith("_") and hasattr(MemoryBank, f"a{name}")
]


def test_every_public_method_has_an_asynchronous_form_with_its_parameters():
    public = {name for name, _ in inspect.getmembers(MemoryBank, inspect.isfunction) if name[0] != "_"}
    assert {name for name in public if f"a{name}" not in public} == {f"a{name}" for name in METHODS}
    assert len(METHODS) >= 20
    for name in METHODS:
        method, other = getattr(MemoryBank, name), getattr(MemoryBank, f"a{name}")
        assert inspect.signature(method) == inspect.signature(other)
        assert other.__name__ == f"a{name}"
        assert other.__doc__ == f"Asynchronous form; arguments and errors are those of `{name}`."


async def test_a_life_cycle_without_a_blocking_call(tmp_path):
    path = tmp_path / "bank.db"
    async with MemoryBank(path) as bank:
        id = await bank.aadd("Vera lives in Lisbin.", namespace=("user", "vera"))
        assert await bank.aupdate(id, "Vera lives in Lisbon.")
        assert [hit.id for hit in await bank.asearch("Lisbon", k=1)] == [id]
        assert next(version.text for version in await bank.ahistory(id)) == "Vera lives in Lisbin."
        new = await bank.aadd("Vera lives in Porto.", observed="2100-01-01", namespace=("user", "vera"))
        await bank.asupersede(id, new)
        assert [record.id for record in await bank.asuccession(new)] == [id, new]
        await bank.aundo_supersede(id, new)
        assert await bank.anamespaces() == {("user", "vera"): 2}
        rows = [row async for row in bank.aexport()]
        assert rows == list(bank.export())
        vera = ("user", "vera")
        assert [row async for row in bank.aexport_owner(vera)] == list(bank.export_owner(vera))
        async with MemoryBank(":memory:") as copy:
            assert await copy.arestore(rows) == [True, True]
        assert (await bank.aerase_owner(vera))["records"] == 2
        assert await bank.acount() == 0
        assert [pair async for pair in bank.abuild_index()] == []
        with pytest.raises(ValueError, match="k=0"):
            await bank.asearch("x", k=0)
    with pytest.raises(Exception, match="closed"):
        bank.get(id)


class Slow:
    """Embeddings that take a while, in a thread of their own."""

    threads: set[int]

    def __init__(self):
        self.threads = set()

    def embed_documents(self, texts):
        self.threads.add(threading.get_ident())
        time.sleep(0.3)
        return [[1.0, 0.0]] * len(texts)

    def embed_query(self, text):
        return self.embed_documents([text])[0]


async def test_the_event_loop_runs_while_a_model_embeds():
    steps, embeddings = 0, Slow()

    async def count():
        nonlocal steps
        while True:
            await asyncio.sleep(0)
            steps += 1

    async with MemoryBank(":memory:", embeddings) as bank:
        counting = asyncio.create_task(count())
        await bank.aadd("a heron")
        counting.cancel()
    assert steps > 10
    assert threading.get_ident() not in embeddings.threads


async def test_many_calls_at_once_write_each_record_once():
    async with MemoryBank(":memory:") as bank:
        ids = await asyncio.gather(*(bank.aadd(f"heron x{n}", merge=False) for n in range(50)))
        assert len({*ids}) == len(bank) == 50
        hits = await asyncio.gather(*(bank.asearch(f"x{n}", k=1) for n in range(50)))
        assert [hit.id for (hit,) in hits] == ids


async def test_a_subclass_and_the_context_reach_the_thread():
    user = contextvars.ContextVar("user", default="nobody")

    class Own(MemoryBank):
        def get(self, id):
            return super().get(f"{id}-{user.get()}")

    async with Own(":memory:") as bank:
        user.set("ada")
        assert await bank.aget("x") is None
        (row,) = [{**next(iter(_rows(bank))), "id": "x-ada"}]
        await bank.arestore([row])
        record = await bank.aget("x")
        assert record is not None
        assert record.id == "x-ada"


def _rows(bank):
    bank.add("a heron")
    return bank.export()
