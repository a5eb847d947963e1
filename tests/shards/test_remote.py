"""Shards in stores elsewhere: real loopback servers of HTTP and S3 that stutter, hang and lie."""

import logging
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from kinetics_bench.commands.train import parser as train_parser
from kinetics_bench.data.splits import select
from kinetics_bench.evaluation.evaluate import Test as Evaluation
from kinetics_bench.evaluation.evaluate import evaluate, predict_split
from kinetics_bench.protocols import PROTOCOLS
from kinetics_bench.recipes import OneCycle
from kinetics_bench.training.trainer import train
from kinetics_tools.core import http_answers, store
from kinetics_tools.core.errors import KineticsError, ShardError, StoreError
from kinetics_tools.core.file_cache import FileCache
from kinetics_tools.shards.reader import Sample, ShardFolder
from kinetics_tools.shards.records import Location
from mirror import MirrorServer, Served, serve
from support import environment, run_command, tree, wait_until
from tiny import tiny_recipe, tiny_shards
from trainings import CPU, job

FLOW = "opencv-tvl1"
RGB_SHARD = "/shards/all/rgb-000000.tar"
PLENTY = 10**9


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Wait less for a store, also in commands."""
    monkeypatch.setattr(store, "PAUSES_S", (0.01, 0.02))
    monkeypatch.setenv("KINETICS_TOOLS_TIMEOUT_S", "2")
    http_answers.limits.cache_clear()
    yield
    http_answers.limits.cache_clear()


def put_shards(server: MirrorServer, root: str = "/shards") -> None:
    for path in tiny_shards().rglob("[!.]*.*"):
        server.put(f"{root}/{path.relative_to(tiny_shards())}", path.read_bytes())


@pytest.fixture
def server() -> Iterator[MirrorServer]:
    """The tiny shards on a server of HTTP."""
    with serve() as known:
        put_shards(known)
        yield known


def samples(folder: str | Path, cache: FileCache | None = None) -> list[Sample]:
    return list(ShardFolder(folder, cache=cache).samples("all", flow=FLOW))


def local() -> list[Sample]:
    return samples(tiny_shards())


def contents(sample: Sample) -> tuple[str, bytes, bytes]:
    return sample.key, sample.rgb().tobytes(), sample.codes().tobytes()


def first_place(server: MirrorServer, cache: FileCache | None = None) -> Location:
    place = samples(f"{server.address}/shards", cache)[0].rgb_at
    assert place is not None
    return place


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


# HTTP


def test_samples_by_http_are_those_of_the_folder(server: MirrorServer) -> None:
    assert list(map(contents, samples(f"{server.address}/shards/"))) == list(map(contents, local()))
    assert len(server.gets("/shards/dataset.json")) == 1
    assert len(server.gets("/shards/all/index.parquet")) == 1
    num_bytes = server.bytes_sent[RGB_SHARD]
    assert num_bytes < len(server.files[RGB_SHARD].content)  # only what the samples need


def test_a_store_that_fails_twice_answers(server: MirrorServer) -> None:
    for path in ("/shards/dataset.json", "/shards/all/index.parquet", RGB_SHARD):
        server.files[path].statuses += [503, 500]
    place = first_place(server)
    place.read()
    server.files[RGB_SHARD].breaks += [place.offset + 10, place.offset + 20]
    assert place.read() == local()[0].rgb_at.read()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("manner", "said", "tries"),
    [
        ({"statuses": [503] * 9}, "HTTP 503 .* in 3 tries; run the same command again", 3),
        ({"always_breaks": 3000}, "in 3 tries; run the same command again", 3),
        ({"statuses": [403] * 9}, "HTTP 403 .*check the address, and the credentials", 1),
        ({"statuses": [404]}, "is gone; copy the shards there again", 1),
        ({"ranges": False}, "gives no parts of files", 1),
        ({"shorter": 7}, "gave bytes .* not ", 1),
    ],
)
def test_what_a_shard_cannot_give_is_one_line_with_its_address(
    manner: dict[str, object], said: str, tries: int, server: MirrorServer
) -> None:
    place = first_place(server)
    for name, value in manner.items():
        setattr(server.files[RGB_SHARD], name, value)
    with pytest.raises(ShardError, match=said) as caught:
        place.read()
    assert server.address + RGB_SHARD in one_line(caught.value)
    assert len(server.gets(RGB_SHARD)) == tries


def test_a_store_that_never_answers_is_one_line(
    server: MirrorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINETICS_TOOLS_TIMEOUT_S", "0.2")
    http_answers.limits.cache_clear()
    server.files["/shards/dataset.json"].hangs = True
    with pytest.raises(StoreError, match="in 3 tries") as caught:
        ShardFolder(f"{server.address}/shards")
    assert f"{server.address}/shards/dataset.json" in one_line(caught.value)


@pytest.mark.parametrize("change", ["cut off", "cut off before", "other", "damaged"])
def test_a_shard_that_was_replaced_is_one_line(change: str, server: MirrorServer) -> None:
    place = first_place(server)
    whole = server.files[RGB_SHARD].content
    middle = place.offset + place.size // 2
    changed = {
        "cut off": whole[:middle],
        "cut off before": whole[:100],
        "other": whole[512:],
        "damaged": whole[:middle] + b"no" + whole[middle + 2 :],
    }
    server.put(RGB_SHARD, changed[change])
    said = "is damaged" if change == "damaged" else "does not hold .* where the index says"
    with pytest.raises(ShardError, match=said) as caught:
        place.read()
    assert place.name in one_line(caught.value)


@pytest.mark.parametrize("name", ["dataset.json", "all/index.parquet"])
def test_a_file_that_is_no_record_is_one_line(name: str, server: MirrorServer) -> None:
    server.put(f"/shards/{name}", b"{}")
    with pytest.raises(ShardError, match=name) as caught:
        samples(f"{server.address}/shards")
    one_line(caught.value)


def test_a_file_without_end_is_not_read_to_its_end(
    server: MirrorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kinetics_tools.shards.records.MAX_JSON_BYTES", 1000)
    server.put("/shards/dataset.json", bytes(10**8), says_length=False)
    with pytest.raises(StoreError, match="larger than 1000 bytes"):
        ShardFolder(f"{server.address}/shards")
    assert server.bytes_sent["/shards/dataset.json"] < 10**8


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://me:secret@host/shards", "https://...@host holds a password"),
        ("https://host/shards?token=secret", "'https://host/shards' is not the address"),
        ("s3://", "'s3://' is not the address"),
        ("nosuch://host/shards", "nosuch.* check the address"),
        ("http://127.0.0.1:1/shards", "in 3 tries"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line(address: str, said: str) -> None:
    with pytest.raises(KineticsError, match=said) as caught:
        ShardFolder(address)
    assert "secret" not in one_line(caught.value)


def test_plain_paths_import_nothing_of_the_stores() -> None:
    code = (
        "import sys; from kinetics_tools.shards import ShardFolder\n"
        f"sample = next(iter(ShardFolder({str(tiny_shards())!r}).samples('all', ['rgb'])))\n"
        "sample.rgb_at.read()\n"
        "print(sorted({'fsspec', 's3fs', 'requests', 'aiohttp'} & sys.modules.keys()))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert said.stdout == "[]\n"


# The cache


def test_what_was_read_once_is_not_asked_for_again(server: MirrorServer, tmp_path: Path) -> None:
    for _ in range(2):
        cache = FileCache(tmp_path / "cache", PLENTY)
        assert list(map(contents, samples(f"{server.address}/shards", cache))) == list(
            map(contents, local())
        )
    assert len(server.gets(RGB_SHARD)) == 8
    assert len(server.gets("/shards/dataset.json")) == 2  # a changed one is noticed


def test_a_damaged_file_of_the_cache_is_fetched_again(
    server: MirrorServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = first_place(server, FileCache(tmp_path, PLENTY))
    whole = place.read()
    (kept,) = tmp_path.glob("[!.]*")
    for damaged in (b"", whole[:-1], whole + b"x", bytes(len(whole))):
        kept.write_bytes(damaged)
        assert place.read() == whole
        assert kept.read_bytes() == whole
    assert "is damaged, and is fetched again" in caplog.text


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("[!.]*"))


def name_of(number: int) -> str:
    """A name of data, as a digest and a size give it."""
    return f"{number:064x}-100"


def test_the_least_recently_read_is_removed(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 1000)
    for number in range(9):
        cache.put(name_of(number), bytes(100))
        os.utime(tmp_path / name_of(number), (number, number))
    assert cache.get(name_of(0), bool, size=100) == bytes(100)
    cache.put(name_of(9), bytes(300))
    left = {path.name for path in tmp_path.glob("[!.]*")}
    assert {name_of(0), name_of(9)} <= left
    assert name_of(1) not in left
    assert total(tmp_path) <= 1000
    cache.put(name_of(10), bytes(1001))
    assert total(tmp_path) <= 1000
    FileCache(tmp_path, 400).tidy()  # a lower limit
    assert total(tmp_path) <= 400


_WRITER = """
import os, sys
from pathlib import Path
from kinetics_tools.core.file_cache import FileCache

cache = FileCache(Path(sys.argv[1]), 20_000)
for number in range(300):
    name = f"{(number * int(sys.argv[2])) % 47:064x}-1380"
    data = name.encode() * 20
    kept = cache.get(name, lambda read: read == data, size=len(data))
    if kept is None:
        cache.put(name, data)
    there = 0
    for path in Path(sys.argv[1]).glob("[!.]*"):
        try:
            there += path.stat().st_size
        except FileNotFoundError:
            pass
    # What another process puts while these are looked at may be counted beside what it removed.
    assert there <= 24_000, there
print("done")
"""


def start_writer(folder: Path, step: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(folder), str(step)],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_two_processes_share_a_cache_with_a_tiny_limit(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path, step) for step in (5, 11)]
    said = [writer.communicate(timeout=60)[0] for writer in writers]
    assert said == ["done\n"] * 2  # nothing was damaged
    assert 0 < total(tmp_path) <= 20_000


_KILLED = """
import os, signal, sys
from pathlib import Path
from kinetics_tools.core.file_cache import FileCache

real = Path.write_bytes

def half(path, data):
    real(path, data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

Path.write_bytes = half
FileCache(Path(sys.argv[1]), 20_000).put("0" * 64 + "-1000", bytes(1000))
"""


def test_a_killed_writer_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILLED, str(tmp_path)]
    killed = subprocess.run(command, env=environment(), check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".part-*")
    assert left.stat().st_size == 500
    cache = FileCache(tmp_path, 20_000)
    assert cache.get(name_of(0), bool, size=1000) is None
    cache.put(name_of(0), bytes(1000))  # the lock is free, and the data as whole as ever
    assert cache.get(name_of(0), bool, size=1000) == bytes(1000)
    cache.tidy()
    assert not list(tmp_path.glob(".part-*"))
    assert (tmp_path / ".total").read_text() == "1000"


@pytest.mark.full
def test_writers_killed_at_any_moment_leave_a_whole_cache(tmp_path: Path) -> None:
    for number in range(20):
        writer = start_writer(tmp_path, 7)
        wait_until(lambda: list(tmp_path.glob("[!.]*")))
        time.sleep(0.05 * (number % 7))
        writer.kill()
        writer.communicate()
    last = start_writer(tmp_path, 7)
    assert last.communicate(timeout=60)[0] == "done\n"
    FileCache(tmp_path, 20_000).tidy()
    assert not list(tmp_path.glob(".part-*"))
    assert int((tmp_path / ".total").read_text()) == total(tmp_path) <= 20_000


def test_a_full_disk_costs_the_cache_and_one_line(
    server: MirrorServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit on the size of files stands for the full disk: both fail the write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    given = samples(f"{server.address}/shards", FileCache(tmp_path, PLENTY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        data = [sample.rgb_at.read() for sample in given]  # type: ignore[union-attr]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert data == [sample.rgb_at.read() for sample in local()]  # type: ignore[union-attr]
    lines = [line for line in caplog.messages if "cache" in line]
    assert len(lines) == 1
    assert f"the cache {tmp_path} cannot be used (File too large)" in lines[0]
    assert not list(tmp_path.glob("[!.]*"))
    assert not list(tmp_path.glob(".part-*"))


def test_a_folder_that_cannot_be_one_costs_the_cache(
    server: MirrorServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = FileCache(tmp_path / "file", PLENTY)
    cache.tidy()
    first_place(server, cache).read()
    assert len([line for line in caplog.messages if "cannot be used" in line]) == 1


# S3


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of the tiny shards on a real server of S3."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket="bucket")
    for path in tiny_shards().rglob("[!.]*.*"):
        name = path.relative_to(tiny_shards())
        client.put_object(Bucket="bucket", Key=f"a/b/{name}", Body=path.read_bytes())
    yield f"http://{host}:{port}"
    server.stop()


def use_s3(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Let the AWS libraries of this process and its children ask `endpoint`."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store._filesystems.clear()


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.full)])
def test_samples_on_s3_are_those_of_the_folder_in_any_process(
    method: str, s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_s3(monkeypatch, s3)
    given = samples("s3://bucket/a/b", FileCache(tmp_path, PLENTY))
    expected = list(map(contents, local()))
    assert contents(given[0]) == expected[0]  # this process has used the store, and now forks
    assert len(pickle.dumps(given[0])) < 1200
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map_async(contents, given).get(60) == expected


def test_what_s3_does_not_have_is_one_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, s3)
    for address in ("s3://bucket/nothing", "s3://nobucket/x"):
        with pytest.raises(ShardError, match=f"{address} holds no shards") as caught:
            ShardFolder(address)
        one_line(caught.value)
    place = samples("s3://bucket/a/b")[0].rgb_at
    assert place is not None
    with pytest.raises(ShardError, match=r"s3://bucket/a/b/all/rgb-000000.tar does not hold"):
        replace(place, offset=10**8).read()
    with pytest.raises(ShardError, match=r"s3://bucket/a/b/none.tar is gone"):
        replace(place, shard=store.Address.of("s3://bucket/a/b/none.tar")).read()


def test_an_s3_that_stutters_refuses_or_hangs(
    server: MirrorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_s3(monkeypatch, server.address)
    put_shards(server, "/bucket")
    given = samples("s3://bucket")
    tar: Served = server.files["/bucket/all/rgb-000000.tar"]
    place = given[0].rgb_at
    assert place is not None
    tar.statuses += [503, 503]
    whole = place.read()
    tar.statuses += [403]
    with pytest.raises(StoreError, match="check the address, and the credentials") as caught:
        place.read()
    assert "s3://bucket/all/rgb-000000.tar" in one_line(caught.value)
    tar.hangs = True
    monkeypatch.setenv("KINETICS_TOOLS_TIMEOUT_S", "1")
    http_answers.limits.cache_clear()
    with pytest.raises(StoreError, match="in 3 tries") as caught:
        place.read()
    assert "s3://bucket/all/rgb-000000.tar" in one_line(caught.value)
    tar.hangs = False
    assert place.read() == whole


def test_a_store_whose_package_is_missing_is_one_line() -> None:
    if sys.modules.get("gcsfs") is None:
        with pytest.raises(StoreError, match="gcsfs") as caught:
            ShardFolder("gs://bucket/shards")
        one_line(caught.value)


# A whole run


def test_an_evaluation_by_http_gives_the_same_predictions(
    server: MirrorServer, tmp_path: Path
) -> None:
    given = job(tmp_path / "run", tiny_recipe(schedule=OneCycle(epochs=1, peak_lr=1e-3)))
    checkpoint = train(given, CPU)

    def test_of(data: ShardFolder, num_workers: int) -> Evaluation:
        return Evaluation(
            data=data,
            selection=select(data, "all", role="test", streams=("rgb",)),
            flow="",
            protocol=PROTOCOLS["whole"],
            num_workers=num_workers,
        )

    here = test_of(given.data, 0)
    server.files[RGB_SHARD].statuses += [503, 0, 503]
    cache = FileCache(tmp_path / "cache", PLENTY)
    elsewhere = test_of(ShardFolder(f"{server.address}/shards", cache=cache), 2)
    first = evaluate(checkpoint, here, tmp_path / "here", CPU)
    second = evaluate(checkpoint, elsewhere, tmp_path / "elsewhere", CPU)
    assert second.data.identity == first.data.identity
    assert not second.failed
    expected, found = (
        first.predictions(tmp_path / "here"),
        second.predictions(tmp_path / "elsewhere"),
    )
    assert found.keys == expected.keys
    assert (found.logits == expected.logits).all()
    # Reused: where the shards lie is no part of what decides.
    assert evaluate(checkpoint, elsewhere, tmp_path / "here", CPU) == first
    server.put(RGB_SHARD, server.files[RGB_SHARD].content[:2000])
    lost = test_of(ShardFolder(f"{server.address}/shards"), 2)
    with pytest.raises(ShardError, match=f"{server.address}{RGB_SHARD} does not hold") as caught:
        predict_split(checkpoint, lost, CPU)
    one_line(caught.value)


def test_a_command_without_its_store_is_one_line(server: MirrorServer, tmp_path: Path) -> None:
    place = f"{server.address}/nothing"
    command = ("--arch", "i3d", "--stream", "rgb", "--data", place, "--work-dir", tmp_path / "run")
    done = run_command("run-benchmark", *command, "--cache-bytes", "1GB")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {place} holds no shards (no dataset.json)")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("http://h/shards/", "http://h/shards"),
        ("s3://bucket//", "s3://bucket"),
        ("s3://", "s3://"),
        ("shards/", Path("shards")),
    ],
)
def test_a_slash_at_the_end_of_an_address_says_nothing(text: str, data: str | Path) -> None:
    arguments = train_parser().parse_args(["--arch", "i3d", "--data", text])
    assert arguments.data == data


def test_a_cache_removes_nothing_that_it_did_not_make(tmp_path: Path) -> None:
    for name in ("thesis.tex", "dataset.json", ".part-host-1-thesis.tex", "0123456789abcdef"):
        (tmp_path / name).write_bytes(b"x" * 5000)
    (tmp_path / "0123456789abcdef-7").mkdir()
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".total").symlink_to(tmp_path / "victim")
    before = tree(tmp_path)
    cache = FileCache(tmp_path, 1000)
    cache.tidy()
    cache.put(f"{'0' * 64}-900", b"y" * 900)
    assert {name: tree(tmp_path).get(name) for name in before} == before


@pytest.mark.parametrize(
    "text", ["zip://x::s3://bucket/y", "https://a:b@host/x", "s3://", "s3://b/x?y"]
)
def test_an_address_that_cannot_work_is_one_line(text: str) -> None:
    with pytest.raises(StoreError):
        store.Address.of(text)


def test_the_scheme_of_an_address_may_have_capitals() -> None:
    assert store.is_address("HTTPS://Host/Shards")
    assert str(store.Address.of("HTTPS://Host/Shards/")) == "https://Host/Shards"
    assert str(store.Address.of("github://org:repo@main/x")) == "github://org:repo@main/x"
