//! The summary as people read it.

use std::fmt::Write as _;

use crate::model::LossKind;
use crate::pipeline::{Bystanders, Summary};

use super::units::megabytes;

/// A few lines: what went in, what came out, whether it holds.
pub(super) fn text(summary: &Summary) -> String {
    let mut out = String::new();
    if let Some(output) = &summary.output {
        let _ = writeln!(out, "{}", output.tag);
        let (files, bytes) = (&summary.files, &summary.bytes);
        let _ = writeln!(out, "  files      {} of {}", files.after, files.before);
        let _ =
            writeln!(out, "  bytes      {} of {}", megabytes(bytes.after), megabytes(bytes.before));
        let calls = &summary.syscalls;
        let _ =
            writeln!(out, "  calls      {} allowed, {} recorded", calls.allowed, calls.recorded);
        let reasons: Vec<String> =
            summary.kept_by_reason.iter().map(|(name, n)| format!("{name} {n}")).collect();
        let _ = writeln!(out, "  kept by    {}", reasons.join(", "));
    } else if let Some(recipe) = &summary.recipe {
        let _ = writeln!(out, "Dockerfile");
        let (copied, added) = (recipe.copied, recipe.added);
        let _ =
            writeln!(out, "  files      {copied} copied by the builder, {added} in skeleton.tar");
    } else {
        let _ = writeln!(out, "no image was written");
        let _ = writeln!(out, "  calls      {} recorded", summary.syscalls.recorded);
    }
    let _ = writeln!(out, "  record     {}", record(summary));
    if let Some(Bystanders { before, during }) = summary.bystanders {
        let more = during.saturating_sub(before);
        let _ = writeln!(out, "  others     +{more} ns per call on this machine meanwhile");
    }
    let _ = writeln!(out, "  verified   {}", verified(summary));
    if !summary.generated.is_empty() {
        let _ = writeln!(out, "  generated  {}", summary.generated.join(", "));
    }
    out
}

fn record(summary: &Summary) -> String {
    if summary.complete {
        let times = if summary.recordings > 1 { " runs" } else { " run" };
        return format!("complete, {}{times}", summary.recordings.max(1));
    }
    let none = LossKind::NotRecorded.name();
    if summary.losses.iter().all(|loss| loss.kind == none) {
        return "nothing was recorded".to_owned();
    }
    let losses: Vec<String> =
        summary.losses.iter().map(|loss| format!("{} {}", loss.number, loss.kind)).collect();
    format!("INCOMPLETE: {}", losses.join(", "))
}

fn verified(summary: &Summary) -> String {
    let Some(verified) = summary.verified else { return "no".to_owned() };
    let word = |passed: bool| if passed { "passed" } else { "FAILED" };
    let dynamic = verified.dynamic.map_or("not run", word);
    format!("static {}, dynamic {dynamic}", word(verified.statically))
}
