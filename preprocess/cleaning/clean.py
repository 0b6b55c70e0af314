"""Drop low-quality documents, and write out the dropped ones with the reason.

    myllm clean --input F.jsonl.zst --output G.jsonl.zst --rules prose
    myllm clean --input F.jsonl.zst --output G.jsonl.zst --rules my_rules.keep

Dropped documents are written beside the output (`*.dropped.jsonl.zst`) with the reason, so that you can see the effect
of a threshold.

`--rules prose` is for running text of any kind: `preprocess.cleaning.quality` defines its rules and thresholds;
`--set min_characters=50` changes a threshold. `--rules MODULE.FUNCTION` calls your own function: it takes a document
{"id", "text", "metadata"}, may change it, and returns the reason for dropping it, or None to keep it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from artifacts.command import main
from artifacts.errors import UserError, nearest
from artifacts.files import write_jsonl
from artifacts.json_rows import dumped
from artifacts.plugs import load_function
from artifacts.stage import report_metrics
from preprocess.cleaning.quality import Thresholds, judge, normalise_rows
from preprocess.sources.documents import read_documents

Document = dict[str, Any]
Rule = Callable[[Document], str | None]  # the reason for dropping a document, or None to keep it

BATCH = 1024  # documents per call of the rules


def prose(document: Document, thresholds: Thresholds = Thresholds()) -> str | None:  # noqa: B008 (frozen)
    """Normalise one document of running text in place, and return the reason for dropping it, or None."""
    normalise_rows([document])
    return judge([document["text"]], thresholds)[0]


def thresholds_of(settings: list[str]) -> Thresholds:
    """Default thresholds, overridden by `name=value` pairs. Raises UserError for an unknown name or a bad value."""
    known = {field.name: type(field.default) for field in fields(Thresholds)}
    changed: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in known:
            raise UserError(
                f"--set {setting}: give NAME=VALUE with a known name{nearest(name, known)}; names: {', '.join(known)}"
            )
        try:
            changed[name] = float(value) if known[name] is float else int(value)
        except ValueError:
            kind = "a number" if known[name] is float else "an integer"
            raise UserError(f"--set {setting}: {name} must be {kind}") from None
    return replace(Thresholds(), **changed)


def clean(
    source: Path,
    rule: Rule | None,
    reasons: Counter[str],
    thresholds: Thresholds = Thresholds(),  # noqa: B008 (frozen)
) -> Iterator[tuple[Document, str | None]]:
    """Yield every document with the reason for dropping it, or None; counts the reasons in `reasons`.

    Without a rule, the rules for running text with `thresholds` decide.
    """
    documents = read_documents(source)
    while batch := list(islice(documents, BATCH)):
        if rule:
            found = [rule(document) for document in batch]
        else:
            normalise_rows(batch)
            found = judge([document["text"] for document in batch], thresholds)
        for document, reason in zip(batch, found):
            reasons[reason or "kept"] += 1
            yield document, reason


def dropped_path(output: Path) -> Path:
    name = output.name if ".jsonl" in output.name else f"{output.name}.jsonl"
    return output.with_name(name.replace(".jsonl", ".dropped.jsonl"))


def split_out(rows: Iterator[tuple[Document, str | None]], output: Path) -> None:
    """Write kept documents to `output` and dropped ones to `dropped_path(output)`, in one pass and constant memory."""
    import zstandard

    from artifacts.files import atomic_file

    with ExitStack() as stack:
        path = dropped_path(output)
        dropped: Any = stack.enter_context(stack.enter_context(atomic_file(path)).open("wb"))
        if path.suffix == ".zst":
            dropped = stack.enter_context(zstandard.ZstdCompressor(level=3).stream_writer(dropped))

        def kept() -> Iterator[Document]:
            for document, reason in rows:
                if reason is None:
                    yield document
                else:
                    dropped.write(dumped({**document, "dropped": reason}))

        write_jsonl(output, kept())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, required=True, help="documents: a .jsonl or .jsonl.zst file")
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl.zst file")
    parser.add_argument("--rules", metavar="prose|MODULE.FUNCTION", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a threshold of `prose`")


def run(arguments: argparse.Namespace) -> None:
    reasons: Counter[str] = Counter()
    thresholds = thresholds_of(arguments.set)
    rule = None if arguments.rules == "prose" else load_function(arguments.rules, "--rules")
    if rule and arguments.set:
        raise UserError(f"--set works only with `--rules prose`: leave it out with --rules {arguments.rules}")
    split_out(clean(arguments.input, rule, reasons, thresholds), arguments.output)
    report_metrics(documents_in=reasons.total(), documents=reasons.pop("kept", 0), dropped=dict(reasons))


if __name__ == "__main__":
    main(__name__)
