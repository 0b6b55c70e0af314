"""The checks of `myllm doctor`. Each is a function that yields findings; CHECKS lists them in the order of printing.

They read files and ask programs; they install and change nothing. They import only the standard library and
`artifacts.layout`, since they run before any environment exists. A check may raise: `launch.doctor` turns that into a
finding. To add one, write the function in the file of its subject, give it a line in CHECKS, and plant its fault in
`tests/doctor/`.
"""

from __future__ import annotations

from launch.doctor_checks import accelerators, environments, machine, network, programs, slurm
from launch.doctor_checks.base import Check

CHECKS: tuple[Check, ...] = (
    Check("Programs", "system", programs.system),
    Check("Programs", "revision", programs.revision),
    Check("Programs", "Python", programs.interpreters),
    Check("Programs", "programs", programs.programs),
    Check("Programs", "settings", programs.settings),
    Check("Environments", "environments", environments.environments),
    Check("Accelerators", "NVIDIA", accelerators.nvidia),
    Check("Accelerators", "others", accelerators.other_accelerators),
    Check("Machine", "disk", machine.disks),
    Check("Machine", "memory", machine.memory),
    Check("Machine", "cores", machine.cores),
    Check("Machine", "/dev/shm", machine.shared_memory),
    Check("Machine", "open files", machine.open_files),
    Check("Machine", "runs/", machine.file_system),
    Check("Network", "network", network.network),
    Check("Slurm", "sinfo", slurm.slurm),
)
