"""Two versions tried on live traffic: who answers whom, what is recorded, and that nobody else notices."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from scipy import stats

from ray_lora.adapters.adapter import Adapter
from ray_lora.cli import main
from ray_lora.errors import AdapterNotFoundError
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.http.routes import create_app
from ray_lora.serving.trials.compare import Outcome, compare, read_results
from ray_lora.serving.trials.tally import Arm, Tally
from ray_lora.store import Traffic, open_store, steer
from tests.mlflow_world import MLFLOW_WARNINGS, database
from tests.unit.serving_world import make_adapter, make_base, peft_probabilities, spoil

TEXTS = ["a lovely day", "the film was very dull and so slow", "good", "not bad not good"]
Client = httpx.AsyncClient


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], list[list[list[float]]]]:
    """The base, four adapters of two labels, and PEFT's answers of each to TEXTS."""
    root = tmp_path_factory.mktemp("trials")
    base = make_base(root / "base")
    folders = [make_adapter(base, root / str(seed), seed=seed) for seed in range(4)]
    return base, folders, [peft_probabilities(base, folder, TEXTS) for folder in folders]


@pytest.fixture
def world(made: Any, tmp_path: Path) -> Path:
    """store/ with tweets@1 (the champion) to tweets@4."""
    store = open_store(str(tmp_path / "store"))
    for folder in made[1]:
        store.put(Adapter.load(folder), "tweets")
    store.alias("tweets", "champion", 1)
    return tmp_path


@asynccontextmanager
async def serving(made: Any, world: Path, **options: Any) -> AsyncIterator[tuple[Client, Endpoint]]:
    values = {
        "store": str(world / "store"),
        "base": str(made[0]),
        "results": str(world / "results"),
        "dtype": "float32",
        "slots": 4,
        "max_rank": 4,
    }
    endpoint = start_endpoint(AppArgs.model_validate(values | options))
    transport = httpx.ASGITransport(create_app(endpoint), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
        try:
            yield client, endpoint
        finally:
            await endpoint.close()


async def ask(
    client: Client, user: str | None = None, model: str = "tweets", body_user: str | None = None
) -> httpx.Response:
    headers = {"x-user": user} if user is not None else {}
    body = {"model": model, "inputs": TEXTS, "parameters": {"top_k": 2}, "user": body_user}
    response = await client.post("/v1/predict", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response


def version(response: httpx.Response) -> int:
    return int(response.headers["x-adapter"].rpartition("@")[2])


def check(response: httpx.Response, made: Any) -> int:
    """Every row is PEFT's answer with the version that the header names; returns that version."""
    found = []
    for ranked in response.json()["predictions"]:
        scores = {item["label"]: item["score"] for item in ranked}
        found.append([scores["LABEL_0"], scores["LABEL_1"]])
    assert response.json()["version"] == version(response)
    for got, expected in zip(found, made[2][version(response) - 1], strict=True):
        assert got == pytest.approx(expected, abs=1e-4)
    return version(response)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await work()

    asyncio.run(whole())


async def until_quiet(endpoint: Endpoint) -> None:
    while endpoint.shadows.inside:
        await asyncio.sleep(0.01)


def recorded(world: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """The table's rows by version and variant."""
    rows = compare(read_results(world / "results"), "tweets")["versions"]
    return {(row["version"], row["variant"]): row for row in rows}


# ---------------------------------------------------------------------------------------------- who answers whom


def test_a_split_is_live_and_every_replica_sends_a_user_to_the_same_version(made: Any, world: Path) -> None:
    store = open_store(str(world / "store"))

    async def main() -> None:
        async with serving(made, world) as (one, _), serving(made, world) as (two, _):
            assert version(await ask(one, "anna")) == 1
            users = [f"user-{number}" for number in range(60)]
            for weights in ({1: 50, 3: 50}, {1: 20, 3: 80}, {3: 1}):
                store.point("tweets", steer.split(weights))
                expected = [Traffic(split=weights).pick("tweets", user) for user in users]
                for client in (one, two):
                    answers = await asyncio.gather(*(ask(client, user) for user in users))
                    assert [check(answer, made) for answer in answers] == expected
                again = await asyncio.gather(*(ask(two, body_user=user) for user in users))
                assert [version(answer) for answer in again] == expected  # the body's user as the header's
            store.point("tweets", steer.split({}))
            assert {version(await ask(client, user)) for client in (one, two) for user in users[:5]} == {1}

    run(main)


def test_without_a_user_the_weights_are_drawn_and_explicit_refs_are_never_split(made: Any, world: Path) -> None:
    store = open_store(str(world / "store"))
    store.point("tweets", steer.split({2: 75, 3: 25}))

    async def main() -> None:
        async with serving(made, world, max_waiting=4000, max_waiting_per_adapter=4000) as (client, _):
            answers = await asyncio.gather(*(ask(client) for _ in range(400)))
            drawn = Counter(version(answer) for answer in answers)
            assert set(drawn) == {2, 3}
            assert drawn[2] == pytest.approx(300, abs=45)  # 5 standard deviations
            for ref, expected in (("tweets@champion", 1), ("tweets@4", 4)):
                assert {version(await ask(client, f"user-{n}", ref)) for n in range(10)} == {expected}
            classified = await client.post(
                "/classify", json={"model": "tweets", "input": "good", "user": "anna"}, headers={"x-user": "anna"}
            )
            assert version(classified) == version(await ask(client, "anna"))
            clash = await client.post(
                "/v1/predict", json={"model": "tweets", "inputs": "good", "user": "a"}, headers={"x-user": "b"}
            )
            assert (clash.status_code, clash.json()["error"]["code"]) == (400, "invalid_value")
            (card,) = (await client.get("/v1/models")).json()["data"][1:]
            assert (card["split"], card["shadow"], card["version"]) == ({"2": 75.0, "3": 25.0}, None, 1)

    run(main)


def test_promotions_under_load_are_atomic_for_all_replicas(made: Any, world: Path) -> None:
    store = open_store(str(world / "store"))
    states, settled = [{1}], 0  # who may answer, change after change; the last one that was acknowledged

    async def main() -> None:
        async with serving(made, world, slots=2) as (one, _), serving(made, world, slots=3) as (two, _):
            done = False
            answered: Counter[int] = Counter()

            async def client_of(client: Client, number: int) -> None:
                while not done:
                    first = settled
                    found = check(await ask(client, f"user-{number}"), made)
                    assert found in set[int]().union(*states[first:])
                    answered[found] += 1

            async def change(step: steer.Change, leads_to: set[int]) -> None:
                nonlocal settled
                states.append(leads_to)
                await asyncio.to_thread(store.point, "tweets", step)
                settled = len(states) - 1
                await asyncio.sleep(0.05)

            async def operate() -> None:
                nonlocal done
                chance = random.Random(0)
                now = [1]
                for _ in range(15):
                    weights = {v: chance.randint(1, 9) for v in chance.sample([1, 2, 3, 4], 2)}
                    await change(steer.split(weights), set(weights))
                    chosen = chance.choice(sorted(weights))
                    await change(steer.promote(chosen), {chosen})
                    if chosen != now[-1]:
                        now.append(chosen)
                    if len(now) > 1 and chance.random() < 0.4:
                        now.pop()
                        await change(steer.rollback, {now[-1]})
                done = True

            clients = [client_of(client, number) for client in (one, two) for number in range(6)]
            await asyncio.gather(operate(), *clients)
            assert set(answered) == {1, 2, 3, 4}

    run(main)


# ----------------------------------------------------------------------------------------------------------- shadows


def test_a_shadow_is_recorded_and_changes_no_answer(made: Any, world: Path) -> None:
    store = open_store(str(world / "store"))
    store.point("tweets", steer.shadow(2))
    store.put(Adapter.load(made[1][0]), "other")

    async def main() -> None:
        async with serving(made, world) as (client, endpoint):
            for _ in range(20):
                assert check(await ask(client), made) == 1
                await until_quiet(endpoint)
            await ask(client, model="tweets@1")
            await ask(client, model="other")
        rows = recorded(world)
        assert {key: row["requests"] for key, row in rows.items()} == {
            (1, "default"): 20,
            (1, "explicit"): 1,
            (2, "shadow"): 20,
        }
        top = [row.index(max(row)) for row in made[2][1]]
        assert rows[2, "shadow"]["labels"] == {f"LABEL_{label}": 20 * n for label, n in Counter(top).most_common()}
        assert rows[2, "shadow"]["errors"] == rows[2, "shadow"]["dropped"] == 0

    run(main)


def test_a_share_of_the_traffic_is_copied(made: Any, world: Path) -> None:
    open_store(str(world / "store")).point("tweets", steer.shadow(2, share=0.25))

    async def main() -> None:
        async with serving(made, world) as (client, endpoint):
            for _ in range(200):
                await ask(client)
                await until_quiet(endpoint)
        assert recorded(world)[2, "shadow"]["requests"] == pytest.approx(50, abs=31)  # 5 standard deviations

    run(main)


def test_a_shadow_that_fails_fails_alone(made: Any, world: Path) -> None:
    open_store(str(world / "store")).point("tweets", steer.shadow(3))
    spoil(world / "store" / "tweets" / "3")

    async def main() -> None:
        async with serving(made, world) as (client, endpoint):
            for _ in range(5):
                assert check(await ask(client), made) == 1
                await until_quiet(endpoint)
            assert endpoint.shadows.inside == endpoint.gate.inside == 0
        rows = recorded(world)
        assert (rows[3, "shadow"]["requests"], rows[3, "shadow"]["errors"]) == (5, 5)
        assert (rows[1, "default"]["requests"], rows[1, "default"]["errors"]) == (5, 0)

    run(main)


def test_copies_are_dropped_under_load_and_counted(made: Any, world: Path) -> None:
    open_store(str(world / "store")).point("tweets", steer.shadow(2))

    async def main() -> None:
        async with serving(made, world, max_batch_rows=4) as (client, endpoint):
            answers = await asyncio.gather(*(ask(client) for _ in range(40)))
            assert [check(answer, made) for answer in answers] == [1] * 40
            await until_quiet(endpoint)
        shadow = recorded(world)[2, "shadow"]
        assert shadow["dropped"] > 0
        assert shadow["requests"] + shadow["dropped"] == 40

    run(main)


# ----------------------------------------------------------------------------------------------- ids and feedback


def test_every_answer_carries_a_request_id(made: Any, world: Path) -> None:
    async def main() -> None:
        async with serving(made, world) as (client, endpoint):
            drawn = {(await ask(client)).headers["x-request-id"] for _ in range(3)}
            assert len(drawn) == 3
            assert all(len(identity) == 32 for identity in drawn)

            async def kept(given: str, path: str = "/v1/models") -> bool:
                response = await client.get(path, headers={"x-request-id": given})
                assert len(response.headers.get_list("x-request-id")) == 1
                return response.headers["x-request-id"] == given

            assert await kept("job-7:a.b_C")
            assert await kept("job-7", "/no/such/route")
            for given in ("", "a b", "x" * 129, "-a", "a\tb", "a;b"):
                assert not await kept(given)
            endpoint.cache._load = broken  # type: ignore[assignment]
            failed = await client.post(
                "/v1/predict", json={"model": "tweets@2", "inputs": "a"}, headers={"x-request-id": "mine"}
            )
            assert (failed.status_code, failed.headers["x-request-id"]) == (500, "mine")

    run(main)


async def broken(entry: Any) -> Any:
    raise RuntimeError("a fault of ours")


def test_feedback_finds_the_version_that_answered_on_any_replica(made: Any, world: Path) -> None:
    open_store(str(world / "store")).point("tweets", steer.split({1: 50, 2: 50}))

    async def main() -> None:
        async with serving(made, world) as (one, _), serving(made, world) as (two, _):
            given: Counter[int] = Counter()
            for number in range(20):
                answer = await ask(one, f"user-{number}")
                body = {"id": answer.headers["x-request-id"], "value": number % 2 == 0, "user": "anna"}
                told = await two.post("/v1/feedback", json=body)
                assert told.status_code == 200, told.text
                assert told.json() == {"id": body["id"], "model": "tweets", "version": version(answer)} | {
                    "variant": "split"
                }
                given[version(answer)] += 1
            await one.post("/v1/feedback", json=body | {"value": True})  # another mind: the last one counts
            await two.post("/v1/feedback", json=body | {"value": False})
            for wrong, status in (
                ({"id": "nobody", "value": 1}, 404),
                ({"id": body["id"][:-1], "value": 1}, 404),
                ({"id": f"{body['id']}\ttweets", "value": 1}, 400),
                ({"id": "\ud800", "value": 1}, 404),
                ({"id": body["id"], "value": "good"}, 400),
                ({"id": body["id"], "value": None}, 400),
                ({"id": body["id"], "value": 1, "note": "x"}, 400),
                ({"value": 1}, 400),
            ):
                kind = {"content-type": "application/json"}
                response = await two.post("/v1/feedback", content=json.dumps(wrong), headers=kind)
                assert response.status_code == status, (wrong, response.text)
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            infinite = await two.post("/v1/feedback", content=f'{{"id": "{body["id"]}", "value": Infinity}}')
            assert infinite.status_code == 400
        rows = recorded(world)
        assert {v: rows[v, "split"]["feedback"] for v in (1, 2)} == dict(given)
        assert sum(rows[v, "split"]["feedback"] * rows[v, "split"]["feedback_mean"] for v in (1, 2)) == 10

    run(main)


def test_feedback_needs_a_key_for_the_adapter(made: Any, world: Path) -> None:
    (world / "keys.yaml").write_text("- {key: team, adapters: [tweets]}\n- {key: other, adapters: [movies]}\n")

    async def main() -> None:
        async with serving(made, world, keys=str(world / "keys.yaml")) as (client, _):
            body = {"model": "tweets", "inputs": "good"}
            answer = await client.post("/v1/predict", json=body, headers={"x-api-key": "team"})
            feedback = {"id": answer.headers["x-request-id"], "value": 0.5}
            for key, status in (("team", 200), ("other", 403), ("nobody", 401)):
                told = await client.post("/v1/feedback", json=feedback, headers={"x-api-key": key})
                assert told.status_code == status

    run(main)


def test_recent_ids_are_bounded(made: Any, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_lora.serving.trials.results._IDS", 5)

    async def main() -> None:
        async with serving(made, world) as (client, endpoint), serving(made, world) as (other, _):
            ids = [(await ask(client)).headers["x-request-id"] for _ in range(20)]
            assert len(endpoint.results._ids) == 5
            statuses = [(await other.post("/v1/feedback", json={"id": i, "value": 1})).status_code for i in ids]
            assert statuses[-5:] == [200] * 5
            assert statuses[:10] == [404] * 10

    run(main)


def test_results_that_cannot_be_written_hurt_no_answer(
    made: Any, world: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (world / "results").write_text("a file where a folder should be")

    async def main() -> None:
        async with serving(made, world) as (client, _):
            answer = await ask(client)
            assert check(answer, made) == 1

    run(main)
    assert caplog.text.count("results cannot be written") == 1


# ------------------------------------------------------------------------------------------------- what is compared


def outcome(requests: int = 0, errors: int = 0, values: Any = ()) -> Outcome:
    return Outcome(
        Tally(requests=requests, errors=errors), {str(n): (float(n), value) for n, value in enumerate(values)}
    )


def split_of(*outcomes: Outcome) -> dict[Arm, Outcome]:
    return {Arm("n", number + 1, "split", "now"): outcome for number, outcome in enumerate(outcomes)}


def test_each_kind_of_feedback_has_its_named_test() -> None:
    many = split_of(outcome(values=[True] * 60 + [False] * 40), outcome(values=[True] * 75 + [False] * 25))
    (test,) = compare(many, "n")["tests"]
    assert test["test"] == "two-proportion z-test"
    # without Yates' correction chi-square is the square of z
    chi2 = stats.chi2_contingency([[60, 40], [75, 25]], correction=False)
    assert test["p_value"] == pytest.approx(chi2.pvalue, rel=1e-9)
    assert test["statistic"] ** 2 == pytest.approx(chi2.statistic, rel=1e-9)
    assert test["statistic"] > 0

    few = split_of(outcome(values=[True] * 8 + [False]), outcome(values=[True] * 3 + [False] * 7))
    (test,) = compare(few, "n")["tests"]
    assert test["test"] == "Fisher's exact test"
    assert test["p_value"] == pytest.approx(stats.fisher_exact([[8, 1], [3, 7]])[1])

    numbers = [1.0, 2, 4, 3], [2.5, 5, 6]
    (test,) = compare(split_of(outcome(values=numbers[0]), outcome(values=numbers[1])), "n")["tests"]
    assert test["test"] == "Welch's t-test"
    welch = stats.ttest_ind(numbers[1], numbers[0], equal_var=False)
    assert (test["statistic"], test["p_value"]) == pytest.approx((welch.statistic, welch.pvalue))

    for values in ([1.0], [2.0, 2.0]):
        (test,) = compare(split_of(outcome(values=values), outcome(values=values)), "n")["tests"]
        assert test["p_value"] is None


def test_several_versions_are_held_against_the_first_and_adjusted() -> None:
    found = compare(split_of(outcome(100, 10), outcome(100, 30), outcome(100, 25), outcome(0)), "n")
    assert [test["versions"] for test in found["tests"]] == [[1, 2], [1, 3]]
    raw = [stats.chi2_contingency([[10, 90], [n, 100 - n]], correction=False).pvalue for n in (30, 25)]
    assert [test["p_value"] for test in found["tests"]] == pytest.approx([2 * raw[0], raw[1]])
    assert compare({}, "n") == {"name": "n", "began": None, "versions": [], "tests": []}


def test_quantiles_of_merged_tallies_are_close() -> None:
    chance = random.Random(0)
    times = [chance.lognormvariate(-4, 1) for _ in range(2000)]
    tallies = [Tally(), Tally()]
    for number, seconds in enumerate(times):
        tallies[number % 2].answered(seconds, [{"label": "a", "score": 0.95}])
    whole = Tally.load(json.loads(json.dumps(tallies[0].dump())))
    whole.add(tallies[1])
    for share in (0.5, 0.95):
        assert whole.quantile(share) == pytest.approx(sorted(times)[int(share * len(times))], rel=0.03)
    assert whole.mean == pytest.approx(sum(times) / len(times))
    assert (whole.requests, whole.labels, whole.scores) == (2000, {"a": 2000}, {9: 2000})


def test_the_command_prints_a_table(made: Any, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_store(str(world / "store")).point("tweets", steer.split({1: 50, 2: 50}))

    async def serve() -> None:
        async with serving(made, world) as (client, _):
            for number in range(30):
                answer = await ask(client, f"user-{number}")
                body = {"id": answer.headers["x-request-id"], "value": version(answer) == 2}
                await client.post("/v1/feedback", json=body)

    run(serve)
    where = ["--store", str(world / "store"), "--results", str(world / "results")]
    assert main(["adapters", "ab", "tweets", *where, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sum(row["requests"] for row in told["versions"]) == 30
    feedback = next(test for test in told["tests"] if test["metric"] == "feedback")
    assert feedback["test"] in ("two-proportion z-test", "Fisher's exact test")
    assert feedback["p_value"] < 0.001
    assert main(["adapters", "ab", "tweets", *where]) == 0
    out = capsys.readouterr().out
    assert feedback["test"] in out
    assert "LABEL_" in out
    assert main(["adapters", "ab", "nothing", *where]) == 2
    assert "no results of 'nothing'" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ MLflow


@pytest.mark.filterwarnings(*MLFLOW_WARNINGS)
def test_a_trial_is_one_run_in_mlflow_whatever_the_replicas(made: Any, world: Path) -> None:
    from mlflow import MlflowClient

    uri = database(world / "mlflow")
    store = open_store(str(world / "store"))
    store.point("tweets", steer.split({1: 50, 2: 50}))

    async def serve(count: int) -> None:
        async with (
            serving(made, world, tracking_uri=uri) as (one, _),
            serving(made, world, tracking_uri=uri) as (two, _),
        ):
            for number in range(count):
                answer = await ask((one, two)[number % 2], f"user-{number}")
                await one.post("/v1/feedback", json={"id": answer.headers["x-request-id"], "value": True})

    run(lambda: serve(12))
    run(lambda: serve(4))  # a restart goes on in the same run
    rows = recorded(world)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tweets")
    assert experiment is not None
    (mlflow_run,) = client.search_runs([experiment.experiment_id])
    for number in (1, 2):
        assert mlflow_run.data.metrics[f"requests.v{number}"] == rows[number, "split"]["requests"]
        assert mlflow_run.data.metrics[f"feedback.v{number}"] == rows[number, "split"]["feedback"]
    assert mlflow_run.data.metrics["requests.v1"] + mlflow_run.data.metrics["requests.v2"] == 16
    assert mlflow_run.info.status == "RUNNING"
    store.point("tweets", steer.promote(2))
    run(lambda: serve(1))
    (mlflow_run,) = client.search_runs([experiment.experiment_id])
    assert mlflow_run.info.status == "FINISHED"


def test_mlflow_away_hurts_no_answer(made: Any, world: Path) -> None:
    open_store(str(world / "store")).point("tweets", steer.split({1: 50, 2: 50}))

    async def main() -> None:
        async with serving(made, world, tracking_uri="http://127.0.0.1:9") as (client, endpoint):
            for number in range(10):
                check(await ask(client, f"user-{number}"), made)
            await endpoint.results._save()
            check(await ask(client), made)

    run(main)
    assert sum(row["requests"] for row in recorded(world).values()) == 11


def test_of_a_split_over_a_version_that_is_gone_the_rest_answers(
    made: Any, world: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(str(world / "store"))
    store.point("tweets", steer.split({1: 0, 2: 50, 3: 50}))
    with pytest.raises(AdapterNotFoundError, match="no version 9"):
        store.point("tweets", steer.split({2: 50, 9: 50}))

    async def work() -> None:
        async with serving(made, world) as (client, _):
            users = [f"user-{number}" for number in range(24)]
            before = {user: check(await ask(client, user), made) for user in users}
            assert set(before.values()) == {2, 3}
            shutil.rmtree(world / "store" / "tweets" / "3")  # by hand: `adapters rm` refuses what is on trial
            with caplog.at_level(logging.WARNING):
                for user in users:
                    assert check(await ask(client, user), made) == 2
            assert caplog.text.count("tweets@3 is in a split and is gone") == 1
            shutil.rmtree(world / "store" / "tweets" / "2")
            assert {check(await ask(client, user), made) for user in users} == {1}  # the champion

    run(work)
