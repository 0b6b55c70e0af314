"""Raw files of every container and shape; what is broken is counted with file and line, never fatal, never silent."""

import bz2
import gzip
import json
import lzma
import random

import pytest
import zstandard

from artifacts.errors import UserError
from preprocess.sources import containers
from preprocess.sources.read import Piece, Problems, find_files, plan, records
from preprocess.sources.shapes import WrongShape, document, shape_of

LONGEST = 1 << 20


def rows(count: int) -> list[dict]:
    rng = random.Random(count)
    return [{"text": "春风" * rng.randint(0, 60) + str(i), "url": f"u{i}"} for i in range(count)]


def write_lines(path, content) -> str:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in content) + "\n", encoding="utf-8")
    return str(path)


def read_all(path: str, tasks: int) -> tuple[list, Problems]:
    problems, found = Problems(), []
    for part in plan(find_files([path]), tasks):
        for piece in part:
            found += [record for _, record in records(piece, problems, LONGEST)]
    return found, problems


@pytest.mark.parametrize("tasks", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("chunk", [997, 1 << 20])
def test_every_record_is_read_by_exactly_one_task(tmp_path, monkeypatch, tasks, chunk):
    monkeypatch.setattr(containers, "CHUNK", chunk)
    content = rows(1500)
    lines = write_lines(tmp_path / "a.jsonl", content)
    (tmp_path / "b.json").write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    for path in (lines, str(tmp_path / "b.json"), str(tmp_path / "c.jsonl.gz")):
        found, problems = read_all(path, tasks)
        assert sorted(r["url"] for r in found) == sorted(r["url"] for r in content)
        assert problems.records == len(content) and not problems.counts


def test_parquet_and_arrow_folders_are_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(rows(50))
    pyarrow.parquet.write_table(table, tmp_path / "part-0.parquet")
    with (
        pyarrow.OSFile(str(tmp_path / "data-0.arrow"), "wb") as sink,
        pyarrow.ipc.new_stream(sink, table.schema) as out,
    ):
        out.write_table(table)
    (tmp_path / "dataset_info.json").write_text("{}")
    found, problems = read_all(str(tmp_path), 3)
    assert len(found) == 100 and not problems.counts


def test_many_files_go_whole_to_tasks_of_like_size():
    files = [(f"f{i:02d}.jsonl.gz", 100 + i) for i in range(40)]
    parts = plan(files, 4)
    assert sorted(piece.path for part in parts for piece in part) == [path for path, _ in files]
    assert all(piece.shares == 1 for part in parts for piece in part)
    sizes = [sum(dict(files)[piece.path] for piece in part) for part in parts]
    assert max(sizes) - min(sizes) <= 140


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_a_compressed_file_is_read_and_a_cut_one_is_refused(tmp_path, compress):
    ending = {"gzip": "gz", "bz2": "bz2", "lzma": "xz"}.get(compress.__module__, "zst")
    path = tmp_path / f"a.jsonl.{ending}"
    whole = compress("\n".join(json.dumps(row) for row in rows(3000)).encode())
    path.write_bytes(whole)
    assert len(list(records(Piece(str(path)), Problems(), LONGEST))) == 3000
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"a.jsonl.{ending} is truncated or damaged.*download it again"):
        list(records(Piece(str(path)), Problems(), LONGEST))


def test_every_kind_of_bad_line_is_counted_with_its_line(tmp_path):
    good = b'{"text": "\xe6\x98\xa5"}'
    bad = [b'{"text": "\xff\xfe"}', b'{"text": broken', b'{"text": "a\0b"}', b'{"text": "' + b"x" * LONGEST * 2 + b'"}']
    lines = [good]
    for line in bad:
        lines += [line, good]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    for tasks in (1, 3):
        found, problems = read_all(str(path), tasks)
        assert len(found) == 5 and problems.records == 9
        problems.locate()
        places = {example["reason"]: example["line"] for example in problems.examples}
        reasons = ["invalid UTF-8", "not JSON", "NUL bytes", f"a line longer than {LONGEST:,} bytes"]
        assert places == {reason: 2 * i + 2 for i, reason in enumerate(reasons)}


def test_a_list_goes_on_after_a_broken_item_and_says_when_it_is_cut(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1},\n {"a": 2,},\n {"a": 3}\n]')
    problems = Problems()
    assert [record for _, record in records(Piece(str(path)), problems, LONGEST)] == [{"a": 1}, {"a": 3}]
    assert problems.examples == [{"reason": "not JSON", "file": str(path), "line": 2, "byte": None}]
    path.write_text('[{"a": 1},\n {"a": 3}')
    problems = Problems()
    assert len(list(records(Piece(str(path)), problems, LONGEST))) == 2
    assert "truncated" in problems.examples[0]["reason"]


def test_ten_thousand_mutated_lines_are_read_or_counted(tmp_path):
    rng = random.Random(7)
    lines = []
    for row in rows(10_000):
        line = bytearray(json.dumps(row, ensure_ascii=False).encode())
        for _ in range(rng.randint(0, 3)):
            place = rng.randrange(len(line) or 1)
            change = rng.randrange(4)
            if change == 0 and line:
                line[place] = rng.randrange(256)
            elif change == 1:
                del line[place : place + rng.randint(1, 20)]
            elif change == 2:
                line[place:place] = rng.choice([b"\0", b"\xff", b'"', b"{", b"\\ud800", b"\\u0000", b"[", b"\r"])
            else:
                line = line[: place + 1]
        lines.append(bytes(line).replace(b"\n", b"") or b"x")
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    shape = shape_of("c4_zh")
    kept = wrong = 0
    problems = Problems()
    for part in plan(find_files([str(path)]), 3):
        for piece in part:
            for place, record in records(piece, problems, LONGEST):
                try:
                    made = document(shape, record, str(place))
                    made["text"].encode()
                    kept += 1
                except WrongShape:
                    wrong += 1
    blank = sum(not line.strip() for line in lines)
    assert kept + wrong + problems.counts.total() + blank == 10_000
    assert kept > 2500 and wrong > 0 and problems.counts["not JSON"] > 1000 and problems.counts["invalid UTF-8"] > 100


def test_too_large_a_share_of_bad_records_stops_with_the_first_place(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", rows(50))
    with open(path, "a") as stream:
        stream.write("broken\n" * 5)
    _, problems = read_all(path, 1)
    problems.check(0.2, final=True)
    with pytest.raises(UserError, match=r"a\.jsonl line 51: not JSON; 5 of 55 records are bad.*--max-bad-share 0.01"):
        problems.check(0.01, final=True)


def test_shapes_of_the_five_corpora():
    def text(source: str, record: dict) -> str:
        return document(shape_of(source), record, "made")["text"]

    assert text("wikipedia_cn", {"completion": "甲", "source": "w"}) == "甲"
    assert text("c4_zh", {"text": "甲", "url": "u", "timestamp": "t"}) == "甲"
    assert text("wudao", {"title": "题", "content": "文", "id": 1}) == "题\n文"
    assert text("wudao", {"title": "题", "content": "题是这样的"}) == "题是这样的"
    sections = [{"title": "生平", "content": "生于。"}, {"title": None, "content": "卒于。"}]
    assert text("baidubaike", {"title": "某", "summary": "概", "sections": sections}) == "某\n概\n生平\n生于。\n卒于。"
    for source, wrong in (
        ("c4_zh", {"content": "x"}),
        ("wikipedia_cn", {"completion": 3}),
        ("baidubaike", {"title": "x"}),
    ):
        with pytest.raises(WrongShape):
            text(source, wrong)
    with pytest.raises(WrongShape, match="not an object"):
        document(shape_of("jsonl"), [1], "made")
    with pytest.raises(UserError, match="did you mean 'wudao'"):
        shape_of("wudaoo")
    assert document(shape_of("jsonl", "body"), {"body": "甲", "id": "x", "n": 1}, "made") == {
        "id": "x",
        "text": "甲",
        "metadata": {"n": 1},
    }


def test_empty_files_and_missing_ones(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n \n")
    problems = Problems()
    assert list(records(Piece(str(tmp_path / "a.jsonl")), problems, LONGEST)) == []
    assert problems.mended == {"files without a record": 1}
    assert not problems.counts and not problems.records, "an empty shard is no unreadable record"
    with pytest.raises(UserError, match="nothing.jsonl.*check the path"):
        find_files([str(tmp_path / "nothing.jsonl")])


RECORDS = [{"text": f"春{i}", "url": "u"} for i in range(9)]
LONG = [{"parts": RECORDS * 1000, "n": n} for n in range(3)]  # of more bytes than the layout is told from
SECTIONS = [{"sections": [{"title": "甲", "content": "乙"}], "text": f"丙{i}"} for i in range(9)]


@pytest.mark.parametrize(
    ("content", "form", "expected"),
    [
        ("\n".join(map(json.dumps, RECORDS)), "lines", RECORDS),
        (json.dumps(RECORDS[0]), "lines", RECORDS[:1]),
        ("\n".join(map(json.dumps, SECTIONS)), "lines", SECTIONS),
        (json.dumps(RECORDS), "list", RECORDS),
        ("\ufeff" + json.dumps(RECORDS, indent=2), "list", RECORDS),
        (json.dumps(RECORDS[:4]) + "\n" + json.dumps(RECORDS[4:]) + "\n", "list", RECORDS),
        (json.dumps({"data": RECORDS}), "wrapped", RECORDS),
        (json.dumps({"data": RECORDS}, indent=2) + "\n", "wrapped", RECORDS),
        (json.dumps({"data": RECORDS, "version": 1}, indent=2), "wrapped", RECORDS),
        (json.dumps({"data": RECORDS * 2000}), "wrapped", RECORDS * 2000),
        ("\n".join(json.dumps(row, indent=2) for row in RECORDS), "values", RECORDS),
        ("\n".join(json.dumps(row, indent=2) for row in SECTIONS * 700), "wrapped", None),
        ('{"text": broken\n{"text": "a"}', "lines", [{"text": "a"}]),
        ("\n".join(json.dumps({"parts": RECORDS * 1000, "n": n}) for n in range(3)), "lines", LONG),
        ("\n" * 70_000 + json.dumps(RECORDS[0]), "lines", RECORDS[:1]),
    ],
)
@pytest.mark.parametrize("tasks", [1, 2])
def test_the_layout_is_told_by_the_file_and_every_record_is_read(tmp_path, content, form, expected, tasks):
    path = tmp_path / "F.jsonl"
    path.write_text(content, encoding="utf-8")
    assert containers.layout(str(path)) == form
    if expected is None:  # what would be lost is told
        with pytest.raises(UserError, match=r"F\.jsonl line \d+: text after the end of the list; it would be lost"):
            read_all(str(path), tasks)
        return
    found, _ = read_all(str(path), tasks)
    assert sorted(map(json.dumps, found)) == sorted(map(json.dumps, expected))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "春"}\n'.encode("utf-16"), r"is UTF-16, not UTF-8: convert the file with `iconv"),
        ('{"text": "春"}\n'.encode("utf-16-le"), r"is UTF-16, not UTF-8"),
        (b"PAR1\x15\x04\x15", "is Parquet: name it .parquet"),
        (b"PK\x03\x04\x14\x00", "is a zip archive: unpack it"),
        (b"ARROW1\x00\x00", "is Feather: save it as Parquet"),
    ],
)
def test_a_file_of_another_kind_is_named_for_what_it_is(tmp_path, content, message):
    path = tmp_path / "F.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"F\.jsonl " + message):
        plan(find_files([str(path)]), 2)


@pytest.mark.parametrize("layout", ["lines", "list"])
def test_another_encoding_is_named_and_a_damaged_character_is_not_taken_for_one(tmp_path, layout):
    texts = [{"text": "春风吹过江面，渡口的船夫正在收网。"}, {"text": "山上的寺庙建于唐代。"}]
    whole = (
        json.dumps(texts, ensure_ascii=False)
        if layout == "list"
        else "\n".join(json.dumps(row, ensure_ascii=False) for row in texts)
    )
    for content, reason in ((whole.encode("gbk"), "GBK, not UTF-8"), (whole.encode(), None)):
        path = tmp_path / "F.jsonl"
        path.write_bytes(content if reason else content.replace("船".encode(), "船".encode()[:2]))
        problems = Problems()
        read = [record for _, record in records(Piece(str(path)), problems, LONGEST)]
        assert problems.counts == ({reason: 2} if reason else {"invalid UTF-8": 1}) and len(read) == (
            0 if reason else 1
        )


def test_compression_is_told_by_the_bytes(tmp_path):
    plain = "\n".join(map(json.dumps, RECORDS)).encode()
    for number, (name, content) in enumerate(
        [("a.jsonl", gzip.compress(plain)), ("a.jsonl.gz", plain), ("a.json", zstandard.compress(plain)),
         ("a.jsonl.zst", bz2.compress(plain)), ("a.jsonl.bz2", lzma.compress(plain))]
    ):  # fmt: skip
        path = tmp_path / f"{number}{name}"
        path.write_bytes(content)
        for tasks in (1, 3):
            assert sorted(map(json.dumps, read_all(str(path), tasks)[0])) == sorted(map(json.dumps, RECORDS))


def test_a_bad_record_is_named_by_its_line_or_row_in_every_container(tmp_path):
    content = [*RECORDS, {"text": 3}, *RECORDS]
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(map(json.dumps, content)).encode()))
    problems = Problems()
    for place, record in records(Piece(str(packed)), problems, LONGEST):
        if record["text"] == 3:
            problems.add("wrong", str(packed), byte=place)
    with pytest.raises(UserError, match=r"a\.jsonl\.gz line 10: wrong; 1 of 19"):
        problems.check(0.01, final=True)
    problems = Problems(records=19)
    problems.add("wrong", "a.parquet", row=10)
    with pytest.raises(UserError, match=r"a\.parquet row 10: wrong; 1 of 19"):
        problems.check(0.01, final=True)
