"""Sentences in the manner of real articles, by kind of markup: each is whole in the output, or dropped.

`wiki_sentences.jsonl` has a line a sentence: kind of markup, wikitext, and the text that a reader sees; null for a
sentence that must be dropped. They go through the whole step, WikiExtractor included, as one article each.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from artifacts.errors import UserError
from artifacts.files import read_jsonl
from preprocess.corpora import data_card
from preprocess.wiki import extract as extract_wiki
from preprocess.wiki.markup import ready, tidy
from preprocess.wiki.parser_functions import calculate
from preprocess.wiki.parser_functions import number as printed
from preprocess.wiki.sentences import sentences
from preprocess.wiki.templates import read_table

SENTENCES = [json.loads(line) for line in Path(__file__).with_name("wiki_sentences.jsonl").open(encoding="utf-8")]
DUMPS = Path(__file__).with_name("wiki_dumps")
KINDS = list(dict.fromkeys(row["kind"] for row in SENTENCES))
HEAD = "<mediawiki>\n<siteinfo>\n<base>https://zh.wikipedia.org/wiki/</base>\n</siteinfo>\n"


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """The text of each sentence's article, by its number; missing if nothing is left of it."""
    folder = tmp_path_factory.mktemp("wiki")
    pages = []
    for number, row in enumerate(SENTENCES, start=1):
        text = row["wikitext"].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        pages.append(
            f"<page>\n<title>测试条目</title>\n<ns>0</ns>\n<id>{number}</id>\n<revision>\n<id>9</id>\n"
            f'<text xml:space="preserve">{text}</text>\n</revision>\n</page>\n'
        )
    dump, output = folder / "dump.xml", folder / "out.jsonl"
    dump.write_text(HEAD + "".join(pages) + "</mediawiki>\n", encoding="utf-8")
    extract_wiki.extract(dump, output, 1)
    return {int(row["id"].removeprefix("zhwiki-")): row["text"] for row in read_jsonl(output)}


def test_the_set_is_large_enough():
    assert len(SENTENCES) >= 300 and len(KINDS) >= 60


@pytest.mark.parametrize("kind", KINDS)
def test_every_sentence_is_whole_or_dropped(kind, extracted):
    for number, row in enumerate(SENTENCES, start=1):
        if row["kind"] == kind:
            assert extracted.get(number) == row["text"], row["wikitext"]


def test_at_least_97_of_100_are_kept(extracted):
    lost = [row["wikitext"] for number, row in enumerate(SENTENCES, start=1) if number not in extracted]
    assert len(lost) <= 0.03 * len(SENTENCES), lost


def test_what_was_lost_is_ranked(tmp_path):
    lost = Counter({"": 3, "someunknown": 1, "某未知模板": 2})
    extract_wiki.write_lost(tmp_path / "x.lost.tsv", lost)
    assert (tmp_path / "x.lost.tsv").read_text(encoding="utf-8") == "3\t(all)\n2\t某未知模板\n1\tsomeunknown\n"
    assert extract_wiki.read_lost(tmp_path / "x.lost.tsv") == lost
    extract_wiki.write_lost(tmp_path / "x.lost.tsv", Counter())
    assert not (tmp_path / "x.lost.tsv").exists()


def extracted_from(dump, folder, **more):
    """Texts of a dump's articles by title."""
    output = folder / "out.jsonl"
    extract_wiki.extract(dump, output, 1, **more)
    return {row["metadata"]["title"]: row["text"] for row in read_jsonl(output)}


@pytest.mark.parametrize("name", ["holes", "no_siteinfo"])
def test_values_lists_formulas_and_links_stay(name, tmp_path):
    texts = extracted_from(DUMPS / f"{name}.xml", tmp_path)
    assert texts["甲河"].startswith("河流全长120公里，流域面积约3,500平方公里，年均流量为250立方米每秒。上游")
    assert texts["乙山"].startswith(
        "乙山（Mount Yi，yi）是一座山，海拔1,200米，最高峰由张三于1980年5月1日首次登顶。山上"
    )
    assert texts["丙表"].startswith("表后正文继续叙述") and "如下" not in texts["丙表"]
    assert texts["丁变体"].startswith("计算机由硬盘和內存組成，打印机也常見，打印机的價格不高。干隆皇帝没有用过。不")
    assert texts["戊引用"].startswith("首句。第二句，第三句。\n换行后的内容仍属于正文，“这是引文内容”引文之后")
    assert texts["己列表"].startswith(
        "己有以下几种：\n- 第一种，用于煮汤\n- 第二种，用于炒菜\n1. 其一\n2. 其二\n术语：定义在这里\n之后是正文"
    )
    assert texts["庚信息框"].startswith("庚城（庚の城）位于东部，人口1,234,567人，面积12平方公里，邮编100 000。城中")
    assert texts["辛公式"].startswith(
        "定理：若$a^2+b^2=c^2$，则三角形为直角三角形；令$x=1$，得$\\ce{H2O}$的分子量。证明"
    )
    assert texts["壬链接"].startswith("参见，那条河，River，外部链接，河流，湖。其余正文")
    assert len(texts) == 9  # the empty page `<text … />` does not touch the next one


def test_links_brackets_and_headings(tmp_path):
    assert extracted_from(DUMPS / "links_and_brackets.xml", tmp_path) == {
        "冒号链接": "这部作品的续作是NieR:Automata，由从零开始的异世界生活的团队改编，播出时间为UTC+08:00的晚间。\n"
        "该片受到《2001太空漫游》和《CSI:犯罪现场调查》影响。",
        "尖括号": "程序在开头写明包含头文件<stdio.h>和<stdlib.h>，然后调用main()函数，最后由printf()输出结果。\n"
        "模板类型写作std::vector<int>，宏__FILE__和__LINE__给出文件名与行号。\n"
        "若a<b且c>d，则原不等式成立；若x < 3 或 y > 5，则不成立。\n"
        '在HTML中，标签<b>表示粗体，标签<br>表示换行，属性写作<a href="x">。',
        "化学名": "该化合物又名2-甲基-丙烷，与3-乙基-戊烷性质相近。\n其中红色的晶体可溶于水。\n"
        "本站在线阅读，仅此而已，程序。",
        "标题问号": "简介的正文写在这里，一共有一句话。\n雨是水汽凝结而成的降水。\n这一节介绍人物。\n这一节有正文。\n"
        "他毕业于麻省理工学院，绰号J. J.\n乐队成员包括Dr. Dre.",
        "诗": "春风吹过江南岸\n明月照我旧衣衫\n甲 乙 丙\n他说：\n路漫漫其修远兮。\n然后离开。",
        "表中模板": "甲公司是一家虚构的企业，成立于1990年。\n该式为f(x) = {x}，其值为正。",
        "R&B": "R&B是一种音乐类型，常用符号AT&T、\u00a0、\"引号\"与'撇号'。",
    }


def test_tables_and_braces_inside_templates(tmp_path):
    assert extracted_from(DUMPS / "tables_in_templates.xml", tmp_path) == {
        "甲一": "甲公司是一家虚构的企业，成立于1990年。",
        "甲二": "乙公司是一家虚构的企业，成立于1990年。",
        "甲三": "丙公司是一家虚构的企业。",
        "甲四": "丁函数为{x}，其值为正。",
        "甲五": "戊是一个集合{1, 2, 3}，其元素为整数。又如{a, b}。",
        "甲六": "己是一个条目。",
        "甲七": "庚是一个条目，坐标为30°N 120°E。",
        "甲八": "辛是一个条目。",
        "甲九": "壬是一个条目，它很有名，也很老。",  # a comment that never ends hides the rest of the page
        "甲十": "癸是一个条目。它很有名。再一句。",
        "乙一": "子：见后文。\nFoo乙类\n字论语记载了此事。",
    }


HEADS = {
    "in one line": "<mediawiki><siteinfo><base>https://zh.example.org/wiki/X</base><namespaces>"
    '<namespace key="10">Template</namespace></namespaces></siteinfo>',
    "without a Template namespace": "<mediawiki>\n<siteinfo>\n<base>https://zh.example.org/wiki/X</base>\n"
    "</siteinfo>\n",
    "with the namespaces of another language": "<mediawiki>\n<siteinfo>\n<base>https://zh.example.org/wiki/X</base>\n"
    '<namespaces>\n<namespace key="6">Datei</namespace>\n<namespace key="10">Vorlage</namespace>\n</namespaces>\n'
    "</siteinfo>\n",
    "without siteinfo": "<mediawiki>\n",
}
PAGE = "<page><title>{0}</title><ns>{1}</ns><id>{2}</id><revision><id>1</id>{3}</revision></page>"


@pytest.mark.parametrize("head", HEADS)
def test_any_head_gives_the_same_documents(head, tmp_path):
    pages = [
        PAGE.format("Template方法", 0, 1, "<text>模板方法是一种[[Datei:A|thumb]]设计模式。</text>"),
        PAGE.format("空", 0, 2, '<text bytes="0" />'),
        PAGE.format("乙", 0, 3, "<text>乙是一个条目。</text>"),
        PAGE.format("转", 0, 4, "<text>＃重定向 [[乙]]</text>"),
    ]
    dump = tmp_path / "dump.xml"
    dump.write_text(HEADS[head] + "".join(pages) + "</mediawiki>", encoding="utf-8")
    texts = extracted_from(dump, tmp_path)
    pictures = "" if "another" in head else "thumb"  # only a namespace of this dump's makes a picture of it
    assert texts == {"Template方法": f"模板方法是一种{pictures}设计模式。", "乙": "乙是一个条目。"}


def test_an_error_tells_what_was_found(tmp_path):
    dump = tmp_path / "dump.xml"
    pages = [
        PAGE.format("转", 0, 1, "<text>#重定向 [[乙]]</text>"),
        PAGE.format("空", 0, 2, "<text />"),
        PAGE.format("Template:甲", 10, 3, "<text>甲</text>"),
        PAGE.format("表", 0, 4, "<text>{{Infobox|a=1}}</text>"),
    ]
    dump.write_text(HEAD + "".join(pages) + "</mediawiki>", encoding="utf-8")
    with pytest.raises(UserError, match="4 pages has text: 1 redirects, 1 pages outside the articles, 1 empty"):
        extract_wiki.extract(dump, tmp_path / "out.jsonl", 1)


def test_a_users_own_table_wins_and_a_fault_in_it_is_named(tmp_path):
    own, dump = tmp_path / "own.yaml", tmp_path / "dump.xml"
    own.write_text('"某模板, nowrap": "〔{1}〕[（{2}）]"\n', encoding="utf-8")
    text = "甲{{某模板|一|二}}，乙{{nowrap|三}}。丙{{另一个|四}}。丁。"
    dump.write_text(HEAD + PAGE.format("甲", 0, 1, f"<text>{text}</text>") + "</mediawiki>", encoding="utf-8")
    assert extracted_from(dump, tmp_path, own=[own]) == {"甲": "甲〔一〕（二），乙〔三〕。丁。"}
    assert extract_wiki.read_lost(tmp_path / "out.lost.tsv") == {"": 1, "另一个": 1}
    own.write_text('甲: "@nothing"\n', encoding="utf-8")
    with pytest.raises(UserError, match="own.yaml, 甲: @nothing is not one of @gone, "):
        read_table([own])


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("3*4", "12"), ("1/3 round 2", "0.33"), ("2^10 mod 7", "2"), ("-2^2", "-4"), ("(61+2)/90*100 round 0", "70"),
        ("7 div 2", "3.5"), ("1e3", "1000"), ("5 > 3 and 2 <> 2", "0"), ("sqrt 2 round 3", "1.414"), ("1/0", None),
        ("__import__('os')", None), ("9^9^9^9", None), ("甲", None), ("", None),
    ],
)  # fmt: skip
def test_expressions(expression, value):
    found = calculate(expression)
    assert (None if found is None else printed(found)) == value


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("甲。乙！丙", ["甲。", "乙！", "丙"]),
        ("他说：“甲。乙。”然后走了。丁。", ["他说：“甲。乙。”", "然后走了。", "丁。"]),
        ("甲（乙。丙）丁。戊", ["甲（乙。丙）丁。", "戊"]),
        ("甲“乙。丙。", ["甲“乙。丙。"]),
        ("甲？！乙", ["甲？！", "乙"]),
    ],
)
def test_sentences(line, found):
    assert sentences(line) == found


@pytest.mark.parametrize("cut", range(0, 80, 3))
def test_half_markup_leaves_no_braces(cut):
    text = "甲{{nowrap|乙{{convert|1|km}}}}丙[[丁|戊]]己\n{|\n|x\n|}<span style='x'>庚</span>"[:cut]
    assert not set(tidy(ready(text, {}))) & set("}[]=|'")


def test_the_data_card_ranks_what_was_lost(tmp_path):
    for name, lost in (("a", {"": 3, "甲": 2, "乙": 1}), ("b", {"": 4, "乙": 4})):
        extract_wiki.write_lost(tmp_path / f"{name}.lost.tsv", Counter(lost))
    files = {"zhwiki": [[str(tmp_path / "a.jsonl.zst"), 1], [str(tmp_path / "b.jsonl"), 1]], "own": [["c.jsonl", 1]]}
    found = data_card.lost_in_wikitext({"files": files})
    ranked = [{"name": "乙", "sentences": 5}, {"name": "甲", "sentences": 2}]
    assert found == {"zhwiki": {"sentences": 7, "lacked": ranked}}
    card = {"source": "zhwiki", "sources": [], "steps": {}, "documents": 1, "characters": 1, "wikitext": found}
    assert "| `乙` | 5 |\n| `甲` | 2 |" in data_card.markdown(card)


def test_sections_that_list_pages_and_books_go_with_their_subsections():
    text = (
        "甲是乙。\n== 历史 ==\n丙始于丁。\n=== 来源 ===\n戊由己而来。\n== 参见 ==\n* [[庚]]\n=== 书籍 ===\n* 辛\n"
        "== 地理 ==\n壬在癸。\n==外部連結==\n* [http://a.example 官方網站]\n"
    )
    rendered = tidy(ready(text, {}))
    assert all(prose in rendered for prose in ("甲是乙。", "丙始于丁。", "戊由己而来。", "壬在癸。"))
    assert not any(listed in rendered for listed in ("庚", "辛", "官方", "参见", "書籍"))
