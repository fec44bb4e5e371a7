//! Which subordinate ids a user has (subuid(5), subgid(5)), and giving them to a namespace.

use std::fs;
use std::process::Command;

/// A user's subordinate ids of one kind: first and count of each range.
pub(super) type Ranges = Vec<(u32, u32)>;

/// The ranges of the user `name` with the number `uid` in the file at `path`; none where there is no
/// such file.
pub(super) fn subordinate(path: &str, name: &str, uid: u32) -> Ranges {
    parse(&fs::read_to_string(path).unwrap_or_default(), name, uid)
}

fn parse(text: &str, name: &str, uid: u32) -> Ranges {
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let own = owner == name || owner.parse() == Ok(uid);
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (own && count > 0).then_some((first, count))
    };
    let mut ranges: Ranges = text.lines().filter_map(range).collect();
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}

/// The arguments of newuidmap(1) and newgidmap(1): `own` becomes 0, the ranges follow from 1 on.
pub(super) fn arguments(pid: u32, own: u32, ranges: &[(u32, u32)]) -> Vec<String> {
    let mut words = vec![pid, 0, own, 1];
    let mut next = 1;
    for (first, count) in ranges {
        words.extend([next, *first, *count]);
        next += count;
    }
    words.iter().map(u32::to_string).collect()
}

/// Runs newuidmap or newgidmap.
///
/// # Errors
/// With the program's own words.
pub(super) fn run(program: &str, words: &[String]) -> Result<(), String> {
    let output = Command::new(program).args(words).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}", words.join(" "), said.trim()))
}

/// Whether a program is in PATH.
pub(super) fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "# comment\nann:100000:65536\nbob:165536:65536\n1000:300000:10\nann:bad:1\n\
                    ann:5:0\nann:100000:65536\n";
        assert_eq!(parse(text, "ann", 1000), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(parse(text, "eve", 7), []);
    }

    #[test]
    fn ranges_follow_each_other_from_one_on() {
        let words = arguments(42, 1000, &[(100_000, 65_536), (300_000, 10)]).join(" ");
        assert_eq!(words, "42 0 1000 1 1 100000 65536 65537 300000 10");
    }
}
