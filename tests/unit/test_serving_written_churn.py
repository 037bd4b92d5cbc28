"""Never another's text: adapters alternate over one beginning, are given up, move, are unloaded, or are no numbers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ray_lora.adapters.adapter import Adapter
from ray_lora.errors import AdapterError
from ray_lora.inference.sampling import Sampling
from ray_lora.serving.changes import withdraw
from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.writing.speaker import Wanted
from tests.unit.writing_churn import ENDS, MOST, SHARED, World, churn, left_over
from tests.unit.writing_world import make_adapter


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("churn"))


async def text_of(endpoint: Endpoint, ref: str, prompt: str = SHARED) -> str:
    choice = await endpoint.names.choose(ref)
    async with endpoint.speaker.speak(choice, Wanted(texts=(prompt,)), Sampling(max_tokens=MOST)) as reply:
        async for _ in reply:
            pass
    return reply.texts[0]


def test_every_text_is_its_adapter_s_whoever_alternates_leaves_moves_or_is_unloaded(
    world: World, tmp_path: Path
) -> None:
    async def main() -> None:
        endpoint, store = world.start(tmp_path)
        told = await churn(endpoint, store, world, 200)
        assert told.wrong == []
        assert told.whole > 70
        assert told.given_up > 40
        assert {"left@1", "right@1", "third@1", "moving@1", "moving@2", "gone@1"} == set(told.by_ref)
        assert told.refused > 0
        assert set((await left_over(endpoint)).values()) == {0}
        stats = endpoint.speaker.writer.stats
        assert stats.prefix_hits > 30
        assert endpoint.cache.stats.evictions > 5
        await endpoint.close()

    asyncio.run(main())


def test_an_answer_ends_as_it_began_when_its_adapter_is_unloaded_and_its_name_is_another_s(
    world: World, tmp_path: Path
) -> None:
    first, second = (world.texts[content.sha256, SHARED][MOST] for content in world.contents[:2])

    async def main() -> None:
        endpoint, store = world.start(tmp_path, slots=1)
        choice = await endpoint.names.choose("left")
        async with endpoint.speaker.speak(choice, Wanted(texts=(SHARED,)), Sampling(max_tokens=MOST)) as reply:
            await anext(reply)
            await withdraw(endpoint.names, "left", True)
            await asyncio.to_thread(store.put, world.contents[1], "left")
            await withdraw(endpoint.names, "left", False)
            after = asyncio.create_task(text_of(endpoint, "left@2"))  # waits for the only slot
            for _ in range(50):
                await asyncio.sleep(0)
            async for _ in reply:
                pass
        assert reply.texts == [first]
        assert await after == second != first
        assert set((await left_over(endpoint)).values()) == {0}
        await endpoint.close()

    asyncio.run(main())


def test_an_adapter_whose_answers_are_no_numbers_is_set_aside_and_nobody_else(world: World, tmp_path: Path) -> None:
    bad = Adapter.load(make_adapter(world.base, world.folder / "bad", seed=9, spread=1e19))

    async def main() -> None:
        endpoint, store = world.start(tmp_path, slots=3)
        store.put(bad, "bad")
        expected = [world.texts[world.contents[at].sha256, SHARED + end][MOST] for end in ENDS for at in (0, 1)]
        good = [text_of(endpoint, name, SHARED + end) for end in ENDS for name in ("left", "right")]
        *texts, one, other = await asyncio.gather(
            *good, text_of(endpoint, "bad"), text_of(endpoint, "bad", SHARED + ENDS[1]), return_exceptions=True
        )
        assert texts == expected
        for error in (one, other):
            assert isinstance(error, AdapterError)
            assert "not a finite number; it is set aside" in str(error)
        with pytest.raises(AdapterError, match="set aside"):
            await text_of(endpoint, "bad")
        assert await text_of(endpoint, "left") == expected[0]
        assert set((await left_over(endpoint)).values()) == {0}
        await endpoint.close()

    asyncio.run(main())
