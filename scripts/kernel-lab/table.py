"""table.py [--check]   makes the tables in docs/kernels.md and README.md from docs/kernels/*.json; --check only compares."""

import glob
import json
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BEGIN, END = "<!-- made by scripts/kernels table: begin -->", "<!-- end -->"
MARKS = {"ok": "ok", "failed": "**failed**", "not run": "not run"}


def cell(text):
    return " ".join(str(text if text is not None else "none").split()).replace("|", "\\|")


def row(cells):
    return "| " + " | ".join(cell(c) for c in cells) + " |"


def release(result):
    return [int(n) if n.isdigit() else 0 for n in result["kernel"].replace("-", ".").split(".")[:3]]


def auto(result):
    return next((c["detail"] for c in result.get("doctor", []) if c["name"] == "recorder" and c["ok"]), "none")


def ran(result):
    when = sorted({"%s, %s" % (c["date"], c["commit"]) for c in result["checks"] if "date" in c})
    return "; ".join(when)


def version(result):
    return result["kernel"].split("-")[0].split("+")[0]


def where(result):
    """The kernel's version and the release around it, which tell results apart."""
    return "%s, %s" % (version(result), "this machine" if "emulated" not in result["machine"]
                       else re.sub(r".*\((\w+)\)", r"\1", result["os"]))


def mark(check, result):
    """How a check ended, and of which commit where they differ."""
    said = MARKS[check["status"]]
    several = len({c["commit"] for c in result["checks"] if "commit" in c}) > 1
    return "%s (%s)" % (said, check["commit"]) if several and check.get("commit") and check["status"] != "not run" else said


def tables(results):
    lines = [row(["", *("Linux " + where(r) for r in results)]),
             "|---|" + "---|" * len(results)]
    facts = [
        ("machine", lambda r: "%s: %s" % (r["machine"], r["os"])),
        ("kernel", lambda r: r["kernel"]),
        ("run on, slim's commit", ran),
        ("cgroups", lambda r: {"v2": "version 2 alone", "v1": "version 1"}.get(r["cgroup"], r["cgroup"])
         + (" (%s)" % r["controllers"] if r["controllers"] else "")),
        ("init", lambda r: r["init"]),
        ("LSMs", lambda r: (r["lsms"] or "unknown").replace(",", ", ")),
        ("`--recorder auto`", auto),
    ]
    lines += [row([name, *(fact(r) for r in results)]) for name, fact in facts]
    for engine in ("docker", "podman", "runc", "crun"):
        lines.append(row([engine, *(r["engines"].get(engine, "not installed") for r in results)]))
    lines += ["", row(["check", *("Linux " + where(r) for r in results)]),
              "|---|" + "---|" * len(results)]
    names = []
    for result in results:
        names += [c["name"] for c in result["checks"] if c["name"] not in names]
    for name in names:
        found = [next((c for c in r["checks"] if c["name"] == name), {"status": "not run"}) for r in results]
        lines.append(row([name, *(mark(c, r) for c, r in zip(found, results))]))
    notes = []
    for result in results:
        # what is not as it should be, and what was smaller or other than its name says; a reason once
        by = {}
        for c in result["checks"]:
            if c["status"] != "ok" or re.search(r"once|slow to stop|made by|skipped", c["detail"]):
                by.setdefault((c["status"], c["detail"]), []).append(c["name"])
        if by:
            notes += ["", "Linux %s:" % where(result), ""]
            notes += ["- %s: %s: %s" % (", ".join(names), status, cell(detail)) for (status, detail), names in by.items()]
    return "\n".join(lines + notes)


def short(result):
    """The README's row: what worked, and what failed or was not run, by name."""
    status = {c["name"]: c["status"] for c in result["checks"]}

    def told(words):
        by = {mark: [word for word, name in words.items() if status.get(name, "not run") == mark] for mark in MARKS}
        said = [", ".join(by["ok"])] if by["ok"] else []
        said += ["%s: %s" % (MARKS[mark], ", ".join(by[mark])) for mark in ("failed", "not run") if by[mark]]
        return "; ".join(said)

    images = ("busybox", "static-c", "nginx", "redis")
    loaded = ("busybox", "nginx", "redis")
    engine = lambda name: result["engines"].get(name, "none").split(",")[0].split("+")[0]
    how = ", ".join(result["engines"].get("podman", "").split(", ")[1:2]) or "runtime not asked"
    cgroups = {"v2": "v2"}.get(result["cgroup"], "v1 and v2" if result["cgroup"] == "hybrid" else result["cgroup"])
    driver = re.search(r"driver (\w+)", result["engines"].get("docker", ""))
    return [
        where(result),
        "%s, %s" % (cgroups, "systemd" if result["init"] == "systemd" else "no systemd"),
        auto(result).split(",")[0],
        told({image: "trace " + image for image in images}),
        told({"perf": "recorder perf", "notify": "recorder notify", "notify without root": "ordinary user"}),
        "%s (%s): %s" % (engine("docker"), driver[1] if driver else "driver not asked",
                         told({i: "docker " + i for i in loaded})),
        "%s (%s): %s" % (engine("podman"), how, told({i: "podman " + i for i in loaded})),
        told({"runc " + engine("runc"): "runtime runc", "crun " + engine("crun"): "runtime crun"}),
        told({"Docker": "inside docker", "Podman": "inside podman"}),
    ]


def summary(results):
    head = ["Linux", "cgroups", "`auto` is", "traced and verified", "other recorders", "Docker, slim images run under it",
            "Podman, the same", "`--runtime`", "slim inside `--privileged`"]
    return "\n".join([row(head), "|---" * len(head) + "|", *(row(short(r)) for r in results)])


def main():
    results = []
    for path in glob.glob(ROOT + "/docs/kernels/*.json"):
        with open(path) as f:
            results.append(json.load(f))
    results.sort(key=release)
    for name, make in ("docs/kernels.md", tables), ("README.md", summary):
        with open(ROOT + "/" + name) as f:
            page = f.read()
        head, rest = page.split(BEGIN)
        made = head + BEGIN + "\n" + (make(results) if results else "Nothing was run yet.") + "\n" + END + rest.split(END)[1]
        if sys.argv[1:] != ["--check"]:
            with open(ROOT + "/" + name, "w") as f:
                f.write(made)
        elif made != page:
            sys.exit("%s is not what docs/kernels/*.json give: run scripts/kernels table" % name)


if __name__ == "__main__":
    main()
