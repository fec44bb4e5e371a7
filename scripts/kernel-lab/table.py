"""table.py [--check]   makes the tables in docs/kernels.md from docs/kernels/*.json; --check only compares."""

import glob
import json
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PAGE = ROOT + "/docs/kernels.md"
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


def tables(results):
    lines = [row(["", *("Linux %s" % r["kernel"].split("-")[0].split("+")[0] for r in results)]),
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
    lines += ["", row(["check", *("Linux %s" % r["kernel"].split("-")[0].split("+")[0] for r in results)]),
              "|---|" + "---|" * len(results)]
    names = []
    for result in results:
        names += [c["name"] for c in result["checks"] if c["name"] not in names]
    for name in names:
        found = [next((c for c in r["checks"] if c["name"] == name), {"status": "not run"}) for r in results]
        lines.append(row([name, *(MARKS[c["status"]] for c in found)]))
    notes = []
    for result in results:
        other = [c for c in result["checks"] if c["status"] != "ok"]
        if other:
            notes += ["", "Linux %s:" % result["kernel"], ""]
            notes += ["- %s, %s: %s" % (c["name"], c["status"], cell(c["detail"])) for c in other]
    return "\n".join(lines + notes)


def main():
    results = []
    for path in glob.glob(ROOT + "/docs/kernels/*.json"):
        with open(path) as f:
            results.append(json.load(f))
    results.sort(key=release)
    with open(PAGE) as f:
        page = f.read()
    head, rest = page.split(BEGIN)
    made = head + BEGIN + "\n" + (tables(results) if results else "Nothing was run yet.") + "\n" + END + rest.split(END)[1]
    if sys.argv[1:] == ["--check"]:
        if made != page:
            sys.exit("docs/kernels.md is not what docs/kernels/*.json give: run scripts/kernels table")
        return
    with open(PAGE, "w") as f:
        f.write(made)


if __name__ == "__main__":
    main()
