//! Names of signals, as STOPSIGNAL and `--stop-signal` have them.

/// Real-time signals that glibc keeps for itself: programs' `SIGRTMIN` is 34 (signal(7)).
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// `SIGTERM`, `term`, `15`, `RTMIN+3`, `SIGRTMAX-1`.
pub fn signal_number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = name.to_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    for (base, first, sign) in [("RTMIN", RTMIN, 1), ("RTMAX", RTMAX, -1)] {
        if let Some(rest) = short.strip_prefix(base) {
            return real_time(rest, first, sign);
        }
    }
    match short {
        "CLD" => Some(libc::SIGCHLD),
        "POLL" => Some(libc::SIGIO),
        "IOT" => Some(libc::SIGABRT),
        _ => {
            let signal: nix::sys::signal::Signal = format!("SIG{short}").parse().ok()?;
            Some(signal as i32)
        }
    }
}

fn real_time(rest: &str, first: i32, sign: i32) -> Option<i32> {
    if rest.is_empty() {
        return Some(first);
    }
    let digits = rest.strip_prefix(if sign > 0 { '+' } else { '-' })?;
    let number = first + sign * i32::from(digits.parse::<u8>().ok()?);
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_names() {
        for (name, want) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMIN", Some(34)),
            ("RTMAX-1", Some(63)),
            ("RTMIN+31", None),
            ("RTMIN-1", None),
            ("0", None),
            ("65", None),
            ("NOPE", None),
            ("", None),
        ] {
            assert_eq!(signal_number(name), want, "{name}");
        }
    }
}
