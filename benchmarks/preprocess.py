"""Compare the corpus steps with their peers in one run: `python -m benchmarks.preprocess` (six minutes on two cores).

    python -m benchmarks.preprocess --output benchmarks/preprocess.md

Speeds are MB of UTF-8 text per second on one core, medians of rounds in which both sides take turns; rensa and numpy
use one thread. Text for speed: chinese-poetry in documents of about 700 characters (2 kB). Text for quality: real prose
and generated junk of `benchmarks.chinese_text`. The Wikipedia dump is that prose with Wikipedia's markup around it.
"""

from __future__ import annotations

import argparse
import bz2
import json
import os
import platform
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

from artifacts.errors import run_main  # noqa: E402
from artifacts.files import write_text  # noqa: E402
from artifacts.layout import REPOSITORY  # noqa: E402
from benchmarks.chinese_text import clean_prose, long_documents, planted_junk  # noqa: E402
from preprocess.cleaning import conversion, privacy, quality, simplify  # noqa: E402
from preprocess.cleaning.characters import Characters  # noqa: E402
from preprocess.corpora import pipeline  # noqa: E402
from preprocess.deduplication import minhash  # noqa: E402
from preprocess.deduplication.deduplicate import deduplicate_by_similarity  # noqa: E402
from preprocess.sources.read import find_files  # noqa: E402
from preprocess.wiki import extract as extract_wiki  # noqa: E402

SIMPLIFIED_PROSE = ("libreoffice-help-zh-cn", "manpages-zh", "debian-reference-zh-cn")
SHARED = (
    "松原市乾安县位于吉林省。",
    "乾清宫在北京，乾隆年间重修。",
    "於潜是杭州的一个古县名，今属临安。",
    "宫商角徵羽是五声音阶，徵音不可写作征。",
    "麴院风荷又作曲院风荷，麴先生姓麴。",
    "毕昇发明了活字印刷术。",
)
ROUNDS = 3
BATCH = 700  # documents, like a batch of the pipeline
Row = tuple[str, str, str, str, str]  # step, ours, peer, bar, verdict


def speed(megabytes: float, work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return megabytes / (time.perf_counter() - started)


def side_by_side(*sides: tuple[float, Callable[[], Any]]) -> list[float]:
    """Median speed of each side in MB/s. A side is (megabytes, work); the sides take turns."""
    found: list[list[float]] = [[] for _ in sides]
    for _ in range(ROUNDS):
        for index, (megabytes, work) in enumerate(sides):
            found[index].append(speed(megabytes, work))
    return [statistics.median(values) for values in found]


def row(step: str, ours: float, peer: str, bar: float, unit: str = "MB/s", at_most: bool = False) -> Row:
    met = ours <= bar if at_most else ours >= bar
    return step, f"{ours:.3g} {unit}", peer, f"{'≤' if at_most else '≥'} {bar:g} {unit}", "met" if met else "**missed**"


def size(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def in_turn(texts: list[str], work: Callable[[list[str]], Any]) -> None:
    for start in range(0, len(texts), BATCH):
        work(texts[start : start + BATCH])


def simplification(texts: list[str], prose: dict[str, list[str]]) -> list[Row]:
    """Speed beside OpenCC's alone on Traditional and Simplified text, and what becomes of mixed pages."""
    found = []
    kinds = {"Traditional": texts, "Simplified": [t for name in SIMPLIFIED_PROSE for t in prose[name]]}
    for config in ("t2s", "tw2s"):
        for kind, some in kinds.items():
            ours, alone = side_by_side(
                (size(some), partial(in_turn, some, partial(simplify_each, config=config))),
                (size(some), partial(in_turn, some, partial(conversion.convert_many, config=config))),
            )
            told = f"OpenCC alone, in the same batches, {alone:.3g}; {ours / alone:.2f} times"
            found.append(row(f"simplification, {config}, {kind} text", ours, told, 30))
    return [*found, *mixed_pages(prose)]


def simplify_each(texts: list[str], config: str) -> list[str]:
    return [text for (text,) in simplify.simplify_many([[text] for text in texts], config)]


def mixed_pages(prose: dict[str, list[str]]) -> list[Row]:
    """4,000 pages of 2 to 20 passages, each by chance Traditional or Simplified, some of these with 乾, 徵, 於 …"""
    traditional = [*prose["libreoffice-help-zh-tw"], *prose["chinese-poetry"]]
    simplified = [text for name in SIMPLIFIED_PROSE for text in prose[name]]
    found = []
    for unit, pattern, between in (("paragraphs", r"[^\n]+", "\n"), ("sentences", r"[^。！？；\n]+[。！？；]", "")):
        pools = [
            [m for text in texts for m in re.findall(pattern, text) if m.strip()] for texts in (simplified, traditional)
        ]
        rng = random.Random(7)
        right, all_of, changed, kept = 0, 0, 0, 0
        for _ in range(4000):
            flags = [rng.random() < 0.5 for _ in range(rng.randint(2, 20))]
            page = [rng.choice(pools[flag]) if flag or rng.random() < 0.9 else rng.choice(SHARED) for flag in flags]
            (made,) = simplify.simplify_many([[between.join(page)]], "t2s")[0]
            at = 0
            for flag, passage, wanted in zip(flags, page, conversion.convert_many(page, "t2s")):
                part = made[at : at + len(passage)]
                at += len(passage) + len(between)
                if flag and wanted != passage:
                    all_of, right = all_of + 1, right + (part == wanted)
                elif not flag:
                    kept, changed = kept + 1, changed + (part != passage)
        told = f"{right:,} of {all_of:,} Traditional {unit} among Simplified ones"
        found.append(row(f"mixed pages of {unit}, converted", 100 * right / all_of, told, 99.9, "%"))
        told = f"{kept:,} Simplified {unit} among Traditional ones"
        found.append(row(f"mixed pages of {unit}, Simplified changed", changed, told, 0, "times", at_most=True))
    return found


def filtering(texts: list[str]) -> list[Row]:
    from datatrove.data import Document
    from datatrove.pipeline.filters import gopher_repetition_filter as gopher

    setattr(gopher, "split_into_words", lambda text, language: list(text))  # noqa: B010 (use characters as words)
    peer, few = gopher.GopherRepetitionFilter(), texts[:150]
    ours, theirs = side_by_side(
        (size(texts), lambda: in_turn(texts, quality.judge)),
        (size(few), lambda: [peer.filter(Document(text=text, id="")) for text in few]),
    )
    masking, _ = side_by_side(
        (size(texts), lambda: in_turn(texts, lambda part: privacy.mask_rows([{"text": t} for t in part]))),
        (1, lambda: None),
    )
    return [
        row("quality filter, all rules", ours, f"datatrove GopherRepetition on characters {theirs:.3g}", 20),
        ("privacy, masking", f"{masking:.3g} MB/s", "–", "–", "–"),
    ]


def signing(texts: list[str]) -> list[Row]:
    from datatrove.pipeline.dedup import minhash as theirs

    class ByCharacter:
        def word_tokenize(self, text: str) -> list[str]:
            return list(text)

    setattr(theirs, "load_word_tokenizer", lambda language: ByCharacter())  # noqa: B010
    few = texts[:300]
    with tempfile.TemporaryDirectory() as folder:
        peer = theirs.MinhashDedupSignature(folder)
        hash_bytes = peer._hash_func
        peer._hash_func = lambda text: hash_bytes(text.encode())  # xxhash 4 no longer takes strings
        ours, other, keys = side_by_side(
            (size(texts), lambda: in_turn(texts, lambda part: minhash.signatures(Characters.of(part).without_space()))),
            (size(few), lambda: [peer.get_signature(peer.get_shingles(text)) for text in few]),
            (size(texts), lambda: in_turn(texts, lambda part: minhash.keys(part, [None] * len(part)))),
        )
    step = f"MinHash signatures, {minhash.BANDS * minhash.ROWS} values"
    return [
        row(step, ours / other, f"datatrove, 112 values, same text {other:.3g} MB/s; here {ours:.3g} MB/s", 10, "x"),
        ("signatures and all keys", f"{keys:.3g} MB/s", "–", "–", "–"),
    ]


def write_corpus(path: Path, texts: list[str]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for number, text in enumerate(texts):
            stream.write(json.dumps({"text": text, "url": f"u{number}"}, ensure_ascii=False) + "\n")


def chain(texts: list[str], folder: Path) -> list[Row]:
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    write_corpus(folder / "chain.jsonl", texts)

    def run(blocks: list[Any]) -> None:
        data = None
        for block in blocks:
            data = block.run(data, 0, 1)
        for _ in data or ():
            pass

    def ours() -> None:
        shutil.rmtree(folder / "chain", ignore_errors=True)
        source = pipeline.Source("c4_zh", "c4_zh", (str(folder / "chain.jsonl"),))
        settings, files = pipeline.Settings((source,), 1, quality=[]), {"c4_zh": find_files(source.inputs)}
        run(pipeline.prepare_blocks(settings, files, folder / "chain", source))

    def theirs() -> None:
        writer = JsonlWriter(str(folder / "theirs"), output_filename="${rank}.jsonl.zst", compression="zstd")
        run([JsonlReader(str(folder), glob_pattern="chain.jsonl"), writer])

    mine, peer = side_by_side((size(texts), ours), (size(texts), theirs))
    what = "read, normalise, simplify, mask, filter, sign, write"
    return [row(what, mine, f"datatrove's reader and writer alone {peer:.3g}", 8)]


def judgement(prose: dict[str, list[str]]) -> list[Row]:
    found, kept, total = [], 0, 0
    for texts in prose.values():
        ready = [quality.normalised(text) for text in simplify_each(texts, "t2s")]
        kept += quality.judge(ready).count(None)
        total += len(ready)
    found.append(row("real prose dropped", 100 * (total - kept) / total, f"{total:,} documents", 2, "%", at_most=True))
    samples = [text for name, texts in prose.items() if name != "chinese-poetry" for text in texts]
    for kind, texts in planted_junk(samples, 1000).items():
        reasons = quality.judge([quality.normalised(text) for text in texts])
        share = 100 * (len(texts) - reasons.count(None)) / len(texts)
        most = Counter(reason for reason in reasons if reason).most_common(1)[0][0]
        found.append(row(f"junk caught: {kind}", share, f"1,000 planted; mostly as “{most}”", 95, "%"))
    return found


def pairs(texts: list[str], folder: Path) -> list[Row]:
    rng = random.Random(5)
    letters = sorted(set("".join(texts[:200])))
    rows, truth = [], {}
    for number, text in enumerate(texts[:3000]):
        share = rng.uniform(0, 0.1)
        copy = "".join(rng.choice(letters) if rng.random() < share else c for c in text)
        one, other = ({t[i : i + 5] for i in range(len(t) - 4)} for t in ("".join(text.split()), "".join(copy.split())))
        truth[number] = len(one & other) / len(one | other)
        rows += [{"id": f"o{number}", "text": text}, {"id": f"c{number}", "text": copy}]
    rng.shuffle(rows)
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    judged = deduplicate_by_similarity(folder / "pairs.jsonl", Counter(), folder / "pairs", 1 << 28)
    dropped = {int(document["id"][1:]) for document, reason in judged if reason}
    similar = {number for number, value in truth.items() if value >= minhash.SIMILAR}
    told = f"{len(truth):,} pairs of Jaccard {min(truth.values()):.2f} to 1, {len(similar):,} of 0.8 or more"
    return [
        row("near duplicates, recall", len(dropped & similar) / len(similar), told, 0.95, ""),
        row("near duplicates, precision", len(dropped & similar) / len(dropped), told, 0.95, ""),
    ]


def write_dump(path: Path, texts: list[str]) -> float:
    """Write a multistream dump of `texts` as articles, with redirects and templates. Returns its decompressed MB."""
    head = (
        '<mediawiki>\n<siteinfo>\n<base>https://zh.wikipedia.org/wiki/</base>\n<namespaces>\n<namespace key="10">'
        "Template</namespace>\n</namespaces>\n</siteinfo>\n"
    )
    frame = (
        "<page>\n<title>{0}</title>\n<ns>{1}</ns>\n<id>{2}</id>\n"
        "<revision>\n<id>1</id>\n<text>{3}</text>\n</revision>\n</page>\n"
    )
    article = (
        "{{{{noteTA|G1=IT|1=zh-cn:网络;zh-tw:網路}}}}\n"
        "{{{{Infobox|name={0}|image=[[File:a.jpg|thumb]]|born={{{{date|1}}}}}}}}\n"
        "'''條目{0}'''（{{{{lang-en|Entry}}}}）是[[網路]]的一部分"
        '&lt;ref name="a"&gt;{{{{cite web|url=http://a.b/{0}|title=題}}}}&lt;/ref&gt;'
        "，又稱-{{zh-hans:条目;zh-hant:條目}}-。\n{1}\n== 歷史 ==\n"
        '{{| class="wikitable"\n| 一 || [[二]]\n|-\n| 三 || 四\n|}}\n'
        "[[Category:類{0}]]\n"
    )
    written = len(head)
    index = path.with_name("index.txt").open("w", encoding="utf-8")  # Wikipedia publishes one beside each dump
    with index, path.open("wb") as stream:
        stream.write(bz2.compress(head.encode()))
        pages: list[str] = []
        for number, text in enumerate(texts):
            escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", "\n\n")
            pages.append(frame.format(f"條目{number}", 0, 3 * number + 1, article.format(number, escaped)))
            pages.append(frame.format(f"轉{number}", 0, 3 * number + 2, f"#REDIRECT [[條目{number}]]"))
            if number % 5 == 0:
                pages.append(frame.format(f"Template:T{number}", 10, 3 * number + 3, "{{{1}}} " * 30))
            if len(pages) >= 100 or number == len(texts) - 1:
                packed = "".join(pages).encode()
                written += len(packed)
                index.writelines(f"{stream.tell()}:1:page\n" for _ in pages)
                stream.write(bz2.compress(packed))
                pages = []
        stream.write(bz2.compress(b"</mediawiki>\n"))
    return written / 1e6


def extraction(prose: dict[str, list[str]], folder: Path) -> list[Row]:
    texts = [text for name, group in prose.items() if name != "chinese-poetry" for text in group if len(text) > 100] * 3
    dump, processes = folder / "dump.xml.bz2", 2
    megabytes = write_dump(dump, texts)
    output = folder / "wiki.jsonl"

    def alone() -> None:
        command = [sys.executable, "-m", "wikiextractor.WikiExtractor", "--json", "--no-templates", "--discard_empty"]
        command += ["--quiet", "--processes", str(processes), "-o", "-", str(dump)]
        with (folder / "alone.jsonl").open("wb") as stream:
            subprocess.run(command, stdout=stream, stderr=subprocess.DEVNULL, check=True)

    ours, theirs = side_by_side(
        (megabytes, lambda: extract_wiki.extract(dump, output, processes, folder / "index.txt")), (megabytes, alone)
    )
    found = "\n".join(json.loads(line)["text"] for line in output.open(encoding="utf-8"))
    left = sum(found.count(mark) for mark in ("-{", "}}", "（）", "（；", "formula_", "__NOTOC__", "#REDIRECT"))
    told = (
        f"WikiExtractor alone {theirs:.3g} MB/s, here {ours:.3g} MB/s ({megabytes:.0f} MB dump, {processes} processes)"
    )
    return [
        row("wiki extraction, to WikiExtractor's rate", ours / theirs, told, 0.9, "x"),
        row("wiki markup left", left, f"{len(found):,} characters", 0, "times", at_most=True),
    ]


def high_water(process: int) -> float:
    """Peak memory of a process so far, MB. Not ru_maxrss: a child's starts at its parent's value at the fork."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def memory(folder: Path) -> list[Row]:
    found = []
    for times in (1, 4, 16):
        write_corpus(folder / "memory.jsonl", long_documents(6 * times))
        command = [sys.executable, "-m", "preprocess.corpora.pipeline", "--source", "c4_zh", "--tasks", "1", "--input"]
        command += [str(folder / "memory.jsonl"), "--output-folder", str(folder / "memory"), "--memory-megabytes", "64"]
        shutil.rmtree(folder / "memory", ignore_errors=True)
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, high_water(process.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        assert process.returncode == 0 and peak, "the pipeline failed"
        found.append((f"peak memory at {times}x ({6 * times} MB)", f"{peak:.0f} MB", f"{seconds:.1f} s", "flat", "–"))
    first, last = (float(line[1].split()[0]) for line in (found[0], found[-1]))
    return [*found, row("growth from 1x to 16x", last / first, "–", 1.5, "x", at_most=True)]


def report(rows: list[Row], command: str, seconds: float) -> str:
    tools = ("datatrove", "rensa", "OpenCC", "wikiextractor", "numpy", "orjson", "zstandard")
    versions = ", ".join(f"{name} {version(name)}" for name in tools)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    model = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")][0]
    lines = ["# The corpus steps beside their peers", ""]
    lines += [f"`{command}`, {seconds:.0f} s, commit {commit.stdout.strip()}.", ""]
    lines += [f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}; {versions}.", ""]
    lines += [" ".join((__doc__ or "").split("\n\n")[-1].split()), ""]
    lines += ["| step | here | peer, or what it was measured on | bar | |", "|---|---|---|---|---|"]
    return "\n".join(lines + ["| " + " | ".join(line) + " |" for line in rows]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks" / "preprocess.md")
    arguments = parser.parse_args()
    started = time.perf_counter()
    prose, texts = clean_prose(), long_documents(24)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for step in (
            lambda: extraction(prose, folder),
            lambda: simplification(texts, prose),
            lambda: filtering(texts),
            lambda: judgement(prose),
            lambda: signing(texts),
            lambda: pairs(texts, folder),
            lambda: chain(texts, folder),
            lambda: memory(folder),
        ):
            for line in step():
                print(" | ".join(line), flush=True)
                rows.append(line)
    write_text(arguments.output, report(rows, "python -m benchmarks.preprocess", time.perf_counter() - started))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{arguments.output} written; peak memory of the benchmark itself {peak:.0f} MB")


if __name__ == "__main__":
    run_main(main)
