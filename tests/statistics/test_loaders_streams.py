"""Streams and loaders of every make: looking leaves the epoch whole, or is refused before it."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import queue
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, ChainDataset, DataLoader, IterableDataset, Sampler
from torch.utils.data.datapipes.iter import IterableWrapper

import normkit as nk
from normkit.statistics.batches import copies
from normkit.statistics.batches.detached_loader import DetachedLoader

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*create suggested max number of worker"),
    pytest.mark.filterwarnings("ignore:Local function is not supported by pickle"),
]
DATA = torch.randn(24, 3, generator=torch.Generator().manual_seed(1))


class Stream(IterableDataset[Tensor]):
    """Starts anew each time; others override ``__iter__``."""

    def __init__(self) -> None:
        self.data = list(DATA)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.data


class OneIterator(Stream):
    def __init__(self) -> None:
        self.rest = iter(DATA.unbind())

    def __iter__(self) -> Iterator[Tensor]:
        return self.rest


class OneOfItertools(OneIterator):
    def __init__(self) -> None:
        self.rest = itertools.islice(itertools.chain(DATA[:10], DATA[10:]), 24)


class OneGenerator(OneIterator):
    def __init__(self) -> None:
        self.rest = (x for x in DATA)


class Position(Stream):
    position = 0

    def __iter__(self) -> Iterator[Tensor]:
        while self.position < len(DATA):
            self.position += 1
            yield DATA[self.position - 1]


class TensorPosition(Stream):
    def __init__(self) -> None:
        self.position = torch.zeros((), dtype=torch.int64)

    def __iter__(self) -> Iterator[Tensor]:
        while self.position < len(DATA):
            self.position += 1
            yield DATA[self.position - 1]


class Itself(Stream):
    position = 0

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if self.position == len(DATA):
            raise StopIteration
        self.position += 1
        return DATA[self.position - 1]


class Buffered(Stream):
    """Shuffles through a buffer that outlives an iterator, by generators of its own."""

    def __init__(self) -> None:
        self.source, self.buffer = iter(DATA.unbind()), []
        self.numpy, self.python = np.random.default_rng(0), random.Random(0)
        self.torch = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[Tensor]:
        for x in self.source:
            self.buffer.append(x + self.numpy.random() + self.python.random())
            if len(self.buffer) > 5:
                yield self.buffer.pop(int(torch.randint(5, (), generator=self.torch)))
        while self.buffer:
            yield self.buffer.pop()


class Locked(Stream):
    """What cannot be copied is no position."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.connection = threading.RLock(), sqlite3.connect(":memory:")


class Opened(Stream):
    """Reads on in a file that it has opened."""

    def __init__(self, folder: Any = None) -> None:
        self.file = io.TextIOWrapper(io.BytesIO(b"\n".join(b"%d" % i for i in range(24))))

    def __iter__(self) -> Iterator[Tensor]:
        return (DATA[int(line)] for line in self.file)


class Queued(Stream):
    """Takes what others put."""

    def __init__(self) -> None:
        self.queue: Any = queue.SimpleQueue()
        for x in [*DATA, *[None] * 20]:
            self.queue.put(x)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.queue.get, None)


class Counted(Stream):
    """Counts in memory that processes share."""

    def __init__(self) -> None:
        self.position = multiprocessing.Value("i", 0)

    def __iter__(self) -> Iterator[Tensor]:
        while self.position.value < len(DATA):
            self.position.value += 1
            yield DATA[self.position.value - 1]


class Elsewhere(Stream):
    """Takes an iterator from somewhere else."""

    def __init__(self) -> None:
        rest = iter(DATA.unbind())
        self.source = lambda: rest

    def __iter__(self) -> Iterator[Tensor]:
        return self.source()


class Reopened(Stream):
    """Cannot be copied, and begins again each time."""

    def __init__(self) -> None:
        self.file = io.TextIOWrapper(io.BytesIO(b"\n".join(b"%d" % i for i in range(24))))

    def __iter__(self) -> Iterator[Tensor]:
        self.file.seek(0)
        for line in self.file:
            yield DATA[int(line)]


class Numbers(Sampler[int]):
    """Continues where it has stopped."""

    def __init__(self) -> None:
        self.rest = iter(range(240))

    def __iter__(self) -> Iterator[int]:
        return (i % 24 for i in itertools.islice(self.rest, 24))

    def __len__(self) -> int:
        return 24


class NumbersOfGenerator(Numbers):
    def __init__(self) -> None:
        self.rest = (i for i in range(240))


class Endless(DataLoader[Tensor]):
    """One iterator for all epochs, as in the detectors of a well-known package."""

    def __init__(self, **options: Any) -> None:
        super().__init__(DATA, batch_size=4, sampler=Numbers(), **options)
        self.iterator = super().__iter__()

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        for _ in range(len(self)):
            try:
                yield next(self.iterator)
            except StopIteration:
                self.iterator = super().__iter__()
                yield next(self.iterator)


class Moving:
    """Wraps a loader, to move its batches to a device."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.loader:
            yield batch.float().view(-1, 3)


def shuffled(**options: Any) -> DataLoader[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return DataLoader(DATA, batch_size=4, shuffle=True, generator=generator, **options)  # type: ignore[arg-type]


def of(stream: Callable[[], Any], **options: Any) -> Callable[[], Any]:
    return lambda: DataLoader(stream(), batch_size=4, **options)


def pipe() -> Any:
    return IterableWrapper(list(DATA)).shuffle(buffer_size=7).map(_double)


def _double(x: Tensor) -> Tensor:
    return 2 * x


MAKES: dict[str, Callable[[], Any]] = {
    **{
        cls.__name__: of(cls)
        for cls in (Stream, OneIterator, OneOfItertools, OneGenerator, Position, TensorPosition,
                    Itself, Buffered, Locked, Opened, Queued, Counted, Elsewhere, Reopened)
    },
    "chain": of(lambda: ChainDataset([OneIterator(), Position()])),
    "pipe": of(pipe),
    "pipe with a lambda": of(lambda: IterableWrapper(list(DATA)).map(lambda x: x + 1)),
    "workers": of(OneIterator, num_workers=1),
    "workers that stay": of(OneGenerator, num_workers=1, persistent_workers=True),
    "no loader": lambda: Moving(OneIterator()),
    "numbers": lambda: DataLoader(DATA, batch_size=4, sampler=Numbers()),  # type: ignore[arg-type]
    "numbers of a generator": lambda: DataLoader(  # type: ignore[arg-type]
        DATA, batch_size=4, sampler=NumbersOfGenerator()
    ),
    "generator of batches": lambda: DataLoader(  # type: ignore[arg-type]
        DATA, batch_sampler=(list(range(i, i + 4)) for i in range(0, 24, 4))
    ),
    "batches of numbers": lambda: DataLoader(  # type: ignore[arg-type]
        DATA, batch_sampler=BatchSampler(Numbers(), 4, drop_last=False)
    ),
    "endless": Endless,
    "wrapped": lambda: Moving(shuffled()),
    "wrapped twice": lambda: Moving(Moving(shuffled())),
    "wrapped workers that stay": lambda: Moving(shuffled(num_workers=1, persistent_workers=True)),
    "wrapped stream": lambda: Moving(of(OneIterator)()),
}  # fmt: skip
REFUSED = {"OneGenerator", "Opened", "Queued", "Counted", "Elsewhere", "Reopened",
           "numbers of a generator", "generator of batches", "endless"}  # fmt: skip
BY_EVERY_TOOL = {"OneIterator", "OneGenerator", "numbers", "endless", "wrapped"}
CONSUMED = {"OneGenerator", "Opened", "Queued", "Counted", "Elsewhere", "generator of batches"}
"""Nobody is in the middle of them, and they cannot be copied: as iterators."""


def tools() -> dict[str, Callable[[Any], Any]]:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nk.BatchNorm1d(3))
    options: dict[str, Any] = {"samples": None, "progress": False}
    return {
        # One layer takes one pass; "layerwise" takes several.
        "recalibrate": lambda loader: nk.recalibrate(nk.BatchNorm1d(3), loader, **options),
        "layerwise": lambda loader: nk.recalibrate(net, loader, layerwise=True, **options),
        "consistency": lambda loader: nk.consistency(net, loader, **options),
    }


@pytest.mark.parametrize("name", MAKES)
def test_middle_of_an_epoch(name: str) -> None:
    torch.manual_seed(0)
    expected = list(MAKES[name]())
    assert len(expected) in (6, 12, 24)
    for tool, run in tools().items():
        if tool != "recalibrate" and name not in BY_EVERY_TOOL:
            continue
        torch.manual_seed(0)
        loader = MAKES[name]()
        epoch = iter(loader)
        seen = [next(epoch) for _ in range(2)]
        try:
            found = run(loader)
        except nk.DataError as error:
            assert name in REFUSED, error
            assert "in the middle of an epoch" in str(error) and "Fix: pass another" in str(error)
        else:
            assert name not in REFUSED
            assert found.samples >= 16, tool
        seen += epoch
        assert len(seen) == len(expected)
        assert all(map(torch.equal, seen, expected)), tool


@pytest.mark.parametrize("name", [name for name in MAKES if not name.startswith("workers")])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_between_epochs(name: str, after: bool) -> None:
    """Works, also where nothing can be copied; and leaves whole what can be."""

    def epochs(look: bool) -> list[Tensor]:
        # One layer, as later ones need several passes over batches as small as these.
        layer = nk.BatchNorm1d(3)
        torch.manual_seed(0)
        loader = MAKES[name]()
        # Whoever holds an iterator that has ended is not in the middle.
        epoch = iter(loader) if after else iter([])
        seen = list(epoch)
        if look and (name not in CONSUMED or not after):
            try:
                found = nk.recalibrate(layer, loader, samples=None, progress=False)
            except nk.StatisticsError as error:
                assert after and "at least one batch" in str(error), error
            else:
                assert found.samples in (24, 48)
        del epoch
        return seen + list(loader)

    plain, looked = epochs(False), epochs(True)
    if name in CONSUMED and not after:
        assert looked == []
    elif name not in REFUSED:
        assert len(plain) == len(looked)
        assert all(map(torch.equal, plain, looked))


class Active(DataLoader[Tensor]):
    """Is the active one while it is iterated over, as those of accelerate; wraps one of torch's."""

    active: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        super().__init__(DATA)  # type: ignore[arg-type]
        self.base = shuffled()

    def end(self) -> None:
        self.active[:] = [one for one in self.active if one is not self]

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        self.active.append(self)
        yield from self.base
        self.end()


@pytest.mark.parametrize("run", [nk.recalibrate, nk.consistency])
def test_active_loader_stays_the_active_one(run: Any) -> None:
    expected, loader = list(Active()), Active()
    seen = []
    for x in loader:
        seen.append(x)
        found = run(nn.BatchNorm1d(3), loader, samples=8, progress=False)
        assert found.samples == 8
        assert Active.active == [loader]
    assert all(map(torch.equal, seen, expected))
    assert not Active.active


def test_nothing_of_a_generator_is_lost() -> None:
    for run in (nk.recalibrate, nk.consistency):
        batches = iter(DATA.split(4))
        found = run(nn.BatchNorm1d(3), batches, samples=10, progress=False)
        assert found.samples == 12
        assert torch.equal(next(batches), DATA[12:16])


class Feed:
    """Is no iterator, and has but one."""

    def __init__(self, rest: Any) -> None:
        self.rest = rest

    def __iter__(self) -> Iterator[Tensor]:
        return self.rest  # type: ignore[no-any-return]


class Hidden(Feed):
    def __iter__(self) -> Iterator[Tensor]:
        yield from self.rest


def test_several_passes_need_the_batches_again() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nk.BatchNorm1d(3))
    before = [b.clone() for b in net.buffers()]
    for make in (
        MAKES["OneGenerator"], MAKES["Elsewhere"], MAKES["generator of batches"],
        lambda: Feed(iter(DATA.split(4))), lambda: Hidden(iter(DATA.split(4))),
    ):  # fmt: skip
        with pytest.raises(nk.NormkitError, match="passes"):
            nk.recalibrate(net, make(), layerwise=True, samples=16, progress=False)
        assert all(map(torch.equal, before, net.buffers()))
    found = nk.recalibrate(net, MAKES["Reopened"](), layerwise=True, progress=False)
    assert found.samples == 24


@pytest.mark.parametrize("name", MAKES)
def test_begins_again(name: str) -> None:
    assert DetachedLoader(MAKES[name]()).begins_again() == (name not in REFUSED - {"Elsewhere"})
    assert DetachedLoader(list(DATA)).begins_again()
    assert not DetachedLoader(iter(DATA)).begins_again()


def test_data_is_not_copied() -> None:
    class Large(Stream):
        def __init__(self) -> None:
            self.data = torch.randn(2000, 3)
            self.inner = torch.utils.data.TensorDataset(self.data)
            self.rest = iter(range(20))

        def __iter__(self) -> Iterator[Tensor]:
            return (self.data[i : i + 1] for i in self.rest)

    samples = [torch.zeros(3), torch.ones(3)]
    listed = DetachedLoader(DataLoader(samples, shuffle=True)).copy()  # type: ignore[arg-type]
    assert listed.sampler.data_source is samples  # type: ignore[attr-defined]
    loader = DataLoader(Large(), batch_size=None)
    copy = DetachedLoader(loader).copy()
    assert copy.dataset.data is loader.dataset.data  # type: ignore[attr-defined]
    assert copy.dataset.inner is loader.dataset.inner  # type: ignore[attr-defined]
    assert copy.dataset.rest is not loader.dataset.rest  # type: ignore[attr-defined]


class Tee(Feed):
    """Has a list beside its iterator, which each iteration makes anew."""

    def __init__(self) -> None:
        super().__init__(iter(()))
        self.source = DATA.split(4)

    def __iter__(self) -> Iterator[Tensor]:
        self.rest = iter(self.source)
        return self.rest  # type: ignore[no-any-return]


def test_wrappers_of_iterators_do_not_begin_again() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nk.BatchNorm1d(3))
    for make in (
        lambda rest: Feed(rest), lambda rest: Hidden(rest), lambda rest: Moving(Feed(rest)),
        lambda rest: Hidden(enumerate(rest)), lambda rest: Hidden([rest]), tqdm_of,
    ):  # fmt: skip
        assert not DetachedLoader(make(iter(DATA.split(4)))).begins_again()
    # One pass has to do, with a warning, as for the iterator itself.
    data = torch.randn(640, 3).split(32)
    for batches in (iter(data), Feed(iter(data)), tqdm_of(iter(data))):
        with pytest.warns(UserWarning, match="iterated over only once"):
            assert nk.recalibrate(net, batches, tolerance=0.01, progress=False).passes == 1
    for again in (Moving(DATA.split(4)), tqdm_of(DATA.split(4)), Tee(), Moving(shuffled())):
        assert DetachedLoader(again).begins_again()


def tqdm_of(batches: Any) -> Any:
    """Wrap them as progress bars do."""
    feed = Hidden(batches)
    feed.desc, feed.out, feed.last = "bar", io.StringIO(), []  # type: ignore[attr-defined]
    return feed


@pytest.mark.parametrize("kind", [list, dict])
def test_records_are_not_copied(kind: Any) -> None:
    """Only the list of them, from which an iteration may take; but iterators in it are."""

    class Records(Stream):
        def __init__(self) -> None:
            records = [{"x": [float(i)], "name": f"{i}"} for i in range(2000)]
            self.records = records if kind is list else dict(enumerate(records))
            self.sources = [iter(range(3)) for _ in range(2000)]

        def __iter__(self) -> Iterator[Tensor]:
            while self.records:
                yield torch.tensor(self.records.pop(len(self.records) - 1)["x"])

    stream = Records()
    copied = DetachedLoader(DataLoader(stream, batch_size=None)).copy().dataset  # type: ignore[attr-defined]
    assert copied.records is not stream.records
    assert copied.records[0] is stream.records[0]
    assert copied.sources[0] is not stream.sources[0]
    nk.recalibrate(nn.BatchNorm1d(1), DataLoader(stream, batch_size=50), progress=False)
    assert len(stream.records) == 2000


def test_several_passes_look_through_the_data_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Records(Stream):
        def __init__(self) -> None:
            self.records = [{"x": float(i)} for i in range(2000)]

        def __iter__(self) -> Iterator[Tensor]:
            while len(self.records) > 1900:
                yield torch.tensor([self.records.pop()["x"]])

    calls = Counter[str]()
    for name in ("_sort_values", "positions"):

        def count(right: Any, name: str, *args: Any) -> Any:
            calls[name] += 1
            return right(*args)

        monkeypatch.setattr(copies, name, partial(count, getattr(copies, name), name))
    net, loader = nn.Sequential(nn.BatchNorm1d(1)), DataLoader(Records(), batch_size=50)
    assert nk.recalibrate(net, loader, layerwise=True, progress=False).passes > 1
    assert calls == {"_sort_values": 1, "positions": 1}
    # Each pass takes from a list of its own.
    detached = DetachedLoader(loader)
    assert [len(list(detached)) for _ in range(3)] == [2, 2, 2]
