"""Wiki dumps: variants by the dump's own rules, nothing of the markup left, divided at the streams."""

import bz2

import pytest

from artifacts.errors import UserError
from artifacts.files import read_jsonl
from preprocess.wiki import dump as wiki_dump
from preprocess.wiki import extract as extract_wiki
from preprocess.wiki.markup import apply_rules, group_name, group_rules, parse_rule, ready, tidy

GROUPS = {
    "it": group_rules(
        "return { name = 'IT', content = { Item('memory', 'zh-cn:内存; zh-tw:記憶體; zh-hk:記憶體;'),\n"
        "{ type = 'item', original = 'info', rule = 'zh-cn:信息; zh-tw:資訊' }, Item('m', '巨集=>zh-cn:宏') } }"
    )
}
HEAD = (
    "<mediawiki>\n<siteinfo>\n<base>https://zh.wikipedia.org/wiki/</base>\n<namespaces>\n"
    '<namespace key="10">Template</namespace>\n</namespaces>\n</siteinfo>\n'
)
ARTICLE = (
    "{{noteTA|G1=IT|1=zh-cn:鼠标;zh-tw:滑鼠}}{{Infobox|a={{b|c}}}}'''條目{n}'''（{{lang-en|memory}}）是用記憶體與滑鼠的"
    '資訊系統<ref name="a">見{{cite|x}}</ref>，又稱-{zh-cn:甲;zh-tw:乙}-。'
    "公式為<math>x_{1}^{{2}}</math>，如此。__NOTOC__\n"
    '{| class="wikitable"\n| 一 {| 二 |} ||三\n|}\n== 歷史 ==\n生於（{{Unknown|x}}；{{y}}）的資訊。第{n}條。\n'
)


def page(number: int, title: str, text: str, space: int = 0, redirect: str = "") -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    return (
        f"<page>\n<title>{title}</title>\n<ns>{space}</ns>\n<id>{number}</id>\n{redirect}<revision>\n<id>9</id>\n"
        f'<text bytes="9" xml:space="preserve">{escaped}</text>\n</revision>\n</page>\n'
    )


def streams() -> list[str]:
    """The head, eight streams of ten pages, the end; the conversion group stands in the last but one."""
    found = [HEAD]
    for stream in range(8):
        pages = [page(stream * 10 + i, f"條目{stream * 10 + i}", ARTICLE.replace("{n}", str(i))) for i in range(1, 7)]
        pages.append(page(stream * 10 + 7, f"轉{stream}", "#重定向 [[條目]]", redirect='<redirect title="條目" />\n'))
        pages.append(page(stream * 10 + 8, f"Template:T{stream}", "{{{1}}}", space=10))
        pages.append(page(stream * 10 + 9, f"空{stream}", ""))
        found.append("".join(pages))
    rules = "return { content = { Item('m', 'zh-cn:内存; zh-tw:記憶體'), Item('i', 'zh-cn:信息; zh-tw:資訊') } }"
    found[-2] += page(900, "Module:CGroup/IT", rules, space=828)
    return [*found, "</mediawiki>\n"]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("zh-cn:内存;zh-tw:記憶體;zh-hk:記憶體", {"記憶體": "内存"}),
        ("zh-hans:内存;zh-hant:記憶體", {"記憶體": "内存"}),
        ("zh-tw:記憶體;zh-hk:記憶", {}),  # nothing for the mainland: no conversion
        ("巨集=>zh-cn:宏;", {"巨集": "宏"}),
        ("内存", {}),
    ],
)
def test_rules(rule, expected):
    assert parse_rule(rule) == expected


def test_the_longest_wording_wins():
    rules = {"記憶": "记忆", "記憶體": "内存", "體": "体"}
    assert apply_rules("記憶體與記憶", rules) == "内存與记忆"


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("{{NoteTA|G1=IT}}記憶體的資訊", "内存的信息"),
        ("{{noteTA|T=zh-cn:甲;zh-tw:乙|1=zh-cn:鼠标;zh-tw:滑鼠}}滑鼠", "鼠标"),
        ("{{noteTA|zh-cn:鼠标;zh-tw:滑鼠}}滑鼠", "鼠标"),
        ("{{noteTA|G1=IT}}-{記憶體}-與-{R|資訊}-", "記憶體與資訊"),  # what is marked is not converted again
        ("-{A|zh-cn:网络;zh-tw:網路}-與網路", "网络與网络"),
        ("-{H|zh-cn:软件;zh-tw:軟體}-軟體", "软件"),
        ("-{T|zh-cn:题;zh-tw:題}-文", "文"),
        ("-{zh-hans:外-{内}-;zh-hant:外}-", "外内"),
        (
            "由{{link-en|丹尼斯|Dennis}}與{{lang|fr|Eiffel}}，{{bd|701年||762年||catIdx=L}}",
            "由丹尼斯與Eiffel，701年－762年",
        ),
        ("甲<!-- 注 -->乙<ref name=x/>丙<ref>丁</ref>", "甲乙丙"),
        ("{{noteTA|G1=IT|G2=Unknown}}沒有", "沒有"),
    ],
)
def test_wikitext_is_made_ready(wikitext, expected):
    assert ready(wikitext, GROUPS) == expected


def test_what_vanished_markup_leaves_is_mended():
    assert tidy("甲（）乙（；）丙（，英語：）丁（；x）formula_1戊codice_12__NOTOC__}}") == "甲乙丙（英語：）丁（x）戊"
    assert tidy("生于，。背景") == "生于。背景"
    assert tidy("乐队成员包括Dr. Dre.\n正文。") == "乐队成员包括Dr. Dre.\n正文。"


def test_group_names():
    assert group_name("Module:CGroup/IT") == group_name("模块:CGroup/it") == "it"
    assert group_name("條目") == ""


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("index", [False, True])
def test_a_multistream_dump_becomes_clean_text(tmp_path, processes, index):
    dump, offsets, lines = tmp_path / "dump.xml.bz2", [], []
    whole = b""
    for text in streams():
        offsets.append(len(whole))
        whole += bz2.compress(text.encode())
        titles = [part.split("</title>")[0] for part in text.split("<title>")[1:]]
        lines += [f"{offsets[-1]}:1:{title}" for title in titles]
    dump.write_bytes(whole)
    (tmp_path / "index.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    output = tmp_path / "out.jsonl"
    counts = extract_wiki.extract(dump, output, processes, tmp_path / "index.txt" if index else None)
    assert counts == {"pages": 73, "articles": 56, "redirects": 8, "pages_with_text": 48}
    rows = list(read_jsonl(output))
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    for row in rows:
        assert "公式為$x_{1}^{{2}}$，如此。" in row["text"]  # braces of a formula are no markup
        row["text"] = row["text"].replace("$x_{1}^{{2}}$", "")
        for left in ("-{", "}-", "{{", "}}", "（）", "（；", "formula_", "__", "{|", "重定向", "<ref", "歷史"):
            assert left not in row["text"], row["text"]
        assert "用内存與鼠标的信息系统" in row["text"].replace("系統", "系统") and "又稱甲。" in row["text"]
        assert "（memory）" in row["text"] and "生於的信息" in row["text"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dump.xml.bz2", "index.txt", "out.jsonl"]


def test_what_is_done_is_kept_and_a_changed_dump_is_not_mixed_in(tmp_path, monkeypatch):
    dump, output = tmp_path / "dump.xml.bz2", tmp_path / "out.jsonl"
    packed = [bz2.compress(text.encode()) for text in streams()]
    dump.write_bytes(b"".join(packed))
    extract_wiki.extract(dump, output, 3)
    whole = output.read_bytes()
    output.unlink()

    def full(pieces, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(extract_wiki, "join", full)
        extract_wiki.extract(dump, output, 3)
    folder = tmp_path / ".out.jsonl.parts"
    (folder / "00001.json").unlink()  # as if it had been killed in this part
    kept = (folder / "00000.jsonl").stat().st_mtime_ns
    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(extract_wiki, "join", full)
        extract_wiki.extract(dump, output, 3)
    assert (folder / "00000.jsonl").stat().st_mtime_ns == kept
    extract_wiki.extract(dump, output, 3)
    assert output.read_bytes() == whole and not folder.exists()

    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(extract_wiki, "join", full)
        extract_wiki.extract(dump, output, 3)
    dump.write_bytes(packed[0] + packed[2] + packed[-1])
    assert extract_wiki.extract(dump, output, 3)["pages"] == 9


def test_parts_are_whole_streams_that_together_are_the_dump(tmp_path):
    dump = tmp_path / "dump.xml.bz2"
    texts = [f"<page>{i}</page>" * 2000 for i in range(30)]
    dump.write_bytes(b"".join(bz2.compress(text.encode()) for text in texts))
    for parts in (1, 2, 4, 50):
        divided = wiki_dump.divide(dump, parts)
        assert b"".join(chunk for part in divided for chunk in wiki_dump.chunks(part)) == "".join(texts).encode()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_cut_dump_is_named(tmp_path, share):
    dump = tmp_path / "dump.xml.bz2"
    whole = b"".join(bz2.compress(text.encode()) for text in streams())
    dump.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"dump\.xml\.bz2 is not .*download it again"):
        extract_wiki.extract(dump, tmp_path / "out.jsonl", 2)
    assert not (tmp_path / "out.jsonl").exists()
    dump.write_bytes(whole)  # as it was told; what was made of the cut one does not count
    extract_wiki.extract(dump, tmp_path / "out.jsonl", 2)
    extract_wiki.extract(dump, tmp_path / "fresh.jsonl", 2)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "fresh.jsonl").read_bytes()


def test_a_dump_without_text_is_told(tmp_path):
    dump = tmp_path / "dump.xml"
    dump.write_text(HEAD + page(1, "空", "") + "</mediawiki>", encoding="utf-8")
    with pytest.raises(UserError, match="none of its 1 pages has text"):
        extract_wiki.extract(dump, tmp_path / "out.jsonl", 1)
