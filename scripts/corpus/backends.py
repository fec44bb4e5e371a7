"""See scripts/compare-backends. Traces corpus images with each recorder and compares what they saw."""

import argparse
import json
import os
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.dirname(__file__))
import report  # noqa: E402


def counted(cells):
    """True if anybody but the OCI runtime is behind a cell {kind: {run: first use}}."""
    return any(by["phase"] != "runtime" for runs in cells.values() for by in runs.values())


def seen(profile):
    """What a profile names: calls that entered the kernel, and paths of the image."""
    calls = {"%s:%s" % (arch, name) for arch, names in profile["syscalls"].items() for name, args in names.items()
             if any(counted({"call": cells.get("call", {})}) for cells in args.values())}
    return {"calls": calls, "files": {path for path, cell in profile["files"].items() if counted(cell["access"])}}


class Traced:
    """The runs of one image with one recorder: what all saw, and what any saw."""

    def __init__(self, name, recorder, runs, work):
        self.recorder, self.failed, got = recorder, [], []
        grace_args = report.image_env(name)[1]
        for n in range(runs):
            out = "%s/%s-%s-%d" % (work, name, recorder, n)
            done = subprocess.run(
                [report.SLIM, "trace", "--image", "oci:%s/%s/oci" % (report.OUT, name), "--recorder", recorder,
                 "--profile-only", "--no-verify", *grace_args, "-o", out, "--", "bash",
                 "%s/images/%s/coverage" % (report.CORPUS, name)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if done.returncode:
                last = done.stdout.decode(errors="replace").splitlines()[-1:]
                self.failed.append("%s, run %d: exit %d: %s" % (recorder, n + 1, done.returncode, "".join(last)))
                continue
            with open(out + "/profile.json") as f:
                got.append(seen(json.load(f)))
            shutil.rmtree(out)
        what = ("calls", "files")
        self.always = {w: set.intersection(*(g[w] for g in got)) if got else set() for w in what}
        self.ever = {w: set.union(*(g[w] for g in got)) if got else set() for w in what}


def compare(name, traced, say):
    """True if all saw the same, but for what a recorder itself does not see in each of its runs."""
    good = True
    for t in traced:
        for line in t.failed:
            say("%s: %s" % (name, line))
            good = False
    for w in ("calls", "files"):
        say("%s: %s: %s" % (name, w, ", ".join("%s %d (%d in every run)" % (
            t.recorder, len(t.ever[w]), len(t.always[w])) for t in traced)))
        for a in traced:
            for b in traced:
                lost = sorted(a.always[w] - b.ever[w])
                if lost:
                    good = False
                    say("%s: %s: always with %s, never with %s: %s" % (
                        name, w, a.recorder, b.recorder, " ".join(lost[:12]) + (" …" if len(lost) > 12 else "")))
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--recorders", default="bpf,perf,notify")
    parser.add_argument("--work", default="/var/tmp/slim-compare-backends")
    parser.add_argument("names", nargs="*", default=report.NAMES)
    options = parser.parse_args()
    os.makedirs(options.work, exist_ok=True)
    bad = []
    for name in options.names or report.NAMES:
        traced = [Traced(name, r, options.runs, options.work) for r in options.recorders.split(",")]
        if not compare(name, traced, lambda line: print(line, flush=True)):
            bad.append(name)
    print("every recorder saw the same" if not bad else "not the same: " + " ".join(bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
