"""Weigh the tools that turn wikitext into text: holes and speed on the same articles, one process each.

    python -m benchmarks.wiki_tools --python VENV/bin/python --node-modules FOLDER/node_modules

The input is the labelled set of `tests/preprocess/wiki_sentences.jsonl`, which was written beside this project's own
table of templates: on other articles more sentences are dropped, not more holes left. The dump also defines the
templates that Wikipedia defines in wikitext, so that tools that expand templates can; those that are Lua modules there
(convert, val, coord, dates) call a module that is missing, as for every tool without a copy of Wikipedia's Lua.

VENV has mwparserfromhell and wikitextprocessor, FOLDER has wtf_wikipedia; a tool that is not there is listed so. A
sentence is whole if the letters and digits that a reader sees are all there in their order; dropped if nothing is
left; else it has a hole or the remains of markup. MB a CPU second are of XML: articles of an
infobox, ten of these sentences and forty plain ones, with the start of the tool.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from artifacts.command import run_main
from artifacts.files import read_jsonl, write_text
from benchmarks.machine import describe

REPOSITORY = Path(__file__).resolve().parents[1]
SENTENCES = REPOSITORY / "tests" / "preprocess" / "wiki_sentences.jsonl"
HEAD = (
    '<mediawiki>\n<siteinfo>\n<base>https://zh.wikipedia.org/wiki/</base>\n<namespaces>\n<namespace key="10">Template'
    '</namespace>\n<namespace key="828">Module</namespace>\n</namespaces>\n</siteinfo>\n'
)
FIRST = (
    "nowrap small big lang-en lang-de lang-ja lang-fr lang-uk lang-ru lang-ko mvar math abbr color ruby le link-en"
).split()
TEMPLATES = {
    **{name: "{{{1}}}" for name in FIRST},
    "lang": "{{{2}}}", "transl": "{{{2}}}", "tsl": "{{{4|{{{3}}}}}}", "quote": "<blockquote>{{{1}}}</blockquote>",
    "sup": "<sup>{{{1}}}</sup>", "sub": "<sub>{{{1}}}</sub>", "=": "=", "!": "|", "frac": "{{{1}}}/{{{2}}}",
    "efn": "", "sfn": "", "fact": "", "cn": "", "noteTA": "", "main": "", "flagicon": "", "flag": "{{{1}}}",
    **{name: f"{{{{#invoke:{name}|main}}}}" for name in ("convert", "cvt", "val", "coord", "start date", "date", "zh")},
}  # fmt: skip

MWPARSERFROMHELL = """
import html, json, re, sys
import mwparserfromhell
for page in open(sys.argv[1], encoding="utf-8").read().split("</page>")[:-1]:
    if "<ns>0</ns>" in page:
        text = html.unescape(re.search(r"<text[^>]*>(.*?)</text>", page, re.S)[1])
        said = mwparserfromhell.parse(text).strip_code(keep_template_params=False)
        print(json.dumps({"id": re.search(r"<id>(\\d+)", page)[1], "text": said}))
"""
WIKITEXTPROCESSOR = """
import html, json, os, re, sys
from wikitextprocessor import Wtp
said = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
context = Wtp(quiet=True)
pages = open(sys.argv[1], encoding="utf-8").read().split("</page>")[:-1]
read = [(re.search(r"<title>(.*?)</title>", page)[1], re.search(r"<ns>(.*?)</ns>", page)[1],
         re.search(r"<id>(\\d+)", page)[1], html.unescape(re.search(r"<text[^>]*>(.*?)</text>", page, re.S)[1]))
        for page in pages]
for title, space, _, text in read:
    if space == "10":
        context.add_page("wikitext", title, text)
context.analyze_templates()
for title, space, number, text in read:
    if space == "0":
        context.start_page(title)
        tree = context.parse(text, expand_all=True)
        said.write(json.dumps({"id": number, "text": context.node_to_text(tree)}) + "\\n")
said.flush()
"""
WTF_WIKIPEDIA = """
import { readFileSync } from 'fs'
import { pathToFileURL } from 'url'
const wtf = (await import(pathToFileURL(process.argv[3] + '/wtf_wikipedia/src/index.js'))).default
const plain = {'&lt;': '<', '&gt;': '>', '&quot;': '"', '&amp;': '&'}
for (const page of readFileSync(process.argv[2], 'utf-8').split('</page>').slice(0, -1)) {
  if (!page.includes('<ns>0</ns>')) continue
  const text = page.match(/<text[^>]*>([^]*?)<\\/text>/)[1].replace(/&(lt|gt|quot|amp);/g, (found) => plain[found])
  console.log(JSON.stringify({ id: page.match(/<id>(\\d+)/)[1], text: wtf(text).text() }))
}
"""


def write_dump(path: Path, articles: list[str]) -> float:
    """Write a dump of `articles`, numbered from 1, and of the templates. Returns its MB."""
    page = "<page>\n<title>{0}</title>\n<ns>{1}</ns>\n<id>{2}</id>\n<revision>\n<id>1</id>\n<text>{3}</text>\n"
    pages = [
        (f"Template:{name[0].upper()}{name[1:]}", 10, 1_000_000 + place, text)
        for place, (name, text) in enumerate(TEMPLATES.items())
    ]
    pages += [("测试条目", 0, number, text) for number, text in enumerate(articles, start=1)]
    with path.open("w", encoding="utf-8") as stream:
        stream.write(HEAD)
        for title, space, number, text in pages:
            escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            stream.write(page.format(title, space, number, escaped) + "</revision>\n</page>\n")
        stream.write("</mediawiki>\n")
    return path.stat().st_size / 1e6


def articles(rows: list[dict[str, str | None]]) -> list[str]:
    """Articles of a usual length and density of markup: an infobox, ten labelled sentences among forty plain ones."""
    plain = [str(row["text"]) for row in rows if row["text"] and "\n" not in row["text"] and "<" not in row["text"]]
    made = []
    for at in range(0, len(rows), 10):
        body = [str(row["wikitext"]) for row in rows[at : at + 10]]
        around = [plain[(at * 4 + more) % len(plain)] for more in range(40)]
        parts = [
            "{{Infobox x\n| a = [[甲]]\n| b = {{nowrap|乙}}\n}}\n'''条目'''<ref>{{cite web|title=题}}</ref>是一个条目。"
        ]
        for place, wikitext in enumerate(body):
            parts += [f"== 第{place}节 ==" if place % 4 == 0 else "", wikitext]
            parts.append("[[丙|丁]]如下所述，" + "".join(around[place * 4 : place * 4 + 4]) + "<ref name=a />")
        made.append("\n\n".join(parts) + "\n\n{{reflist}}\n[[Category:甲]]")
    return made


def letters(text: str) -> str:
    return "".join(char for char in text if char.isalnum())


def outcomes(found: dict[int, str], rows: list[dict[str, str | None]]) -> dict[str, int]:
    """How many sentences are whole, dropped, or have a hole or remains of markup."""
    counts = dict.fromkeys(("whole", "dropped", "holes", "remains"), 0)
    for number, row in enumerate(rows, start=1):
        said, wanted = letters(found.get(number, "")), letters(row["text"] or "")
        if not said:
            counts["dropped"] += 1
        elif said == wanted:
            counts["whole"] += 1
        else:
            rest = iter(said)
            complete = bool(wanted) and all(char in rest for char in wanted)  # every letter, in the same order
            counts["remains" if complete else "holes"] += 1
    return counts


def measure(command: list[str], output: Path) -> float:
    """Run a command with its standard output in a file. Returns CPU seconds, of its children too; -1 if it failed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with output.open("wb") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, cwd=REPOSITORY)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        print(done.stderr.decode(errors="replace")[-1000:], file=sys.stderr)
        return -1.0
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def tools(python: str | None, modules: Path | None, folder: Path) -> dict[str, list[str] | None]:
    """The command of each tool, DUMP and OUTPUT to be filled in; None if it is not installed."""
    alone = [sys.executable, "-m", "wikiextractor.WikiExtractor", "--json", "--quiet", "--processes", "1", "-o", "-"]
    found: dict[str, list[str] | None] = {
        "this project": [
            sys.executable, "-m", "preprocess.wiki.extract", "--dump", "DUMP", "--output", str(folder / "own.jsonl"),
        ],
        "WikiExtractor, no templates": [*alone, "--no-templates", "DUMP"],
        "WikiExtractor, its templates": [*alone, "DUMP"],
    }  # fmt: skip
    for name, program in (("mwparserfromhell", MWPARSERFROMHELL), ("wikitextprocessor", WIKITEXTPROCESSOR)):
        there = python and not subprocess.run([python, "-c", f"import {name}"], capture_output=True).returncode
        found[name] = [python, "-c", program, "DUMP"] if python and there else None
    script = folder / "wtf.mjs"
    script.write_text(WTF_WIKIPEDIA, encoding="utf-8")
    installed = modules and (modules / "wtf_wikipedia").is_dir()
    found["wtf_wikipedia"] = ["node", str(script), "DUMP", str(modules)] if installed else None
    return found


def number_of(row: dict[str, str]) -> int:
    return int(str(row["id"]).removeprefix("zhwiki-"))


def report(lines: list[str], command: str, seconds: float, sentences: int) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    said = ["# Tools that turn wikitext into text", ""]
    said += [f"`{command}`, {seconds:.0f} s, commit {commit.stdout.strip()}.", ""]
    said += [f"{describe('wikiextractor')}.", ""]
    said += [" ".join(part.split()) for part in (__doc__ or "").split("\n\n")[2:3]] + [""]
    said += [" ".join(part.split()) for part in (__doc__ or "").split("\n\n")[3:4]] + [""]
    said += [f"| tool, {sentences} sentences | whole | dropped | holes | remains of markup | MB a CPU second |"]
    said += ["|---|---|---|---|---|---|", *lines]
    return "\n".join(said) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="Python of an environment with mwparserfromhell and wikitextprocessor")
    parser.add_argument("--node-modules", type=Path, help="a folder node_modules with wtf_wikipedia")
    parser.add_argument("--repeats", type=int, default=200, help="times the set is repeated to measure speed")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks" / "wiki_tools.md")
    arguments = parser.parse_args()
    started = time.perf_counter()
    rows = [json.loads(line) for line in SENTENCES.open(encoding="utf-8")]
    sentences = [row["wikitext"] for row in rows]
    long = articles(rows) * arguments.repeats
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_dump(folder / "set.xml", sentences)
        megabytes = write_dump(folder / "long.xml", long)
        for name, command in tools(arguments.python, arguments.node_modules, folder).items():
            if command is None:
                lines.append(f"| {name} | not installed | – | – | – | – |")
                continue
            output = folder / "out.jsonl"
            filled = [str(folder / "set.xml") if part == "DUMP" else part for part in command]
            failed = measure(filled, output) < 0
            read = folder / "own.jsonl" if name == "this project" else output
            found = {} if failed else {number_of(row): row["text"] for row in read_jsonl(read)}
            seconds = measure([str(folder / "long.xml") if part == "DUMP" else part for part in command], output)
            counts = outcomes(found, rows)
            speed = "failed" if failed or seconds < 0 else f"{megabytes / seconds:.2f}"
            lines.append(f"| {name} | {' | '.join(str(count) for count in counts.values())} | {speed} |")
            print(lines[-1], flush=True)
    command_line = "python -m benchmarks.wiki_tools --python … --node-modules …"
    write_text(arguments.output, report(lines, command_line, time.perf_counter() - started, len(rows)))


if __name__ == "__main__":
    run_main(main)
