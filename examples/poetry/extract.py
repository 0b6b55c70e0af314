"""Extract the poems of the chinese-poetry package from its tarball, one document per poem.

    python -m examples.poetry.extract --output corpus/poems/extracted.jsonl.zst

Only `dist/quantangshi/poet.*.json` is read: about 312,000 shi poems of the Tang and Song dynasties. A document's text
is the poem's couplets, one per line; title, author and dynasty are metadata.
"""

from __future__ import annotations

import argparse
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import write_jsonl
from artifacts.stage import report_metrics, track
from preprocess.sources.download import source_file

POEM_FILE = re.compile(r"package/dist/quantangshi/poet\.(tang|song)\.(\d+)\.json$")
POEMS_EXPECTED = 311_855


def documents(tarball: Path, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield documents in the order of the tarball, at most `limit` (for tests and short runs).

    Raises UserError with the tarball and the member if either is damaged.
    """
    count = 0
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            for member in archive:
                match = POEM_FILE.search(member.name)
                if not match:
                    continue
                dynasty, start = match.groups()
                stream = archive.extractfile(member)
                assert stream is not None
                try:
                    poems = json.load(stream)
                except ValueError as error:
                    raise UserError(
                        f"{tarball}: {member.name} is not JSON ({error}): delete the tarball and download it again"
                    ) from None
                for position, poem in enumerate(poems):
                    if limit is not None and count >= limit:
                        return
                    count += 1
                    yield {
                        "id": f"{dynasty}-{int(start) + position:06d}",
                        "text": "\n".join(poem["paragraphs"]),
                        "metadata": {"title": poem["title"], "author": poem["author"], "dynasty": dynasty},
                    }
    except FileNotFoundError:
        raise UserError(f"{tarball} does not exist: run `myllm download chinese-poetry`") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{tarball} is not a complete tarball ({error}): delete it and download it again") from None
    if not count:
        raise UserError(
            f"{tarball} has no poems in dist/quantangshi: give the package of `myllm download chinese-poetry`"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tarball", type=Path, help="tarball to read (default: the downloaded one)")
    parser.add_argument("--output", type=Path, required=True, help=".jsonl or .jsonl.zst file to write")
    parser.add_argument("--limit", type=int, help="stop after this many poems")
    arguments = parser.parse_args()
    tarball = arguments.tarball or source_file("chinese-poetry")
    rows = track(documents(tarball, arguments.limit), arguments.limit or POEMS_EXPECTED, "poems")
    report_metrics(documents=write_jsonl(arguments.output, rows))


if __name__ == "__main__":
    run_main(main)
