"""Write small made-up files in exactly the published layout of each source, for a rehearsal without downloads.

    python -m preprocess.sources.rehearsal baidu-baike --from CACHE --into OTHER     # where none is downloaded

The layouts are those of the publishers: field names, containers, compression, file names, and quirks that the real
files have (an empty output, a summary that is null, a page in Traditional characters, an advertisement, a page that two
sources share). The text is random sentences in plain Chinese: enough for every step to have something to do, and
nothing that a model could learn from. The output is deterministic.
"""

from __future__ import annotations

import bz2
import gzip
import html
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import atomic_file
from preprocess.sources.containers import container
from preprocess.sources.download import files_in
from preprocess.sources.hub import is_pattern

Row = dict[str, Any]

DOCUMENTS = 300
PLACES = "青河 石桥 白塔 东岭 南浦 西湾 北原 临川 云山 平湖 柳城 安溪 海门 长林 武陵 高阳 金沙 龙泉 宝山 松江".split()
THINGS = "河流 车站 学校 图书馆 工厂 寺庙 博物馆 医院 公园 大桥 机场 港口 剧院 水库 隧道 集市 灯塔 古镇".split()
PEOPLE = "李明 王芳 张伟 刘洋 陈静 杨帆 赵磊 黄丽 周杰 吴敏 徐强 孙悦 胡军 朱琳 高峰 林晓 何平 郭亮 马超 罗兰".split()
TRADES = "工程师 教师 医生 画家 农民 记者 作家 律师 厨师 船长 司机 木匠 歌手 学者 商人 护士 演员 编辑 裁缝 园丁".split()
VERBS = "研究 修建 保护 介绍 观察 设计 记录 改造 收集 讨论 管理 参观 测量 整理 宣传 建造 捐助 维修 描写 调查".split()
TIMES = "春天 夏季 秋末 冬日 清晨 傍晚 周末 节日期间 雨季 丰收之后 战争结束后 改革开放以后 上世纪末 新世纪初".split()
FOODS = "米饭 面条 豆腐 青菜 鲤鱼 苹果 葡萄 茶叶 蜂蜜 红枣 核桃 莲藕 土豆 西瓜 牛肉 鸡蛋".split()
SENTENCES = (
    "{place}的{thing}建于{year}年，由{person}主持{verb}，至今仍在使用。",
    "{person}是{place}的一名{trade}，{time}常到{thing}附近{verb}当地的历史。",
    "当地人喜欢吃{food}，也把{food2}卖到{place2}，每年大约有{number}吨。",
    "{time}，{place}和{place2}之间的道路得到了{verb}，行人明显多了起来。",
    "据{person}回忆，那座{thing}原来只有{number}平方米，后来才逐渐扩大。",
    "为了{verb}这一带的{thing}，{person}请来了{number}位{trade}，前后用了{few}年。",
    "{place}气候温和，{time}的平均气温约为{few}度，适合种植{food}。",
    "“我们应该继续{verb}它，”{person}在{year}年的会议上说，“这关系到{place}的将来。”",
    "从{place}出发，步行{number}分钟就可以看到{thing}，旁边有一家卖{food}的小店。",
    "{person}写过一本关于{place2}的书，书中提到{thing}的次数超过{few}次。",
    "与{place}相比，{place2}的{thing}规模较小，但是每年接待的{trade}更多。",
    "{year}年以前，这里没有{thing}，居民要到{place2}去买{food}。",
)
QUESTIONS = (
    ("{place}的{thing}在哪里？", "它在{place}的东边，离{place2}大约{number}公里。"),
    ("请介绍一下{person}。", "{person}是一名{trade}，出生于{year}年，住在{place}。"),
    ("{few}加{number}等于几？", "{few}加{number}等于{sum}。"),
    ("列出两种{place}常见的食物。", "常见的食物有{food}和{food2}。"),
    ("为什么要{verb}{thing}？", "因为{thing}对{place}的居民很重要，{verb}它可以让更多人了解历史。"),
    ("{time}适合做什么？", "{time}适合到{place}的{thing}走一走，也可以尝尝当地的{food}。"),
    ("写一句描写{place}的话。", "{time}的{place}很安静，只有{thing}旁边还亮着灯。"),
)


def fill(template: str, rng: random.Random) -> str:
    few, number = rng.randint(2, 40), rng.randint(41, 3000)
    place, place2 = rng.sample(PLACES, 2)
    food, food2 = rng.sample(FOODS, 2)
    words = {"person": PEOPLE, "thing": THINGS, "trade": TRADES, "verb": VERBS, "time": TIMES}
    chosen = {name: rng.choice(values) for name, values in words.items()}
    return template.format(
        **chosen, place=place, place2=place2, food=food, food2=food2, year=rng.randint(1850, 2023), few=few,
        number=number, sum=few + number,
    )  # fmt: skip


def paragraph(rng: random.Random, least: int = 3, most: int = 9) -> str:
    return "".join(fill(rng.choice(SENTENCES), rng) for _ in range(rng.randint(least, most)))


def article(seed: int) -> tuple[str, list[str]]:
    """Title and paragraphs of document number `seed`; the same number gives the same document in every source."""
    rng = random.Random(f"article {seed}")
    title = f"{rng.choice(PLACES)}{rng.choice(THINGS)}（{seed}）"
    return title, [paragraph(rng) for _ in range(rng.randint(1, 5))]


def dialogue(seed: int) -> tuple[str, str, str]:
    """A question, its answer, and a worse answer."""
    rng = random.Random(f"dialogue {seed}")
    question, answer = rng.choice(QUESTIONS)
    both = fill(f"{question}\n{answer}", rng).split("\n")
    worse = rng.choice(["不知道。", "这个问题我不想回答。", both[1][: len(both[1]) // 3]])
    return f"{both[0]}（第{seed}题）", both[1], worse


def _lines(rows: Iterator[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _list(rows: Iterator[dict[str, Any]]) -> bytes:
    return json.dumps(list(rows), ensure_ascii=False, indent=2).encode()


def wikipedia_cn(numbers: range) -> bytes:
    """wikipedia-cn-20230720-filtered: a JSON list."""
    for_all = ({"completion": "\n".join([title, *parts]), "source": "wikipedia.zh2307"}
               for title, parts in map(article, numbers))  # fmt: skip
    return _list(for_all)


def baidubaike(numbers: range) -> bytes:
    """BaiduBaike-5.63M: JSON lines in a `.json`; some summaries are null."""

    def rows() -> Iterator[dict[str, Any]]:
        for number in numbers:
            title, parts = article(number)
            sections = [{"title": f"第{n}节", "content": text} for n, text in enumerate(parts[1:], start=1)]
            yield {
                "title": title,
                "summary": None if number % 17 == 5 and sections else parts[0],
                "sections": sections,
                "tags": ["地理", "建筑"],
                "url": f"http://baike.baidu.com/item/{number}",
            }

    return _lines(rows())


def c4_zh(numbers: range) -> bytes:
    """C4 multilingual zh: gzipped JSON lines; a page in Traditional characters, an advertisement, a repeated page."""

    def rows() -> Iterator[dict[str, Any]]:
        for number in numbers:
            title, parts = article(number - number % 10 if number % 25 == 7 else number)
            text = "\n".join([title, *parts])
            if number % 40 == 3:
                text = "車站旁的書店賣舊書，老闆姓陳，他說這裡的書都是從臺北買來的。\n" * 2 + text
            if number % 60 == 11:
                text = "加微信代开发票，免费咨询，点击这里立即注册，送彩金。"
            yield {"text": text, "timestamp": "2019-04-22T12:22:31Z", "url": f"https://example.com/{number}.html"}

    return gzip.compress(_lines(rows()), mtime=0)


def wudao(numbers: range) -> bytes:
    """WuDaoCorpora Text: JSON lists, several files."""
    return _list(
        {
            "id": number,
            "uniqueKey": f"{number:032x}",
            "titleUkey": f"{number:032x}",
            "dataType": "百科",
            "title": title,
            "content": "\n".join(parts),
        }
        for number, (title, parts) in ((n, article(n)) for n in numbers)
    )


def alpaca(numbers: range) -> bytes:
    """alpaca_gpt4_data_zh: a JSON list; some outputs are empty, one row is repeated."""

    def rows() -> Iterator[dict[str, Any]]:
        for number in numbers:
            question, answer, _ = dialogue(number if number % 90 != 89 else number - 1)
            yield {"instruction": question, "input": "", "output": "" if number % 70 == 69 else answer}

    return _list(rows())


def belle(numbers: range) -> bytes:
    """Belle_open_source_1M: JSON lines in a `.json`; questions may begin or end with white space."""

    def rows() -> Iterator[dict[str, Any]]:
        for number in numbers:
            question, answer, _ = dialogue(10_000 + number)
            yield {"instruction": question + (" \n" if number % 9 == 4 else ""), "input": "", "output": answer}

    return _lines(rows())


def dpo(numbers: range) -> bytes:
    """DPO-En-Zh-20k: a JSON list of conversations with two answers, some after a system prompt."""

    def rows() -> Iterator[dict[str, Any]]:
        for number in numbers:
            question, better, worse = dialogue(20_000 + number)
            turns = [{"from": "human", "value": question}]
            if number % 20 == 3:
                turns.insert(0, {"from": "system", "value": "你是一个有帮助的助手。"})
            yield {
                "conversations": turns,
                "chosen": {"from": "gpt", "value": better},
                "rejected": {"from": "gpt", "value": worse},
            }

    return _list(rows())


def smoltalk(numbers: range) -> Iterator[Row]:
    """smoltalk-chinese: dialogues with the ratings of their instruction."""
    for number in numbers:
        question, answer, _ = dialogue(30_000 + number)
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        if number % 3 == 0:
            more = dialogue(40_000 + number)
            turns += [{"from": "human", "value": more[0]}, {"from": "gpt", "value": more[1]}]
        yield {"id": f"{number}", "conversations": turns, "difficulty": "easy", "instruction_quality": 4}


def coig_cqia(numbers: range) -> Iterator[Row]:
    for number in numbers:
        question, answer, _ = dialogue(50_000 + number)
        yield {
            "instruction": question, "input": "", "output": answer, "domain": ["通用"],
            "task_type": {"major": ["问答"], "minor": ["百科问答"]}, "metadata": None, "answer_from": "human",
            "human_verified": True, "copyright": "暂无版权及作者信息",
        }  # fmt: skip


def infinity_instruct(numbers: range) -> Iterator[Row]:
    """Infinity-Instruct: `label` is an object, not KTO's; most rows are English."""
    for number in numbers:
        question, answer, _ = dialogue(60_000 + number)
        chinese = number % 3 == 0
        said = (question, answer) if chinese else (f"What is {number} plus 1?", f"It is {number + 1}.")
        yield {
            "id": number, "conversations": [{"from": "human", "value": said[0]}, {"from": "gpt", "value": said[1]}],
            "label": {"ability_zh": ["知识"], "ability_en": ["knowledge"]}, "langdetect": "zh-cn" if chinese else "en",
            "source": "made-up",
        }  # fmt: skip


def minimind(numbers: range) -> Iterator[Row]:
    """minimind's sft_t2t: some dialogues have thoughts, some tools; one tool call's arguments are no JSON."""
    for number in numbers:
        question, answer, _ = dialogue(70_000 + number)
        turns: list[Row] = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        if number % 10 == 4:
            turns[1]["reasoning_content"] = "先想一想。"
        if number % 10 == 7:
            tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
            arguments = '{"a": ' if number == 57 else json.dumps({"a": number, "b": 1})
            calls = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": arguments}}]
            turns = [
                {"role": "system", "content": "", "tools": json.dumps([tool])}, turns[0],
                {"role": "assistant", "content": "", "tool_calls": json.dumps(calls)},
                {"role": "tool", "content": f"{number + 1}"}, turns[1],
            ]  # fmt: skip
        yield {"conversations": turns}


def minimind_dpo(numbers: range) -> Iterator[Row]:
    """minimind's dpo: two lists of messages that differ in the last."""
    for number in numbers:
        question, better, worse = dialogue(80_000 + number)
        asked = {"role": "user", "content": question}
        both = ([asked, {"role": "assistant", "content": text}] for text in (better, worse))
        yield dict(zip(("chosen", "rejected"), both, strict=True))


def r1_distill(numbers: range) -> Iterator[Row]:
    for number in numbers:
        question, answer, _ = dialogue(90_000 + number)
        yield {
            "input": question, "reasoning_content": f"题目是“{question}”，先回忆相关的事实。", "content": answer,
            "repo_name": "made-up", "score": 9,
        }  # fmt: skip


def ultrafeedback(numbers: range) -> Iterator[Row]:
    """UltraFeedback-chinese: scored answers; the answers of a row may be equally good."""
    for number in numbers:
        question, better, worse = dialogue(100_000 + number)
        scores = (3.0, 3.0) if number % 40 == 9 else (4.6, 1.4)
        answers = zip((better, worse), scores, strict=True)
        yield {
            "source": "made-up", "instruction": question,
            "completions": [
                {"model": f"m{place}", "response": text, "overall_score": score,
                 "annotations": {"helpfulness": {"Rating": f"{score:.0f}", "Rationale": "略"}}}
                for place, (text, score) in enumerate(answers)
            ],
        }  # fmt: skip


def web_pages(numbers: range, source: Row) -> Iterator[Row]:
    """The records of a corpus by its `columns`, `text_key` and `score_range`; `a.b` is the key b in the object a."""
    key = source.get("text_key", "text")
    low, high = source.get("score_range", (0, 1))
    for number in numbers:
        title, parts = article(number)
        row: Row = {}
        for column in source.get("columns", [key]):
            score = round(low + (high - low) * random.Random(f"{column} {number}").random(), 4)
            value = "\n".join([title, *parts]) if column == key else score if "score" in column else f"made-up-{number}"
            outer, _, inner = column.rpartition(".")
            (row.setdefault(outer, {}) if outer else row)[inner] = value
        yield row


def write_rows(rows: Iterator[Row], name: str, path: Path) -> None:
    """Write rows in the container that a published file's name tells: Parquet, or JSON lines, plain or compressed."""
    ending, compression = container(name)
    if ending == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
        return
    text = _lines(rows)
    if compression == "gzip":
        text = gzip.compress(text, mtime=0)
    elif compression == "zstd":
        import zstandard

        text = zstandard.ZstdCompressor().compress(text)
    path.write_bytes(text)


SITE = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="zh">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>zhwiki</dbname>
    <base>https://zh.wikipedia.org/wiki/Wikipedia:%E9%A6%96%E9%A1%B5</base>
    <generator>MediaWiki 1.45.0</generator>
    <case>first-letter</case>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="10" case="first-letter">Template</namespace>
      <namespace key="14" case="first-letter">Category</namespace>
      <namespace key="828" case="case-sensitive">Module</namespace>
    </namespaces>
  </siteinfo>
"""
PAGE = """  <page>
    <title>{title}</title>
    <ns>0</ns>
    <id>{number}</id>
{leads}    <revision>
      <id>{number}0</id>
      <timestamp>2026-11-01T00:00:00Z</timestamp>
      <contributor>
        <username>Example</username>
        <id>7</id>
      </contributor>
      <model>wikitext</model>
      <format>text/x-wiki</format>
      <text bytes="{size}" sha1="0" xml:space="preserve">{text}</text>
      <sha1>0</sha1>
    </revision>
  </page>
"""


def page(number: int, title: str, text: str, redirect: str = "") -> str:
    return PAGE.format(
        title=title, number=number, size=len(text.encode()), text=html.escape(text, quote=False),
        leads=f'    <redirect title="{redirect}" />\n' if redirect else "",
    )  # fmt: skip


def zhwiki(numbers: range, dump: Path, index: Path, pages_per_stream: int = 50) -> None:
    """A multistream dump and its index: bz2 streams of some pages each, lines `offset:id:title`."""
    streams, lines, offset = [bz2.compress(SITE.encode())], [], 0
    offset = len(streams[0])
    for start in range(numbers.start, numbers.stop, pages_per_stream):
        written = ""
        for number in range(start, min(start + pages_per_stream, numbers.stop)):
            title, parts = article(number)
            body = f"'''{title}'''位于[[{PLACES[number % len(PLACES)]}]]。{parts[0]}<ref>地方志</ref>\n"
            body += "".join(f"\n== 第{n}节 ==\n{text}\n" for n, text in enumerate(parts[1:], start=1))
            body += "\n{{reflist}}\n[[Category:地理]]\n"
            if number % 30 == 29:
                body = f"#REDIRECT [[{article(number - 1)[0]}]]"
            written += page(number + 1, title, body, article(number - 1)[0] if number % 30 == 29 else "")
            lines.append(f"{offset}:{number + 1}:{title}\n")
        streams.append(bz2.compress(written.encode()))
        offset += len(streams[-1])
    streams.append(bz2.compress(b"</mediawiki>\n"))
    dump.write_bytes(b"".join(streams))
    index.write_bytes(bz2.compress("".join(lines).encode()))


WRITERS: dict[str, Callable[[range], bytes]] = {
    "wikipedia_cn": wikipedia_cn, "baidubaike": baidubaike, "c4_zh": c4_zh, "wudao": wudao,
    "alpaca-zh": alpaca, "belle-1m": belle, "dpo-zh": dpo,
}  # fmt: skip
ROWS: dict[str, Callable[[range], Iterator[Row]]] = {
    "smoltalk-chinese": smoltalk, "coig-cqia": coig_cqia, "infinity-instruct": infinity_instruct,
    "minimind-sft": minimind, "minimind-dpo": minimind_dpo, "r1-distill-zh": r1_distill,
    "ultrafeedback-chinese": ultrafeedback,
}  # fmt: skip
# the first article of each source: of 300, the last 50 of zhwiki are in wikipedia_cn too, and so on
FIRST = {"wikipedia_cn": 250, "baidubaike": 500, "c4_zh": 750, "wudao": 1000}


def write(name: str, source: dict[str, Any], folder: Path, files: list[str], documents: int = DOCUMENTS) -> None:
    """Write the files of a source, by their published names, with `documents` documents together.

    Raises:
        UserError: the layout of this source is not known here.
    """
    reader = source.get("reader", "")
    if reader == "wiki_dump":
        folder.mkdir(parents=True, exist_ok=True)
        zhwiki(range(documents), folder / files[0], folder / files[1])
        return
    writer, rows = WRITERS.get(name) or WRITERS.get(reader), ROWS.get(name)
    if writer is None and rows is None and reader != "jsonl":
        raise UserError(
            f"{name}: no made-up sample of its layout is known; download it first, then its beginning is used"
        )
    first, each = FIRST.get(reader, 0), -(-documents // len(files))
    for place, file in enumerate(files):
        numbers = range(first + place * each, first + (place + 1) * each)
        with atomic_file(folder / file) as aside:
            if writer is not None:
                aside.write_bytes(writer(numbers))
            else:
                write_rows(rows(numbers) if rows else web_pages(numbers, source), file, aside)


def made_names(source: dict[str, Any], most: int) -> list[str]:
    """Names for at most `most` made-up files of a source, as it publishes them: a number for the last `*`."""
    names = files_in(source) or ["part-0.json", "part-1.json"]
    if is_pattern(names[0]):
        before, _, after = names[0].rpartition("*")
        names = [f"{before.replace('*', '')}{number:05d}{after}" for number in range(most)]
    return names[:most]
