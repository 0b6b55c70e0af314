"""Measure the bits per byte of a model on held-out text, for each source. Lower is better.

    myllm bits-per-byte runs/mine/models/base --text wiki=runs/mine/corpus/wiki/test.jsonl.zst
    myllm bits-per-byte runs/a/models/base runs/b/models/base --text wiki=wiki.jsonl --documents 500
    myllm bits-per-byte runs/mine/models/base --sources runs/mine/dataset      # each source of `binning --sources`

Perplexity per token depends on the tokenizer. Bits per byte do not: they are the nats over all tokens of a document,
divided by ln 2 and by its bytes in UTF-8. The first token is predicted after the token that separates documents in
training. A document longer than the model's context is read in windows that overlap by half, so that every token is
predicted once, with at least half a context before it. The model runs in float32. The 95 % interval is over documents.
Writes `bits_per_byte.json`: [{"model", "source", "bits_per_byte", "low", "high", "documents", "bytes", "tokens",
"bytes_per_token", "text": sha256 of the texts, "per_document": [[nats, bytes], ...]}].
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import numbered_rows, read_json, write_json
from artifacts.stage import report_metrics, track
from artifacts.statistics import ratio_interval
from launch.scoring.models import batch_of, read_model, split_name

HELD_OUT = "-test.jsonl.zst"
SEPARATOR = "<|endoftext|>"  # between documents, in this project's binning and in Qwen2's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="+", metavar="MODEL", help="a model folder or NAME=FOLDER")
    parser.add_argument(
        "--text", action="append", default=[], metavar="SOURCE=FILE", help='JSON lines with "text"; repeatable'
    )
    parser.add_argument(
        "--sources", type=Path, metavar="FOLDER", help="the held-out text of every source: `myllm binning --sources`"
    )
    parser.add_argument(
        "--documents", type=int, default=1000, help="read the first N documents of each source (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="folder for the results (default: eval/ of the model's run)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")


def windows(length: int, context: int) -> Iterator[tuple[int, int, int]]:
    """Windows (start, end, first scored token) over `length` tokens; each token but the first is scored once."""
    start, scored = 0, 1
    while scored < length:
        end = min(length, start + context)
        yield start, end, scored
        scored = end
        start = max(0, min(end - context // 2, length - 1))


def separator_of(tokenizer: Any, folder: str) -> int:
    """The id of the token to put before a document. Raises UserError if the tokenizer has none."""
    vocabulary = tokenizer.get_vocab()
    found = vocabulary.get(SEPARATOR, tokenizer.bos_token_id)
    found = tokenizer.eos_token_id if found is None else found
    if found is None:
        raise UserError(f"{folder}: the tokenizer has no {SEPARATOR}, begin or end token to put before a document")
    return int(found)


def nats_of(model: Any, rows: list[list[int]], context: int, batch: int, device: str) -> list[float]:
    """Summed loss in nats of each row of ids, without its first id; windows are processed in batches."""
    import torch
    import torch.nn.functional as F

    pieces = [(number, *window) for number, row in enumerate(rows) for window in windows(len(row), context)]
    pieces.sort(key=lambda piece: piece[2] - piece[1])
    sums = [0.0] * len(rows)
    groups = [pieces[at : at + batch] for at in range(0, len(pieces), batch)]
    for group in track(groups, len(groups), "batches"):
        width = max(end - start for _, start, end, _ in group)
        ids = torch.zeros(len(group), width, dtype=torch.long)
        mask = torch.zeros(len(group), width, dtype=torch.long)
        counts = torch.zeros(len(group), width - 1, dtype=torch.bool)
        for place, (number, start, end, scored) in enumerate(group):
            ids[place, : end - start] = torch.tensor(rows[number][start:end])
            mask[place, : end - start] = 1
            counts[place, scored - start - 1 : end - start - 1] = True
        with torch.inference_mode():
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, :-1].float()
            losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten().to(device), reduction="none")
        losses = losses.view(counts.shape).cpu().double() * counts
        for (number, *_), loss in zip(group, losses.sum(1).tolist(), strict=True):
            sums[number] += loss
    return sums


def measure(name: str, folder: Path, sources: dict[str, list[str]], device: str) -> list[dict[str, Any]]:
    """The result rows of one model. Raises UserError if the folder is not a model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = read_model(name, folder, "plain")
    tokenizer: Any = AutoTokenizer.from_pretrained(found.place)
    model: Any = AutoModelForCausalLM.from_pretrained(found.place, dtype=torch.float32).eval().to(device)
    before = separator_of(tokenizer, found.place)
    rows = []
    for source, texts in sources.items():
        ids = [[before, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
        started = time.monotonic()
        nats = nats_of(model, ids, found.positions, batch_of([found]), device)
        sizes = [len(text.encode()) for text in texts]
        bits = [value / math.log(2) for value in nats]
        value, low, high = ratio_interval(bits, [float(size) for size in sizes])
        if not math.isfinite(value):
            raise UserError(f"{found.place} has a NaN or infinite loss on {source}: check its weights")
        tokens = sum(len(row) - 1 for row in ids)
        rows.append(
            {
                "model": name,
                "identity": found.identity,
                "source": source,
                "bits_per_byte": round(value, 4),
                "low": round(low, 4),
                "high": round(high, 4),
                "documents": len(texts),
                "bytes": sum(sizes),
                "tokens": tokens,
                "bytes_per_token": round(sum(sizes) / tokens, 3),
                "text": hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12],
                "seconds": round(time.monotonic() - started, 1),
                "per_document": [[round(value, 3), size] for value, size in zip(nats, sizes, strict=True)],
            }
        )
    return rows


def held_out(folder: Path | None) -> list[str]:
    """SOURCE=FILE for the held-out text of every source in a folder of datasets. Raises UserError if there is none."""
    if folder is None:
        return []
    found = [f"{file.name.removesuffix(HELD_OUT)}={file}" for file in sorted(folder.glob(f"*{HELD_OUT}"))]
    if not found:
        raise UserError(f"{folder} has no *{HELD_OUT}: make the datasets with `myllm binning --sources`")
    return found


def read_sources(named: list[str], limit: int) -> dict[str, list[str]]:
    """The first `limit` documents of every SOURCE=FILE. Raises UserError if a file or a row has no text."""
    sources = {}
    for text in named:
        name, equals, path = text.partition("=")
        if not equals or not name:
            raise UserError(f"--text {text} must be SOURCE=FILE, for example wiki=corpus/wiki/test.jsonl.zst")
        found = []
        for number, row in islice(numbered_rows(path), limit):
            if not isinstance(row.get("text"), str) or not row["text"]:
                raise UserError(f"{path}, line {number}: `text` is missing or empty: correct or remove the line")
            found.append(row["text"])
        if not found:
            raise UserError(f"{path} has no documents: give another file with --text {name}=FILE")
        sources[name] = found
    if not sources:
        raise UserError("no text to measure on: give --text SOURCE=FILE, or --sources FOLDER")
    return sources


def look_ahead(arguments: argparse.Namespace, ahead: Ahead) -> None:
    ahead.needs(gpus=float(arguments.device.startswith("cuda")))
    for text in arguments.model:
        ahead.wants(split_name(text)[1], "an earlier stage must make this model; check the path")
    if arguments.sources:
        ahead.wants(arguments.sources)
    for text in arguments.text:
        ahead.wants(text.partition("=")[2], "an earlier stage must make this text; check the path")


def run(arguments: argparse.Namespace) -> int:
    named = [split_name(text) for text in arguments.model]
    if arguments.documents < 1:
        raise UserError(f"--documents {arguments.documents}: it must be at least 1")
    home = Path(named[0][1]).resolve().parent
    if arguments.output is None and home.name != "models":
        raise UserError("give --output FOLDER: the model is not in the models/ folder of a run")
    output = arguments.output or home.parent / "eval"
    sources = read_sources([*arguments.text, *held_out(arguments.sources)], arguments.documents)
    rows = [row for name, place in named for row in measure(name, Path(place), sources, arguments.device)]
    file = output / "bits_per_byte.json"
    new = {(row["model"], row["source"]) for row in rows}
    known = read_json(file) if file.exists() else []
    write_json(file, [*(row for row in known if (row["model"], row["source"]) not in new), *rows])
    print(f"{'model':10} {'source':16} {'bits/byte':>9} {'95 % interval':>17} {'documents':>9} {'bytes/token':>11}")
    for row in rows:
        interval = f"{row['low']:.4f} - {row['high']:.4f}"
        print(
            f"{row['model']:10} {row['source']:16} {row['bits_per_byte']:9.4f} {interval:>17} {row['documents']:9,} "
            f"{row['bytes_per_token']:11.3f}"
        )
    report_metrics(**{f"{row['model']}_{row['source']}_bits_per_byte": row["bits_per_byte"] for row in rows})
    return 0


if __name__ == "__main__":
    main(__name__)
