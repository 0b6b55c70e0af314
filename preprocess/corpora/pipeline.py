"""Turn raw source files into clean, deduplicated shards with one datatrove pipeline, one task per shard.

    myllm corpora --source c4_zh --output-folder corpus/c4_zh --tasks 8     # the downloaded files
    myllm corpora --source jsonl --input 'mine/*.jsonl.gz' --output-folder corpus/mine --tasks 8
    myllm corpora --source ultra-fineweb-zh --keep 'score>=0.8' --output-folder corpus/ultra
    myllm corpora --source zhwiki baidu-baike c4-zh --input zhwiki=zhwiki.jsonl.zst --evaluation ceval cmmlu \\
        --output-folder corpus/clean --tasks 64 --workers 16                # near duplicates across the sources too
    myllm corpora --source wudao --input WuDaoCorpus2.0_base_200G --output-folder corpus/wudao \\
        --executor slurm --partition cpu --tasks 512 --workers 128

    prepare      for each source: read -> [keep] -> normalise -> simplify -> mask -> quality -> [quality-model]
                 -> [decontaminate] -> sign -> write
    match        find documents that share a key (whole text, id, or a MinHash band), one task per kind of key
    collect      collect the 5-grams of candidates
    deduplicate  verify candidates, and write the final shards

Of documents that repeat each other, the first is kept, so name the best source first.

Output folder: `shards/TASK.jsonl.zst`, or `shards/SOURCE/TASK.jsonl.zst` for several sources, is the result;
`dropped/STEP/` has the dropped documents with the reason; `data_card.md` reports every step; `reports/`, `logs/`,
`settings.json` belong to the run; `work/` can be deleted afterwards. The same inputs and number of tasks give the same
bytes, for any executor and after any interruption: a task's files are renamed when complete, then datatrove marks it
done, and a rerun does only the missing tasks.

Inputs are fsspec paths. All tasks must see the output folder (a local disk, or a cluster's shared file system).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub

# datatrove 0.10.1's readers and writers import three names that this environment's huggingface_hub, pinned by
# transformers 4.57, does not have yet. They are used only for Hugging Face buckets; as None, they let datatrove load.
for _name in ("batch_bucket_files", "create_bucket", "list_bucket_tree"):
    if not hasattr(huggingface_hub, _name):
        setattr(huggingface_hub, _name, None)

from artifacts.ahead import Ahead  # noqa: E402
from artifacts.command import main  # noqa: E402
from artifacts.errors import UserError  # noqa: E402
from artifacts.files import only_maker, read_json, sha256, write_json  # noqa: E402
from artifacts.layout import REPOSITORY  # noqa: E402
from artifacts.processes import die_with_parent  # noqa: E402
from artifacts.stage import report_gate, report_metrics  # noqa: E402
from preprocess.cleaning import quality_model  # noqa: E402
from preprocess.cleaning.clean import thresholds_of  # noqa: E402
from preprocess.cleaning.privacy import mask_rows  # noqa: E402
from preprocess.cleaning.quality import judge_rows, normalise_rows  # noqa: E402
from preprocess.cleaning.simplify import CONFIGS, Phrases, read_phrases, simplify_rows  # noqa: E402
from preprocess.corpora.blocks import (  # noqa: E402
    Block,
    Change,
    Collect,
    Deduplicate,
    Drop,
    Keep,
    Match,
    Read,
    Sign,
    Write,
)  # fmt: skip
from preprocess.corpora.data_card import write_card  # noqa: E402
from preprocess.corpora.source import Source, entry_of, make_source, option_by_source  # noqa: E402
from preprocess.deduplication import decontaminate, minhash  # noqa: E402
from preprocess.deduplication.decontaminate import place_of_set  # noqa: E402
from preprocess.sources.download import source_file  # noqa: E402
from preprocess.sources.read import find_files, plan  # noqa: E402
from preprocess.sources.shapes import SHAPES  # noqa: E402


@dataclass(frozen=True)
class Settings:
    """All settings that the result depends on, besides the input files."""

    sources: tuple[Source, ...]
    tasks: int  # for each source
    phrases: Phrases = ()  # the user's, for the simplification
    mask: bool = True
    quality: list[str] | None = None  # NAME=VALUE pairs; None leaves the quality filter out
    quality_model: str | None = None  # a folder of `myllm quality train`
    keep_quality: float | None = None  # the least score of that model; None keeps every document
    evaluation: tuple[str, ...] = ()  # names of sets, or paths
    deduplicate: bool = True
    max_bad_share: float = 0.01
    max_record: int = 16 << 20  # bytes
    memory: int = 1 << 30  # bytes of memory for a matching task


Files = dict[str, list[tuple[str, int]]]  # the files of each source, with their sizes in bytes


def shards_of(settings: Settings, folder: Path) -> list[Path]:
    """The shards of all tasks under `folder`: those of several sources lie in a folder each."""
    alone = len(settings.sources) == 1
    homes = [folder if alone else folder / source.name for source in settings.sources]
    return [home / f"{task:05d}.jsonl.zst" for home in homes for task in range(settings.tasks)]


def prepare_blocks(settings: Settings, files: Files, folder: Path, source: Source) -> list[Block]:
    """The blocks of the first stage for one source; each is a step of the data card.

    Their functions must come from other modules: this one runs as `__main__`, so its functions cannot be pickled for
    Slurm.
    """
    s = settings
    first = s.sources.index(source) * s.tasks
    pieces = plan(files[source.name], s.tasks)
    blocks: list[Block] = [
        Read(
            folder, pieces, source.name, source.reader, source.text_key, s.max_bad_share, s.max_record, first,
            keeps_place=s.deduplicate,
        ),
    ]
    if any(every.keep or every.score for every in s.sources):  # for each source, so that the card has all of them
        blocks.append(Keep(folder, source.name, source.keep, source.score, first))
    blocks.append(Change("normalise", folder, normalise_rows, first))
    if source.simplify != "none":
        change = partial(simplify_rows, config=source.simplify, phrases=s.phrases)
        blocks.append(Change("simplify", folder, change, first))
    if s.mask:
        blocks.append(Change("mask", folder, mask_rows, first))
    if s.quality is not None:
        blocks.append(Drop("quality", folder, partial(judge_rows, thresholds=thresholds_of(s.quality)), first))
    if s.quality_model is not None:
        rate = partial(quality_model.judge_rows, folder=s.quality_model, keep=s.keep_quality)
        blocks.append(Drop("quality-model", folder, rate, first))
    if s.evaluation:
        judge = partial(decontaminate.judge, sets=s.evaluation)
        blocks.append(Drop("decontaminate", folder, judge, first))
    if s.deduplicate:
        blocks.append(Sign(folder, folder / "work", source.name, first))
    targets = shards_of(s, folder / ("work/documents" if s.deduplicate else "shards"))
    blocks.append(Write(folder, targets, first))
    return blocks


def stages(settings: Settings, files: Files, folder: Path) -> list[tuple[str, int, list[Block]]]:
    """The (name, number of tasks, blocks) of every stage, in order."""
    s, found = settings, []
    for source in s.sources:
        name = "prepare" if len(s.sources) == 1 else f"prepare-{source.name}"
        found.append((name, s.tasks, prepare_blocks(s, files, folder, source)))
    if s.deduplicate:
        work, every = folder / "work", s.tasks * len(s.sources)
        documents, shards = shards_of(s, work / "documents"), shards_of(s, folder / "shards")
        found += [
            ("match", minhash.KINDS, [Match(folder, work, s.memory)]),
            ("collect", every, [Collect(folder, work, documents)]),
            ("deduplicate", every, [Deduplicate(folder, work, documents, shards, [one.name for one in s.sources])]),
        ]
    return found


def claim(settings: Settings, files: Files, folder: Path) -> None:
    """Write `settings.json`. Raises UserError if the folder has a run with other settings or inputs."""
    steps: list[str] = []
    for source in settings.sources:
        steps += [b.name for b in prepare_blocks(settings, files, folder, source) if b.name not in steps]
    steps += ["deduplicate"] if settings.deduplicate else []
    found = decontaminate.files_of_sets(settings.evaluation)
    wanted = {
        **asdict(settings),
        "sources": [
            {**asdict(source), "inputs": list(source.inputs), "keep": list(source.keep)} for source in settings.sources
        ],
        "evaluation": {name: [sha256(path) for path in paths] for name, paths in found.items()},
        "quality_model": settings.quality_model and quality_model.fingerprint(Path(settings.quality_model)),
        "phrases": [list(pair) for pair in settings.phrases],
        "files": {name: [list(file) for file in of_source] for name, of_source in files.items()},
        "steps": steps,
        "thresholds": vars(thresholds_of(settings.quality or [])),
    }
    path = folder / "settings.json"
    if path.exists():
        known = read_json(path)
        changed = [key for key in wanted if known.get(key) != wanted[key]]
        if changed:
            raise UserError(f"{folder} has a run with other {', '.join(changed)}: delete it or use another folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)


def show_progress(folder: Path, name: str, tasks: int, ended: threading.Event) -> None:
    shown = -1
    while not ended.wait(1.0):
        done = len(list((folder / "logs" / name / "completions").glob("*")))
        if done != shown:
            print(f"progress {done}/{tasks} tasks of {name}", flush=True)
            shown = done


def _manager() -> Any:
    from multiprocess.managers import SyncManager

    manager = SyncManager()
    manager.start(initializer=die_with_parent)
    return manager


def run_local(settings: Settings, files: Files, folder: Path, workers: int) -> None:
    """Run every stage on this machine, in order. Raises the exception of the first task that fails."""
    import multiprocess
    from datatrove.executor import LocalPipelineExecutor

    # the executor's manager process must end with this one, or it would wait for ever
    multiprocess.Manager = _manager
    for name, tasks, blocks in stages(settings, files, folder):
        ended = threading.Event()
        threading.Thread(target=show_progress, args=(folder, name, tasks, ended), daemon=True).start()
        try:
            LocalPipelineExecutor(
                blocks,
                tasks=tasks,
                workers=min(workers, tasks),
                logging_dir=str(folder / "logs" / name),
                start_method="spawn",  # so that a worker's parent is this process, and it ends if this one is killed
            ).run()
        finally:
            ended.set()


def submit_slurm(settings: Settings, files: Files, folder: Path, workers: int, site: dict[str, Any]) -> None:
    """Submit every stage as a job array that depends on the previous stage."""
    from datatrove.executor import SlurmPipelineExecutor

    previous = None
    for name, tasks, blocks in stages(settings, files, folder):
        previous = SlurmPipelineExecutor(
            blocks,
            tasks=tasks,
            workers=workers,
            job_name=f"{'+'.join(source.name for source in settings.sources)}-{name}",
            logging_dir=str((folder / "logs" / name).resolve()),
            depends=previous,
            env_command=f"export PATH={Path(sys.prefix) / 'bin'}:$PATH",
            sbatch_args={"open-mode": "append", "kill-on-invalid-dep": "yes"},
            **site,
        )
    assert previous is not None
    previous.run()
    print(f"submitted; after the last job, run: myllm data-card --folder {folder}", flush=True)


def run_ray(settings: Settings, files: Files, folder: Path, workers: int, gigabytes: int) -> None:
    """Run every stage on Ray, in order: on the cluster at RAY_ADDRESS, else on this machine.

    Raises UserError if Ray is not installed, or with the error of a task that failed.
    """
    try:
        import ray
    except ImportError as error:
        mend = f"`uv pip install --python {sys.executable} ray`, or take another --executor"
        raise UserError(f"--executor ray needs the package ray ({error}): {mend}") from None
    from datatrove.executor import RayPipelineExecutor

    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    ray.init(runtime_env={"env_vars": {"PYTHONPATH": path}}, log_to_driver=False, include_dashboard=False)
    try:
        for name, tasks, blocks in stages(settings, files, folder):
            executor = RayPipelineExecutor(
                blocks,
                tasks=tasks,
                workers=min(workers, tasks),
                logging_dir=str(folder / "logs" / name),
                mem_per_cpu_gb=gigabytes,
            )
            executor.run()  # it does not raise what its tasks raise
            failed = executor.get_incomplete_ranks(range(tasks))
            if failed:
                log = folder / "logs" / name / "logs" / f"task_{failed[0]:05d}.log"
                text = log.read_text(encoding="utf-8") if log.exists() else ""
                told = re.findall(r"^artifacts\.errors\.UserError: (.+)$", text, re.MULTILINE)
                raise UserError(told[-1] if told else f"{len(failed)} tasks of {name} failed: read {log}")
            print(f"progress {tasks}/{tasks} tasks of {name}", flush=True)
    finally:
        ray.shutdown()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add: Callable[..., Any] = parser.add_argument
    add(
        "--source",
        nargs="+",
        required=True,
        metavar="SOURCE",
        help=f"name in sources.yaml, or format of the records: {', '.join(SHAPES)}, or MODULE.FUNCTION",
    )
    add(
        "--input",
        action="append",
        default=[],
        metavar="[SOURCE=]PATH",
        help="file, folder or glob, any fsspec path; repeatable (default: the download)",
    )
    add("--output-folder", type=Path, required=True)
    add("--text-key", help="with --source jsonl: the key that holds the text (default text)")
    add(
        "--keep",
        action="append",
        default=[],
        metavar="[SOURCE=]RULE",
        help="keep documents by a value of their metadata, e.g. 'score>=3'; repeatable",
    )
    add("--tasks", type=int, default=4, help="number of shards (default 4); the result depends on it")
    add("--workers", type=int, default=1, help="tasks run in parallel (default 1)")
    add("--simplify", choices=[*CONFIGS, "none"], help="OpenCC configuration (default: the source's)")
    add("--phrases", type=Path, metavar="FILE", help="your own phrases for the simplification, which win over OpenCC's")
    add("--no-mask", action="store_true", help="do not mask mail addresses, phone and identity numbers")
    add("--no-quality", action="store_true", help="skip the quality filter")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="threshold of preprocess.cleaning.quality")
    add("--quality-model", type=Path, metavar="FOLDER", help="score documents by a model of `myllm quality train`")
    add("--keep-quality", type=float, metavar="SCORE", help="drop documents that --quality-model scores below (0 to 1)")
    add(
        "--evaluation",
        nargs="+",
        action="extend",
        default=[],
        metavar="SET",
        help="evaluation set to decontaminate against: its name in sources.yaml, a file or a folder",
    )
    add("--no-deduplicate", action="store_true")
    add("--max-bad-share", type=float, default=0.01, help="stop above this share of unreadable records (default 0.01)")
    add("--max-record-megabytes", type=int, default=16, help="longer records are skipped and counted (default 16)")
    add("--memory-megabytes", type=int, default=1024, help="memory of a matching task (default 1024)")
    add("--licence", help="for the data card (default: from sources.yaml)")
    add("--executor", choices=("local", "slurm", "ray"), default="local",
        help="where the tasks run; ray: on the cluster at RAY_ADDRESS, else on this machine (needs the package ray)")
    add("--partition", default="cpu", help="Slurm partition (default cpu)")
    add("--time", default="20:00:00", help="Slurm time limit of a task (default 20:00:00)")
    add("--qos", default="", help="Slurm QOS")
    add("--mem-per-cpu-gb", type=int, default=2, help="memory per task, for Slurm and Ray (default 2)")


def look_ahead(a: argparse.Namespace, ahead: Ahead) -> None:
    inputs, keep = option_by_source(a.source, a.input), option_by_source(a.source, a.keep, "--keep", "RULE")
    thresholds_of(a.set)
    for name in a.source:
        make_source(name, inputs[name] or ["downloaded"], a.text_key, a.simplify, a.licence, keep[name])
        paths = [path for path in inputs[name] if not any(sign in path for sign in "*?[:")]
        known = entry_of(name)[0]
        for path in paths if inputs[name] or known is None else [source_file(known)]:
            ahead.wants(path, f"run `myllm download {known}`, or pass --input" if known else "check the path")
        ahead.makes(a.output_folder / "shards" / (name if len(a.source) > 1 else ""))
    if a.phrases:
        ahead.wants(a.phrases, "check --phrases")
    if a.quality_model:
        ahead.wants(a.quality_model, "make it with `myllm quality train`, or leave out --quality-model")
    for given in a.evaluation:
        ahead.wants(place_of_set(given), f"run `myllm download {given}`, or leave it out of --evaluation")
    ahead.makes(a.output_folder)


def run(a: argparse.Namespace) -> None:
    if a.tasks < 1 or a.workers < 1:
        raise UserError("--tasks and --workers must be 1 or more")
    if a.text_key and len(a.source) > 1:
        raise UserError("--text-key is for a single --source: write text_key into its entry of sources.yaml")
    if a.keep_quality is not None and (a.quality_model is None or not 0 <= a.keep_quality <= 1):
        raise UserError("--keep-quality takes a score from 0 to 1, and --quality-model FOLDER for the model")
    inputs, keep = option_by_source(a.source, a.input), option_by_source(a.source, a.keep, "--keep", "RULE")
    sources = [make_source(name, inputs[name], a.text_key, a.simplify, a.licence, keep[name]) for name in a.source]
    settings = Settings(
        sources=tuple(sources),
        tasks=a.tasks,
        phrases=read_phrases(a.phrases) if a.phrases else (),
        mask=not a.no_mask,
        quality=None if a.no_quality else a.set,
        quality_model=str(a.quality_model.resolve()) if a.quality_model else None,
        keep_quality=a.keep_quality,
        evaluation=tuple(a.evaluation),
        deduplicate=not a.no_deduplicate,
        max_bad_share=a.max_bad_share,
        max_record=a.max_record_megabytes << 20,
        memory=a.memory_megabytes << 20,
    )
    folder = a.output_folder.resolve()
    files = {source.name: find_files(source.inputs) for source in sources}
    if settings.evaluation:
        decontaminate.index_of(settings.evaluation)  # report a missing set now, not in every task
    with only_maker(folder):
        claim(settings, files, folder)
        if a.executor == "slurm":
            site = {"partition": a.partition, "time": a.time, "qos": a.qos, "mem_per_cpu_gb": a.mem_per_cpu_gb}
            submit_slurm(settings, files, folder, a.workers, site)
            return
        if a.executor == "ray":
            run_ray(settings, files, folder, a.workers, a.mem_per_cpu_gb)
        else:
            run_local(settings, files, folder, a.workers)
        card = write_card(folder)
    if settings.evaluation:
        dropped = card["steps"]["decontaminate"]["dropped"].total()
        sets = ", ".join(settings.evaluation)
        report_gate("decontamination", f"dropped the {dropped:,} documents that share text with {sets}")
    report_metrics(documents=card["documents"], characters=card["characters"], card=str(folder / "data_card.md"))


if __name__ == "__main__":
    main(__name__)
