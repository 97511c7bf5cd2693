"""redis-py's own tests of a plain server, run through the proxy: one check for each file that talks to a server."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from checks import HOST, PORT, SUBJECT, remark, report, say
from reasons import ONE_SERVER, why

BOTH = ["commands", "connection", "connection_pool", "credentials", "encoding", "hash", "keyspace_notifications"]
BOTH += ["client", "lock", "monitor", "pipeline", "pubsub", "scripting"]
FILES = [f"tests/test_{name}.py" for name in [*BOTH, "cache", "command_parser", "data_structure", "function"]]
FILES += ["tests/test_multiprocessing.py"]
FILES += [f"tests/test_asyncio/test_{name}.py" for name in [*BOTH, "cwe_404"]]
NOT_FOR_ONE_SERVER = ["onlycluster", "redismod", "ssl", "replica", "cp_integration", "multidb_integration"]

folder = Path(sys.argv[1]) / f"redis-{version('redis')}"
report("redis-py's own test suite", version("redis"))
with tempfile.TemporaryDirectory() as place:
    results = Path(place) / "results.xml"
    options = ["-q", "-p", "no:cacheprovider", "--tb=native", "--timeout=30", f"--junitxml={results}"]
    marks = " and ".join(f"not {mark}" for mark in NOT_FOR_ONE_SERVER)
    command = [sys.executable, "-m", "pytest", *options, "-m", marks, f"--redis-url=redis://{HOST}:{PORT}/0", *FILES]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if not results.exists():
        print(done.stdout[-3000:])
        raise SystemExit("pytest left no results")
    cases = list(ET.parse(results).getroot().iter("testcase"))

reasons: Counter[str] = Counter()
for file in FILES:
    module = file.removesuffix(".py").replace("/", ".")
    numbers: Counter[str] = Counter()
    unexplained: list[str] = []
    for case in cases:
        name = str(case.get("name"))
        if f"{case.get('classname')}.".partition(".Test")[0].rstrip(".") != module:
            continue
        failed = [each for each in case if each.tag in ("failure", "error")]
        if not failed:
            numbers["skipped" if any(each.tag == "skipped" for each in case) else "passed"] += 1
            continue
        said = " ".join(f"{each.get('message')} {each.text}" for each in failed)
        test = name.partition("[")[0]
        reason = ONE_SERVER.get(test, "") if SUBJECT == "plain" else why(test, said)
        numbers["fail for a reason" if reason else "fail"] += 1
        reasons[reason or "unexplained"] += 1
        if not reason:
            unexplained.append(f"{name}: {str(failed[0].get('message'))[:80]}")
    detail = ", ".join(f"{number} {what}" for what, number in sorted(numbers.items()))
    ok = not unexplained and bool(numbers["passed"] + numbers["skipped"])
    say(check=module.removeprefix("tests."), ok=ok, detail="; ".join([detail, *unexplained]))
total = len(cases) - sum(reasons.values())
remark(
    f"{total} of {len(cases)} tests pass or are skipped; "
    + ", ".join(f"{n}: {why}" for why, n in reasons.most_common())
)
