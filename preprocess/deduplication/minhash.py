"""Find near duplicates in bounded memory: MinHash (rensa), bands sorted on disk, candidates verified exactly.

    sign     per shard: keys of every document, sorted, in segments           signatures/SHARD-SEGMENT.keys
    match    per kind of key: pairs of documents that share one               pairs/KIND-RANGE.npy, members/…
    collect  per shard: the 5-grams of documents in a pair                    shingles/SHARD.bin, SHARD.npy
    verdicts per shard: the documents to drop, with the earlier one that each repeats

Keys: the whole text, the id, and BANDS bands of ROWS MinHash values of character 5-grams (Broder 1997; bands as in
Leskovec et al., Mining of Massive Datasets, 3.4). Two texts of Jaccard similarity s share a band with probability
1 - (1 - s^ROWS)^BANDS: 0.998 at 0.8. Texts that share a band are only candidates; their exact Jaccard similarity
decides. A document is dropped if an earlier candidate, kept or dropped, is that similar; the first of a group is kept.

A document's number is its shard (upper 32 bits) and its position in the shard (lower 32 bits).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from artifacts.files import atomic_file
from preprocess.cleaning.characters import Characters, mixed, window_hashes

SHINGLE = 5  # characters
BANDS, ROWS = 20, 6
SEED = 42
SIMILAR = 0.8  # Jaccard similarity from which a document is a duplicate of an earlier one
SAME_TEXT, SAME_ID, FIRST_BAND = 0, 1, 2
KINDS = FIRST_BAND + BANDS
SEGMENT = 1 << 16  # documents sorted at once: 17 MB of keys
SAME = "same text"
NEAR = "near duplicate"
_ENTRY = 12  # bytes of a key and its document
_SORTING = 6  # memory factor over _ENTRY while matching

os.environ.setdefault("RAYON_NUM_THREADS", "1")  # each task is one process on one core


def shingles(solid: Characters) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all texts' 5-grams, concatenated, and the offset of each text's; shapes [n], [texts + 1]."""
    hashes = window_hashes(solid.codes, SHINGLE)
    offsets: np.ndarray = np.zeros(solid.count + 1, dtype=np.int64)
    np.cumsum(solid.window_counts(SHINGLE), out=offsets[1:])
    return hashes[solid.window_starts(SHINGLE)], offsets


def signatures(solid: Characters) -> np.ndarray:
    """MinHash values; shape [texts, BANDS * ROWS], uint64."""
    from rensa import RMinHash

    hashes, offsets = shingles(solid)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), BANDS * ROWS, SEED)
    return np.array(matrix.to_rows(), dtype=np.uint64).reshape(solid.count, BANDS * ROWS)


def keys(texts: list[str], identities: list[str | None]) -> np.ndarray:
    """The keys of a batch; shape [KINDS, texts], uint64. 0: the document has no key of that kind."""
    solid = Characters.of(texts).without_space()
    lengths = solid.ends - solid.starts
    found: np.ndarray = np.zeros((KINDS, len(texts)), dtype=np.uint64)
    place = np.arange(len(solid.codes)) - np.repeat(solid.starts, lengths + 1)
    values = mixed((place.astype(np.uint64) << np.uint64(20)) ^ solid.codes)
    found[SAME_TEXT] = mixed(np.add.reduceat(values, solid.starts) + lengths.astype(np.uint64))
    for index, identity in enumerate(identities):
        if identity is not None:
            found[SAME_ID, index] = int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big")
    bands = signatures(solid).reshape(len(texts), BANDS, ROWS)
    for band in range(BANDS):
        key: np.ndarray = np.full(len(texts), band + 1, dtype=np.uint64)
        for row in range(ROWS):
            key = mixed(key ^ bands[:, band, row])
        found[FIRST_BAND + band] = key
    found[FIRST_BAND:, lengths < SHINGLE] = 0
    return found


class KeyWriter:
    """Collect the keys of a shard's documents, in order, and write them in sorted segments."""

    def __init__(self, folder: Path, shard: int) -> None:
        self.folder, self.shard, self.segment, self.documents = folder, shard, 0, 0
        self.waiting: list[np.ndarray] = []
        self.held = 0
        for old in folder.glob(f"{shard:05d}-*.keys"):  # left by a killed run
            old.unlink()

    def add(self, found: np.ndarray) -> None:
        self.waiting.append(found)
        self.held += found.shape[1]
        if self.held >= SEGMENT:
            self.flush()

    def flush(self) -> None:
        if not self.held:
            return
        found = np.concatenate(self.waiting, axis=1)
        order = np.argsort(found, axis=1, kind="stable")
        with (
            atomic_file(self.folder / f"{self.shard:05d}-{self.segment:05d}.keys") as aside,
            aside.open("wb") as stream,
        ):
            _write(stream, np.array([self.held], dtype=np.uint64))
            _write(stream, np.take_along_axis(found, order, axis=1))
            _write(stream, (order + self.documents).astype(np.uint32))
        self.documents += self.held
        self.segment, self.held, self.waiting = self.segment + 1, 0, []


def _write(stream: IO[bytes], array: np.ndarray) -> None:
    """Write an array's bytes. Unlike `tofile` and `numpy.save`, a full disk raises OSError with its error number."""
    stream.write(memoryview(np.ascontiguousarray(array)).cast("B") if array.size else b"")


def _segment(path: Path, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted keys of one kind and their documents' positions, memory-mapped."""
    count = int(np.fromfile(path, dtype=np.uint64, count=1)[0])
    found = np.memmap(path, np.uint64, "r", 8 + kind * count * 8, (count,))
    places = np.memmap(path, np.uint32, "r", 8 + KINDS * count * 8 + kind * count * 4, (count,))
    return found, places


def match(folder: Path, kind: int, memory: int) -> None:
    """Write the pairs of documents that share a key of `kind`, using at most `memory` bytes.

    Keys are uniformly distributed, so they are processed in ranges that fit in memory. Within a range, segments come in
    order and only the first document of each key is kept, so a key shared by a million documents costs no more.
    """
    segments = sorted((folder / "signatures").glob("*.keys"))
    total = sum(int(np.fromfile(path, dtype=np.uint64, count=1)[0]) for path in segments)
    ranges = max(1, -(-total * _ENTRY * _SORTING // memory))
    for part in ("pairs", "members"):
        for old in (folder / part).glob(f"{kind:02d}-*.npy"):  # left by a killed run
            old.unlink()
    for number in range(ranges):
        pairs = list(_match_range(segments, kind, number, ranges, memory))
        found = np.concatenate(pairs) if pairs else np.zeros((0, 2), dtype=np.uint64)
        found = found[np.argsort(found[:, 1], kind="stable")]
        _save(folder / "pairs" / f"{kind:02d}-{number:05d}.npy", found)
        if kind >= FIRST_BAND:
            _save(folder / "members" / f"{kind:02d}-{number:05d}.npy", np.unique(found))


def _match_range(segments: list[Path], kind: int, number: int, ranges: int, memory: int) -> Iterator[np.ndarray]:
    low = np.uint64(max(1, (number << 64) // ranges))
    high = np.uint64(((number + 1 << 64) // ranges) - 1)
    known: np.ndarray = np.zeros(0, dtype=np.uint64)  # keys seen so far, sorted, and the first document of each
    firsts: np.ndarray = np.zeros(0, dtype=np.uint64)
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    held = 0
    for index, path in enumerate(segments):
        found, places = _segment(path, kind)
        start, stop = np.searchsorted(found, low, "left"), np.searchsorted(found, high, "right")
        shard = np.uint64(int(path.name[:5]) << 32)
        waiting.append((np.array(found[start:stop]), places[start:stop].astype(np.uint64) | shard))
        held += int(stop - start)
        if held * _ENTRY * _SORTING < memory // 2 and index + 1 < len(segments):
            continue
        some = np.concatenate([part[0] for part in waiting])
        documents = np.concatenate([part[1] for part in waiting])
        waiting, held = [], 0
        order = np.argsort(some, kind="stable")  # stable: the earliest document of a key stays first
        some, documents = some[order], documents[order]
        fresh = np.concatenate(([True], some[1:] != some[:-1])) if len(some) else np.zeros(0, dtype=bool)
        heads = np.flatnonzero(fresh)
        head = documents[heads]
        at = np.minimum(np.searchsorted(known, some[heads]), max(len(known) - 1, 0))
        met = known[at] == some[heads] if len(known) else np.zeros(len(heads), dtype=bool)
        head = np.where(met, firsts[at], head) if len(known) else head
        lengths = np.diff(np.concatenate((heads, [len(some)])))
        of_head: np.ndarray = np.repeat(head, lengths)
        other = of_head != documents
        yield np.stack([of_head[other], documents[other]], axis=1)
        if kind >= FIRST_BAND and len(some):  # the previous document too: it may be similar where the first is not
            near = np.flatnonzero(~fresh)
            near = near[documents[near - 1] != of_head[near]]
            yield np.stack([documents[near - 1], documents[near]], axis=1)
        known = np.concatenate((known, some[heads][~met]))
        firsts = np.concatenate((firsts, head[~met]))
        order = np.argsort(known, kind="stable")
        known, firsts = known[order], firsts[order]


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_file(path) as aside, aside.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        _write(stream, array)


def _of_shard(numbers: np.ndarray, shard: int) -> slice:
    low, high = np.uint64(shard << 32), np.uint64((shard + 1 << 32) - 1)
    return slice(int(np.searchsorted(numbers, low, "left")), int(np.searchsorted(numbers, high, "right")))


def members(folder: Path, shard: int) -> np.ndarray:
    """Positions in the shard of documents that are in a candidate pair, sorted."""
    parts = []
    for path in sorted((folder / "members").glob("*.npy")):
        numbers = np.load(path, mmap_mode="r")
        parts.append(np.array(numbers[_of_shard(numbers, shard)]) & np.uint64(0xFFFFFFFF))
    return np.unique(np.concatenate(parts)).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)


def collect(folder: Path, shard: int, batches: Iterator[list[dict[str, Any]]]) -> None:
    """Write the distinct 5-grams (32-bit hashes, sorted) of the shard's candidates, and the offset of each."""
    wanted = members(folder, shard)
    offsets: np.ndarray = np.zeros(len(wanted) + 1, dtype=np.int64)
    done = at = 0
    with atomic_file(folder / "shingles" / f"{shard:05d}.bin") as aside, aside.open("wb") as stream:
        for rows in batches:
            stop = int(np.searchsorted(wanted, at + len(rows)))
            chosen = [rows[place - at]["text"] for place in wanted[done:stop].tolist()]
            at += len(rows)
            if not chosen:
                continue
            hashes, starts = shingles(Characters.of(chosen).without_space())
            for index in range(len(chosen)):
                distinct = np.unique((hashes[starts[index] : starts[index + 1]] >> np.uint64(32)).astype(np.uint32))
                _write(stream, distinct)
                offsets[done + index + 1] = offsets[done + index] + len(distinct)
            done = stop
    _save(folder / "shingles" / f"{shard:05d}.npy", np.stack([np.append(wanted, -1), offsets]))


def repeated_ids(folder: Path, shard: int) -> set[int]:
    """Positions in the shard of documents with the id of an earlier one. Such ids are no reason to drop a document."""
    places: set[int] = set()
    for path in (folder / "pairs").glob(f"{SAME_ID:02d}-*.npy"):
        pairs = np.load(path, mmap_mode="r")
        places.update((np.array(pairs[_of_shard(pairs[:, 1], shard)][:, 1]) & np.uint64(0xFFFFFFFF)).tolist())
    return places


def _jaccard(one: np.ndarray, other: np.ndarray) -> float:
    both = np.concatenate((one, other))
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared / max(len(both) - shared, 1)


def verdicts(folder: Path, shard: int) -> dict[int, tuple[str, int]]:
    """Position in the shard -> (reason for dropping the document, number of the earlier document that it repeats)."""

    @lru_cache(maxsize=64)
    def stored(of: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        wanted, offsets = np.load(folder / "shingles" / f"{of:05d}.npy")
        path = folder / "shingles" / f"{of:05d}.bin"
        hashes = np.memmap(path, np.uint32, "r") if path.stat().st_size else np.zeros(0, dtype=np.uint32)
        return wanted[:-1], offsets, hashes

    def grams(number: int) -> np.ndarray:
        wanted, offsets, hashes = stored(number >> 32)
        index = int(np.searchsorted(wanted, number & 0xFFFFFFFF))
        return hashes[offsets[index] : offsets[index + 1]]

    found: dict[int, tuple[str, int]] = {}
    candidates = []
    for path in sorted((folder / "pairs").glob("*.npy")):
        pairs = np.load(path, mmap_mode="r")
        mine = np.array(pairs[_of_shard(pairs[:, 1], shard)])
        kind = int(path.stem[:2])
        if kind >= FIRST_BAND:
            candidates.append(mine)
            continue
        if kind == SAME_TEXT:
            for first, second in mine.tolist():
                found.setdefault(second & 0xFFFFFFFF, (SAME, first))
    unique = np.unique(np.concatenate(candidates), axis=0) if candidates else np.zeros((0, 2), dtype=np.uint64)
    for first, second in unique[np.argsort(unique[:, 1], kind="stable")].tolist():
        place = second & 0xFFFFFFFF
        if place not in found and _jaccard(grams(first), grams(second)) >= SIMILAR:
            found[place] = (NEAR, first)
    return found
