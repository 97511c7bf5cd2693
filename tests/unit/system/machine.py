"""A made-up machine for test_cgroups, test_cpus and test_limits: a folder with the files of proc and of cgroups."""

from __future__ import annotations

from pathlib import Path

V2 = "35 24 0:30 {root} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "33 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "34 31 0:31 {root} /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "38 31 0:35 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
)
OTHERS = "24 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n25 24 0:5 / /proc rw - proc proc rw\n"
CPU = "sys/fs/cgroup/cpu,cpuacct"


class Machine:
    """A root folder with proc/self and the files of cgroups."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> Machine:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return self

    def process(self, mountinfo: str, cgroup: str) -> Machine:
        return self.write("proc/self/mountinfo", OTHERS + mountinfo).write("proc/self/cgroup", cgroup)

    def v2(self, folder: str, text: str) -> Machine:
        return self.write(f"sys/fs/cgroup/{folder}/cpu.max", text)

    def v1(self, folder: str, quota_us: int, period_us: int = 100_000) -> Machine:
        self.write(f"{CPU}/{folder}/cpu.cfs_quota_us", f"{quota_us}\n")
        return self.write(f"{CPU}/{folder}/cpu.cfs_period_us", f"{period_us}\n")
