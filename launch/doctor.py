"""Look at this machine: what is wrong with it for this project, and the command that mends it.

    myllm doctor                       # or, before there is an environment: make doctor, python3 -m launch.doctor
    myllm doctor --offline             # do not try the network
    myllm doctor --report              # Markdown for a bug report, without names of people and machines
    myllm doctor --json                # the same for a program

Each line begins with its state: `ok`, `info` (nothing to mend), `warn` (something will not work, or works slowly) or
`FAULT` (the pipelines cannot run). A line `->` names what mends it. The exit code is 2 if there is a fault.

It changes nothing and needs only Python's standard library. `launch/doctor_checks/` holds the checks.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import platform
import re
import sys
from dataclasses import replace
from functools import partial

from artifacts.command import main
from artifacts.layout import REPOSITORY
from launch.doctor_checks import CHECKS
from launch.doctor_checks.base import FAULT, WARN, Check, Finding, at_once
from launch.doctor_checks.network import network

PATIENCE = 40.0  # seconds for a check; a program has 10 and an address 5, so only a file system that hangs takes longer
SECRET_SETTING = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.I)
USUAL_NAMES = {"root", "user", "ubuntu", "admin", "runner", "docker", "jovyan", "localhost"}  # they name nobody


def guarded(check: Check) -> list[Finding]:
    """The findings of a check. If the check itself fails, the last finding says so."""
    found: list[Finding] = []
    try:
        for finding in check.look():
            found.append(finding)
    except Exception as error:  # nothing about a strange machine may stop the other checks
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        found.append(Finding(check.name, WARN, f"could not check: {reason}"))
    return [replace(finding, group=check.group) for finding in found]


def examine(checks: tuple[Check, ...], patience: float = PATIENCE) -> list[Finding]:
    """The findings of all checks, in their order. The checks run at once."""
    found: list[Finding] = []
    for check, answer in zip(checks, at_once([partial(guarded, check) for check in checks], patience)):
        late = f"could not check: no answer in {patience:.0f} s; does a file system or a driver hang?"
        found += [Finding(check.name, WARN, late, group=check.group)] if answer is None else answer
    return found


def without_secrets(text: str) -> str:
    """The text without credentials: those in addresses, tokens, and the values of settings whose names say so."""
    for name, value in os.environ.items():
        if SECRET_SETTING.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    text = re.sub(r"(\b[\w+.-]+://)[^/\s'\"]*@", r"\1***@", text)
    return re.sub(r"\b(hf_|ghp_|github_pat_|sk-|glpat-|npm_)\w{8,}", r"\1***", text)


def without_names(text: str) -> str:
    """The text without the repository's place, the home folder, the user's name and the machine's."""
    text = text.replace(str(REPOSITORY), "REPOSITORY")
    home = os.path.expanduser("~")
    if len(home) > 1:
        text = re.sub(re.escape(home) + r"(?![\w.-])", "~", text)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no entry
        user = ""
    host = platform.node()
    for name, shown in ((host, "HOST"), (host.partition(".")[0], "HOST"), (user, "USER")):
        if len(name) > 1 and name not in USUAL_NAMES:
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", shown, text)
    return text


def publishable(finding: Finding) -> Finding:
    """The finding as a bug report may show it."""
    found, mend = finding.found, finding.mend
    for word in sorted(finding.private, key=len, reverse=True):
        found, mend = found.replace(word, "(hidden)"), mend.replace(word, "(hidden)")
    return replace(finding, found=without_names(found), mend=without_names(mend), private=())


def count(found: list[Finding]) -> tuple[int, int]:
    faults, warnings = (sum(finding.state == state for finding in found) for state in (FAULT, WARN))
    return faults, warnings


def summary(found: list[Finding]) -> str:
    faults, warnings = count(found)
    return f"{faults} fault{'s' * (faults != 1)}, {warnings} warning{'s' * (warnings != 1)}"


def table(found: list[Finding]) -> str:
    """One line a finding, under the name of its group; what mends it stands below it."""
    width = min(20, max((len(finding.name) for finding in found), default=0))
    lines: list[str] = []
    group = ""
    for finding in found:
        if finding.group != group:
            group = finding.group
            lines.append(group)
        sign = finding.state.upper() if finding.state == FAULT else finding.state
        lines.append(f"  {sign:<5}  {finding.name:<{width}}  {' '.join(finding.found.split())}".rstrip())
        if finding.mend:
            lines.append(f"  {'':<5}  {'':<{width}}  -> {finding.mend}")
    return "\n".join([*lines, summary(found)])


def as_json(found: list[Finding]) -> str:
    faults, warnings = count(found)
    rows = [{key: getattr(finding, key) for key in ("group", "name", "state", "found", "mend")} for finding in found]
    return json.dumps({"faults": faults, "warnings": warnings, "findings": rows}, indent=2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--offline", action="store_true", help="do not try the network")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--report", action="store_true", help="print a Markdown block for a bug report")


def run(arguments: argparse.Namespace) -> int:
    found = examine(tuple(check for check in CHECKS if not (arguments.offline and check.look is network)))
    found = [replace(one, found=without_secrets(one.found), mend=without_secrets(one.mend)) for one in found]
    if arguments.json:
        text = as_json(found)
    elif arguments.report:
        text = "```text\nmyllm doctor\n" + table([publishable(one) for one in found]).replace("```", "'''") + "\n```"
    else:
        text = table(found)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a folder's name may not fit the terminal's encoding
    print(text, flush=True)
    return 2 if count(found)[0] else 0


if __name__ == "__main__":
    main(__name__)
