"""Tokenize documents into a Megatron indexed dataset: `PREFIX.bin` (token ids) and `PREFIX.idx` (where each lies).

    python -m preprocess.binning --input F.jsonl.zst --tokenizer tokenizer --output-prefix dataset/poems-train

Each non-empty document ends with the end-of-text id. A literal special token in the text is not one: it is encoded
as ordinary characters, so that a web page cannot end a document. The files are byte-identical to what Megatron-LM's
`tools/preprocess_data.py --append-eod` writes for text without such literals (format: `megatron/core/datasets/
indexed_dataset.py`): ids are uint16 below 65,500 entries, else int32; an empty document adds no sequence but
repeats the document index.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import atomic_file, read_jsonl
from artifacts.stage import report_metrics
from preprocess.tokenizer import END_OF_TEXT

BATCH = 4096
MAGIC = b"MMIDIDX\x00\x00"
UINT16_LIMIT = 65_500  # megatron.core.datasets.indexed_dataset.DType.optimal_dtype
DTYPE_CODES = {"uint16": 8, "int32": 4}


def load_tokenizer(folder: Path) -> Any:
    """The folder's `tokenizers.Tokenizer`, reading special tokens in text as ordinary characters."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(f"{path} does not exist: train a tokenizer first (`python -m preprocess.tokenizer`)")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(texts: Iterator[str], tokenizer: Any, dtype: str) -> Iterator[tuple[Any, Any]]:
    """Batches of (flat ids with end-of-text after each non-empty document, lengths [documents])."""
    import numpy as np

    end = tokenizer.token_to_id(END_OF_TEXT)
    if end is None:
        raise UserError(f"the tokenizer has no {END_OF_TEXT}: documents could not be told apart")
    while batch := list(islice(texts, BATCH)):
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(batch)]
        lengths = np.fromiter((len(document) for document in ids), dtype=np.int64, count=len(ids))
        flat = np.fromiter((i for document in ids for i in document), dtype=dtype, count=int(lengths.sum()))
        filled = lengths > 0
        yield np.insert(flat, np.cumsum(lengths)[filled], end).astype(dtype), lengths + filled


def write_index(path: Path, dtype: str, lengths: Any) -> None:
    """Write the `.idx` for documents of these lengths (in ids, end-of-text included; 0 for an empty one)."""
    import numpy as np

    filled = lengths > 0
    sequences = lengths[filled].astype(np.int32)
    pointers: Any = np.zeros(len(sequences), np.int64)
    np.cumsum(sequences[:-1].astype(np.int64) * np.dtype(dtype).itemsize, out=pointers[1:])
    documents = np.concatenate([[0], np.cumsum(filled)]).astype(np.int64)
    with path.open("wb") as stream:
        stream.write(MAGIC + struct.pack("<QBQQ", 1, DTYPE_CODES[dtype], len(sequences), len(documents)))
        for array in (sequences, pointers, documents):
            stream.write(array.tobytes())


def write_dataset(texts: Iterator[str], tokenizer: Any, prefix: Path) -> tuple[int, int]:
    """Write `prefix`.bin and .idx, whole or not at all; returns (documents, tokens)."""
    import numpy as np

    dtype = "uint16" if tokenizer.get_vocab_size() < UINT16_LIMIT else "int32"
    lengths = []
    with atomic_file(prefix.with_name(prefix.name + ".idx")) as index:
        with atomic_file(prefix.with_name(prefix.name + ".bin")) as binary:
            with binary.open("wb") as stream:
                for flat, batch_lengths in encode(texts, tokenizer, dtype):
                    stream.write(flat.tobytes())
                    lengths.append(batch_lengths)
            if not lengths:
                raise UserError("no document to bin: the input is empty")
            every = np.concatenate(lengths)
            write_index(index, dtype, every)
    return len(every), int(every.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, action="append", required=True, help="JSONL with `text`; may be repeated")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--output-prefix", type=Path, required=True, help="of the .bin and .idx files")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.tokenizer)
    texts = (row["text"] for path in arguments.input for row in read_jsonl(path))
    documents, tokens = write_dataset(texts, tokenizer, arguments.output_prefix)
    print(f"{arguments.output_prefix}: {documents:,} documents, {tokens:,} tokens")
    report_metrics(**{arguments.output_prefix.name: {"documents": documents, "tokens": tokens}})


if __name__ == "__main__":
    run_main(main)
