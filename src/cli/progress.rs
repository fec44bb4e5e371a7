//! Steps and bars on the terminal, plain lines elsewhere.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::pipeline::Reporter;

use super::units::megabytes;

/// Prints a line to stderr that no run needs twice.
pub(super) fn note_once(text: &str) {
    static NOTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if NOTED.lock().is_ok_and(|mut noted| noted.insert(text.to_owned())) {
        // A bar may be drawn on the line: begin it anew (ECMA-48, erase in line).
        let begin = if std::io::stderr().is_terminal() { "\r\x1b[2K" } else { "" };
        let _ = writeln!(std::io::stderr(), "{begin}slim: {text}");
    }
}

/// Reports on stderr: a spinner with a bar where stderr is a terminal, else a line a step.
pub(super) struct Terminal {
    bar: ProgressBar,
    last: Mutex<String>,
}

impl Terminal {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("fixed"));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar, last: Mutex::default() }
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn line(&self, text: &str) {
        self.bar.suspend(|| {
            let _ = writeln!(std::io::stderr(), "{}", super::tame(text));
        });
    }
}

impl Reporter for Terminal {
    fn step(&self, text: &str) {
        *self.last.lock().expect("no panic while held") = text.to_owned();
        self.bar.set_message(super::tame(text));
        if self.bar.is_hidden() {
            self.line(&format!("slim: {text}"));
        }
    }

    fn progress(&self, done: u64, total: u64) {
        let last = self.last.lock().expect("no panic while held");
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0).min(100);
        let (done, total) = (megabytes(done.min(total)), megabytes(total));
        self.bar.set_message(super::tame(&format!("{last} {percent} % ({done} of {total})")));
    }

    fn warn(&self, text: &str) {
        self.line(&format!("slim: warning: {text}"));
    }
}
