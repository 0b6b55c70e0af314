"""Read the settings of a cluster from `site/<name>.sh`, a plain bash file that the jobs source too."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import UserError, nearest
from artifacts.layout import REPOSITORY
from launch.pipeline.definition import PIPELINES

SITES = REPOSITORY / "site"
EVERY = "all"  # the entry of OPTIONS for every job
PLACEHOLDER = "CHANGE_ME"
OURS = (
    "--nodes",
    "--job-name",
    "--output",
    "--chdir",
    "--dependency",
    "--kill-on-invalid-dep",
)  # set by `myllm submit`
READ = """
set -e
source "$1"
env -0
printf 'OPTIONS\\0'
if declare -p OPTIONS >/dev/null 2>&1; then
  for name in "${!OPTIONS[@]}"; do printf '%s=%s\\0' "$name" "${OPTIONS[$name]}"; done
fi
"""


@dataclass(frozen=True)
class Site:
    """A site file: the environment that it sets, and sbatch's options by stage."""

    name: str
    path: Path
    environment: dict[str, str]
    options: dict[str, list[str]]

    def options_of(self, stage: str) -> list[str]:
        """sbatch's options for a stage: those for every job, then its own."""
        return [*self.options.get(EVERY, []), *self.options.get(stage, [])]

    @property
    def may_requeue(self) -> bool:
        return not self.environment.get("SBATCH_NO_REQUEUE")

    @property
    def restarts(self) -> int:
        """How often a training may resume in another job.

        Raises:
            UserError: MYLLM_RESTARTS is not a whole number.
        """
        text = self.environment.get("MYLLM_RESTARTS", "10")
        if not text.isdigit():
            raise UserError(f"{self.path}: MYLLM_RESTARTS is {text!r}; write a whole number, e.g. 10")
        return int(text)


def stages_known() -> set[str]:
    """Names of the stages of all pipelines: the valid keys of OPTIONS beside `all`."""
    from artifacts.files import read_yaml

    return {stage for file in PIPELINES.glob("*.yaml") for stage in read_yaml(file)["stages"]}


def read_site(name: str) -> Site:
    """Read and check `site/<name>.sh`; a name that ends in `.sh` is the path of the file.

    Raises:
        UserError: the file is missing, is not valid bash, still holds a placeholder, or its OPTIONS are not valid.
    """
    path = Path(name).resolve() if name.endswith(".sh") else SITES / f"{name}.sh"
    where = f"site/{path.name}" if path.parent == SITES else str(path)
    if not path.exists():
        known = sorted(p.stem for p in SITES.glob("*.sh"))
        mend = f"for your cluster, copy site/template.sh to {where} and fill it in"
        raise UserError(f"there is no site {name!r}{nearest(name, known)}; site/ holds {', '.join(known)}; {mend}")
    done = subprocess.run(["bash", "-c", READ, "bash", str(path)], capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"bash cannot read {where}: {reason.replace(str(path), where)}")
    parts = done.stdout.split("\0")
    cut = parts.index("OPTIONS")
    environment = dict(part.split("=", 1) for part in parts[:cut] if "=" in part)
    options = {key: shlex.split(value) for key, _, value in (part.partition("=") for part in parts[cut + 1 :] if part)}
    left = [key for key, value in environment.items() if PLACEHOLDER in value and key.startswith(("SBATCH_", "MYLLM_"))]
    left += [f"OPTIONS[{key}]" for key, value in options.items() if any(PLACEHOLDER in word for word in value)]
    if left:
        raise UserError(f"{where}: {', '.join(left)} still says {PLACEHOLDER}: fill it in, or remove the line")
    known_stages = {EVERY, *stages_known()}
    for key, words in options.items():
        if key not in known_stages:
            raise UserError(f"{where}: OPTIONS[{key}]: no pipeline has this stage{nearest(key, known_stages)}")
        for word in words:
            if word.partition("=")[0] in OURS:
                raise UserError(
                    f"{where}: OPTIONS[{key}] sets {word.partition('=')[0]}, which myllm submit sets itself: remove it "
                    "(the number of nodes is nnodes in the hardware recipe)"
                )
    signal = environment.get("SBATCH_SIGNAL", "B:USR1@300")
    if not re.fullmatch(r"B:(SIG)?USR1@\d+", signal):
        raise UserError(f"{where}: SBATCH_SIGNAL is {signal!r}; write B:USR1@SECONDS, which the job script handles")
    return Site(name, path, environment, options)
