//! The recorders as wholes: which work on this host, and what each would not see here.

use crate::model::{Lack, Offer};
use crate::record::{ACCESSES, Backend, RecordError, Sight};

/// A recorder on this host: its row, and the kinds of use that it would miss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorder {
    pub offer: Offer,
    pub blind: Vec<String>,
}

/// What a missing part takes from a recorder that can do without it.
const PARTS: [(Backend, &str, &str); 2] = [
    (Backend::Bpf, "io_uring", "operations of io_uring, but for the files they open"),
    (Backend::Bpf, "cap_capable", "uses of capabilities, where they happen"),
];

/// Every recorder, best first, each tried once, and what `--recorder auto` picks: the offer `recorder`.
/// `offers` are the parts that were tried before.
pub(super) fn recorders(offers: &[Offer]) -> (Vec<Recorder>, Offer) {
    let tried = Backend::ALL.map(|backend| (backend, backend.check()));
    let recorder = |(backend, found): &(Backend, Result<(), RecordError>)| {
        let found = match found {
            Ok(()) => Ok(works(*backend)),
            Err(error) => Err(lack(error, *backend)),
        };
        Recorder { offer: Offer::new(backend.name(), found), blind: blind(*backend, offers) }
    };
    let recorders = tried.iter().map(recorder).collect();
    // asked in the same order
    let mut found = tried.into_iter().map(|(_, found)| found);
    (recorders, auto(Backend::best(|_| found.next().unwrap_or(Ok(())))))
}

fn auto(best: Result<(Backend, (), Option<String>), RecordError>) -> Offer {
    let found = match best {
        Ok((backend, (), None)) => Ok(backend.name().to_owned()),
        Ok((backend, (), Some(why))) => Ok(format!("{backend}, because {why}")),
        Err(error) => {
            let costs = "images can be run and measured with --recorder none only";
            Err(split(&error, costs))
        }
    };
    Offer::new("recorder", found)
}

fn works(backend: Backend) -> String {
    let asked = backend.sees().iter().filter(|sight| **sight == Sight::Asked).count();
    match (backend, asked) {
        (Backend::Bpf, _) => "programs load and attach to their tracepoints".to_owned(),
        (_, 0) => "works here".to_owned(),
        (_, asked) => format!(
            "works here; of {} kinds of access {asked} are seen as tried, and what came of them is looked up",
            ACCESSES.len()
        ),
    }
}

fn lack(error: &RecordError, backend: Backend) -> Lack {
    let costs = match backend {
        Backend::Bpf => "--recorder bpf, the one that sees most and costs least",
        Backend::Perf => "--recorder perf, which stands in for bpf",
        Backend::Notify => "--recorder notify, the one that an ordinary user can have",
    };
    split(error, costs)
}

/// The way out has a field of its own, so it leaves the error's text.
fn split(error: &RecordError, costs: &str) -> Lack {
    let way_out = match error {
        RecordError::Host { way_out, .. } | RecordError::Fanotify { way_out, .. } => way_out,
        _ => "see the rows of its parts",
    };
    let lack = Lack::of(error, costs, way_out);
    Lack { why: lack.why.replacen(&format!("; {way_out}"), "", 1), ..lack }
}

/// Kinds of access that neither the recorder nor, where the host allows its marks, fanotify sees.
fn blind(backend: Backend, offers: &[Offer]) -> Vec<String> {
    let there = |name: &str| offers.iter().any(|offer| offer.name == name && offer.ok());
    let beside = Backend::fanotify_sees();
    let accesses = ACCESSES.iter().zip(backend.sees()).zip(beside).filter_map(
        |((access, by), beside)| match (by, beside) {
            (Sight::Blind(_), Sight::Seen | Sight::Asked) if there("fanotify") => None,
            (Sight::Blind(why), _) => Some(format!("{access}: {why}")),
            _ => None,
        },
    );
    let parts = PARTS.iter().filter(|(of, part, _)| *of == backend && !there(part));
    accesses.chain(parts.map(|(.., what)| (*what).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(names: &[&'static str]) -> Vec<Offer> {
        names.iter().map(|name| Offer::new(name, Ok(String::new()))).collect()
    }

    #[test]
    fn a_missing_part_is_told_as_what_it_would_have_seen() {
        let all = host(&["fanotify", "io_uring", "cap_capable"]);
        assert_eq!(blind(Backend::Bpf, &all), [""; 0]);
        assert_eq!(blind(Backend::Bpf, &host(&["fanotify"])).len(), 2);
        let without = blind(Backend::Bpf, &host(&["io_uring", "cap_capable"]));
        assert!(without.iter().any(|text| text.starts_with("ELF interpreter")), "{without:?}");
    }
}
